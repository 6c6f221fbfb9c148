"""The codec room opens no file. import-linter forbids the modules that could; this forbids the builtins."""

from __future__ import annotations

import ast
from pathlib import Path

import bitward_formats

FORBIDDEN = {"open", "print", "input", "exec", "eval", "breakpoint"}

ALLOWED = {("frozen.py", "exec")}
"""Compiles ``__init__`` out of the names of a class's fields (docs/adr/0019): no input comes near it."""


def test_no_builtin_effects() -> None:
    sources = sorted(Path(str(bitward_formats.__file__)).parent.rglob("*.py"))
    assert len(sources) > 5
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if (source.name, node.func.id) in ALLOWED:
                    continue
                assert node.func.id not in FORBIDDEN, f"{source}:{node.lineno} calls {node.func.id}()"
