"""Imports every module of a package in a process that cannot find some packages.

python -W ignore -m tests.absent_packages PACKAGE ABSENT[,ABSENT…] [LEFT_OUT]
"""

from __future__ import annotations

import importlib
import pkgutil
import sys


class Absent:
    """Finds nothing, first of all finders."""

    def __init__(self, names: str) -> None:
        self.names = names.split(",")

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} (absent in this test)", name=name)


def main(package: str, absent: str, left_out: str = "nothing") -> None:
    """Import the modules and leave the process; one that has imported them already imports them again."""
    finder = Absent(absent)
    for name in list(sys.modules):
        if name.partition(".")[0] in {package, *finder.names}:
            del sys.modules[name]
    sys.meta_path.insert(0, finder)
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, package + "."):
        if not module.name.endswith("__main__") and not module.name.startswith(left_out):
            importlib.import_module(module.name)
    sys.exit()


if __name__ == "__main__":
    main(*sys.argv[1:])
