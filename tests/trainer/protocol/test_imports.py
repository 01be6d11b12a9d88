"""The protocol and the exchanged files are light: any process may import them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainer.exchange
import trainer.protocol

#: Modules that open files, sockets or processes. `text` reads an environment variable and its catalogs.
_IO_MODULES = {"fcntl", "os", "shutil", "signal", "socket", "subprocess", "tempfile"}


def imports_of(package: str) -> Iterator[tuple[str, str]]:
    """Yield (file name, dotted module) of each import in a package."""
    for path in Path(package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path.name, node.module or ""


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        (trainer.protocol.__path__[0], ("trainer.protocol",)),
        (trainer.exchange.__path__[0], ("trainer.protocol", "trainer.exchange")),
    ],
)
def test_only_pydantic_babel_and_the_standard_library_are_imported(package: str, allowed: tuple[str, ...]) -> None:
    for name, module in imports_of(package):
        top = module.partition(".")[0]
        # Babel reads the catalogs, once another language than English is spoken.
        is_light = top == "pydantic" or (name, top) == ("text.py", "babel") or top in sys.stdlib_module_names
        assert is_light or module.startswith(allowed), (name, module)


def test_the_protocol_holds_values_and_does_no_input_or_output() -> None:
    used = {(name, module) for name, module in imports_of(trainer.protocol.__path__[0]) if module in _IO_MODULES}
    assert used == {("text.py", "os")}
