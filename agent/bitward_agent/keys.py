"""Keys in PEM files: Ed25519 for seals, elliptic curves for model-signing manifests. Needs the extra ``bitward[sign]``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bitward_agent.durable import make_folder
from bitward_agent.errors import BitwardError, InputError, WriteError
from bitward_agent.io import OpenFile, reason, resolve
from bitward_formats.errors import MissingExtraError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PRIVATE_NAME = "bitward.key"
PUBLIC_NAME = "bitward.pub"
KEY_KINDS = ("ed25519", "p256")
_KEY_LIMIT_BYTES = 64 << 10
_SEAL_KIND = "seals need an Ed25519 key: 'bitward keygen' makes one"
_MANIFEST_KIND = "model signing needs a key on a NIST curve: 'bitward keygen --kind p256' makes one"


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401  # whether it is there
    except ImportError:
        raise MissingExtraError("keys need the extra 'sign': pip install 'bitward[sign]'") from None


def make_keys(folder: str, kind: str = "ed25519") -> tuple[str, str]:
    """Make a key pair in a folder: (path of the private key, readable by its owner alone; path of the public key).

    Raises:
        WriteError: there is one already, or it cannot be written.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    private = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    folder = resolve(folder)
    make_folder(folder)
    paths = os.path.join(folder, PRIVATE_NAME), os.path.join(folder, PUBLIC_NAME)
    for path in paths:
        if os.path.lexists(path):
            raise WriteError(f"{path}: is there already; a key is never overwritten")
    for path, data, mode in zip(paths, (secret, public), (0o600, 0o644), strict=True):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise WriteError(f"{path}: cannot write: {reason(error)}") from error
    return paths


def _read_key(path: str, name: str) -> tuple[str, bytes]:
    real = resolve(path)
    if os.path.isdir(real):
        real = os.path.join(real, name)
    try:
        with OpenFile(real) as file:
            return real, file.read(0, _KEY_LIMIT_BYTES)
    except BitwardError as error:
        raise InputError(f"no key: {error}") from error


def _private(path: str) -> tuple[str, object]:
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    real, data = _read_key(path, PRIVATE_NAME)
    try:
        return real, load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"{real}: no private key in PEM without a password") from None


def _public(path: str) -> tuple[str, object]:
    """A public key; of a private one its public half."""
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    real, data = _read_key(path, PUBLIC_NAME)
    try:
        if b"PRIVATE KEY" in data:
            return real, load_pem_private_key(data, None).public_key()
        return real, load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"{real}: no public key in PEM") from None


def seal_private_key(path: str) -> Ed25519PrivateKey:
    """The Ed25519 private key in a PEM file, or in a folder that ``make_keys`` filled.

    Raises:
        InputError: none, or of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    real, key = _private(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{real}: {_SEAL_KIND}")
    return key


def seal_public_key(path: str) -> Ed25519PublicKey:
    """The Ed25519 public key in a PEM file or folder.

    Raises:
        InputError: none, or of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    real, key = _public(path)
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{real}: {_SEAL_KIND}")
    return key


def manifest_private_key(path: str) -> EllipticCurvePrivateKey:
    """The elliptic-curve private key in a PEM file or folder.

    Raises:
        InputError: none, or of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    real, key = _private(path)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise InputError(f"{real}: {_MANIFEST_KIND}")
    return key


def manifest_public_key(path: str) -> EllipticCurvePublicKey:
    """The elliptic-curve public key in a PEM file or folder.

    Raises:
        InputError: none, or of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    real, key = _public(path)
    if not isinstance(key, EllipticCurvePublicKey):
        raise InputError(f"{real}: {_MANIFEST_KIND}")
    return key
