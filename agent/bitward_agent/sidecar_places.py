"""Where in a folder of sidecars the one of a file is that is asked for by itself, not as part of a protected directory."""

from __future__ import annotations

import os

from bitward_agent.io import resolve

FOLDERS_LOOKED_INTO = 4
"""How many folders above a file may be the protected directory whose sidecars lie in the same structure."""


def sidecar_elsewhere(path: str, sidecar_dir: str) -> str | None:
    """The sidecar of a file in ``sidecar_dir``, or None.

    It lies there under the name of the directory that was protected (``DIR/model/model.safetensors.ward``), or bare for a file that was
    protected by itself. The longest of these names comes first, since many models have files of the same name; so the bare one, which
    comes last, may be another file's (:func:`is_bare`).
    """
    names = tuple(dict.fromkeys((os.path.abspath(path), resolve(path))))
    places = []
    for name in names:
        parts = name.split("/")[1:]
        places += ["/".join(parts[-count:]) for count in range(min(FOLDERS_LOOKED_INTO, len(parts)), 1, -1)]
    for place in (*places, *(os.path.basename(name) for name in names)):
        found = os.path.join(sidecar_dir, place + ".ward")
        if os.path.lexists(found):
            return found
    return None


def is_bare(sidecar: str, sidecar_dir: str | None) -> bool:
    """Whether a sidecar was found in ``sidecar_dir`` by nothing but the file's name."""
    return sidecar_dir is not None and os.path.dirname(resolve(sidecar)) == resolve(sidecar_dir)
