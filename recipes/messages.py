"""Finds the messages of Python files for Babel, inside f-strings and other messages too; its own reader skips those.

`make messages` uses it, by pyproject.toml.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from typing import IO, Any


def extract_python(
    fileobj: IO[bytes],
    keywords: Collection[str],
    comment_tags: Collection[str],
    options: Mapping[str, Any],
) -> Iterator[tuple[int, str, tuple[str, ...], list[str]]]:
    """Yield (line, function, its literal arguments, no comments) of each call of a keyword; Babel's interface."""
    for node in ast.walk(ast.parse(fileobj.read())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in keywords:
            literals = [each.value for each in node.args if isinstance(each, ast.Constant)]
            texts = tuple(each for each in literals if isinstance(each, str))
            if texts:
                yield node.lineno, node.func.id, texts, []
