"""Credentials of a registry, as ``docker login`` and its peers leave them in ``config.json``. None of them is ever shown.

Source: the reference of Docker's command line, "docker login": ``$DOCKER_CONFIG`` or ``~/.docker`` holds ``config.json``, whose ``auths``
maps a registry to ``auth``, the base64 of ``user:password``, or to an ``identitytoken``. Credential helpers are programs of their own and
are not run here.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from typing import Any

from bitward_agent.errors import BitwardError, InputError
from bitward_agent.io import read_regular
from bitward_formats.frozen import dataclass

_CONFIG_LIMIT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """``user`` and ``password``, or an identity token, for one registry; all empty for none. ``helper``: a helper has them instead."""

    user: str = ""
    password: str = ""
    identity_token: str = ""
    helper: str = ""

    def __repr__(self) -> str:
        """Nothing of them: what is logged by accident must not tell them."""
        return "Credentials(…)"

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header; empty if there is no user."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}" if self.user else ""


def config_path() -> str:
    """Where Docker's configuration is."""
    return os.path.join(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")


def credentials_of(host: str) -> Credentials:
    """What the configuration says of a registry; none where there is no configuration.

    Raises:
        InputError: the configuration cannot be used. The message holds nothing of its contents.
    """
    path = config_path()
    if not os.path.exists(path):
        return Credentials()
    try:
        config = json.loads(read_regular(path, _CONFIG_LIMIT_BYTES, "too long for a configuration of Docker"))
    except (ValueError, RecursionError, BitwardError):
        raise InputError(f"{path}: cannot be used: it must be a readable JSON file, as 'docker login' writes it") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: cannot be used: it holds no JSON object")
    auths = config.get("auths")
    entry = next((auths[key] for key in _keys(host) if key in auths), None) if isinstance(auths, dict) else None
    found = _entry(entry, path) if isinstance(entry, dict) else Credentials()
    if found.user or found.identity_token:
        return found
    helpers = config.get("credHelpers")
    helper = helpers.get(host) if isinstance(helpers, dict) else None
    named = helper or config.get("credsStore")
    return Credentials(helper=named) if isinstance(named, str) else Credentials()


def _keys(host: str) -> tuple[str, ...]:
    """Under which names a registry may stand; older versions of Docker wrote URLs."""
    hub = ("https://index.docker.io/v1/",) if host in ("docker.io", "registry-1.docker.io", "index.docker.io") else ()
    return (host, f"https://{host}", f"http://{host}", f"https://{host}/", f"https://{host}/v1/", f"https://{host}/v2/", *hub)


def _entry(entry: dict[str, Any], path: str) -> Credentials:
    token, packed = entry.get("identitytoken"), entry.get("auth")
    user, password = entry.get("username"), entry.get("password")
    if isinstance(packed, str) and packed:
        try:
            user, _, password = base64.b64decode(packed, validate=True).decode().rstrip("\0").partition(":")
        except (binascii.Error, ValueError):
            raise InputError(f"{path}: cannot be used: an entry of 'auths' is not as 'docker login' writes it") from None
    return Credentials(
        user if isinstance(user, str) else "",
        password if isinstance(password, str) else "",
        token if isinstance(token, str) else "",
    )
