"""Every translated message is a literal whose placeholders are filled."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def calls() -> Iterator[tuple[str, ast.Call, int]]:
    """All calls of `_` and `ngettext`, with their place and the number of their messages."""
    for package in ("bot", "trainer"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name == "text.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"_", "ngettext"}:
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield place, node, 2 if node.func.id == "ngettext" else 1


def test_messages_are_literals() -> None:
    assert [place for place, call, count in calls() if not all(is_literal(each) for each in call.args[:count])] == []


def test_placeholders_are_filled() -> None:
    wrong = []
    for place, call, count in calls():
        keywords = {keyword.arg or "**" for keyword in call.keywords}
        if "**" in keywords or not all(is_literal(each) for each in call.args[:count]):
            continue
        filled = keywords | ({"n"} if count == 2 else set())
        used = {name for each in call.args[:count] for name in placeholders(ast.literal_eval(each))}
        # Without values, `_` does not format: braces are text.
        if (used != keywords and count == 1 and keywords) or (count == 2 and not used <= filled) or keywords - used:
            wrong.append(f"{place}: {sorted(used ^ keywords)}")
    assert wrong == []


def is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def placeholders(message: str) -> set[str]:
    return {name.split(".")[0].split("[")[0] for _, name, _, _ in string.Formatter().parse(message) if name}
