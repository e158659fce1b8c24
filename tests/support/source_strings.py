"""The string literals of the provider's source, to check messages that documents and tests name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import airflow_dai_provider


def provider_strings() -> str:
    """Return the string literals and parameter names of all modules, one per line; in f-strings without the fields."""
    modules = sorted(Path(airflow_dai_provider.__file__).parent.rglob("*.py"))
    return "\n".join(text for path in modules for text in _strings(path))


def _strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(value.value) if isinstance(value, ast.Constant) else "" for value in node.values)
        elif isinstance(node, ast.Constant | ast.arg):
            yield str(node.value) if isinstance(node, ast.Constant) else node.arg
