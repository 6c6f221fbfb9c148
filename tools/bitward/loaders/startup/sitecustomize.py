"""What Python runs when it starts, with this folder in ``PYTHONPATH``: puts the policy of ``BITWARD_ENFORCE`` in force.

``python -m bitward.loaders`` sets both. Python goes on when this module fails (its documentation of ``site``), so a failure ends the
process here: a program that asks for a gate must not run without. Another ``sitecustomize`` behind this folder runs afterwards, as ever.
"""

from __future__ import annotations

import os
import sys


def _enforce() -> None:
    try:
        import bitward  # noqa: F401  # does it when it is imported
    except ImportError as error:
        os.write(2, f"bitward: BITWARD_ENFORCE is set, and Bitward cannot be loaded by {sys.executable}: {error}\n".encode())
        os._exit(3)
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 2)


def _go_on() -> None:
    """Run the ``sitecustomize`` that this one stands in front of."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = os.path.dirname(os.path.abspath(__file__))
    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path or ".") != here])
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if os.environ.get("BITWARD_ENFORCE"):
    _enforce()
_go_on()
