"""Where the sidecar of a file is that somebody is about to load."""

from __future__ import annotations

import os

from bitward_agent.io import resolve, sidecar_path

FOLDERS_LOOKED_INTO = 4
"""How many folders above a file may be the protected directory whose sidecars lie in ``sidecar_dir`` in the same structure."""


def find_sidecar(path: str, sidecar_dir: str | None) -> str | None:
    """The sidecar of a file, or None.

    It lies beside the file itself (links are resolved: in a hub cache beside the blob), or, where ``sidecar_dir`` is given, in it: under
    the name of the directory that was protected (``DIR/model/model.safetensors.ward``), or bare for a file that was protected by itself.
    The longest of these names comes first, since many models have files of the same name.
    """
    real = resolve(path)
    if sidecar_dir is not None:
        places = []
        for name in dict.fromkeys((os.path.abspath(path), real)):
            parts = name.split("/")[1:]
            places += ["/".join(parts[-count:]) for count in range(min(FOLDERS_LOOKED_INTO, len(parts)), 1, -1)]
        for place in (*places, os.path.basename(path), os.path.basename(real)):
            found = os.path.join(sidecar_dir, place + ".ward")
            if os.path.lexists(found):
                return found
    beside = sidecar_path(real)
    return beside if os.path.lexists(beside) else None
