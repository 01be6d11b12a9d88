"""Which lines and branches of `bot` and `trainer` the pytest workers reach: `make test COVERAGE=1`.

SlipCover changes the bytecode of our modules as they are imported. The tracer of coverage.py, which Python also calls
for each line of every library, needed half as much CPU again as the tests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: The environment variable with the folder to which each worker writes what it reached.
FOLDER_VARIABLE = "DARKROOM_COVERAGE"
_SOURCES = ["bot", "trainer"]
#: Lines, or the blocks that begin there, that no test is meant to reach.
_EXCLUDED = ["raise AssertionError", r"@(abc\.)?abstractmethod", r"class .*\bProtocol\b.*:", r"^\s*\.\.\.$"]

_counter: Any = None


def start() -> None:
    """Count in the modules that this process imports from now on, and in its forks, if the variable is set."""
    global _counter
    if FOLDER_VARIABLE in os.environ:
        import slipcover

        _counter = slipcover.Slipcover(branch=True, exclude_also=_EXCLUDED)
        slipcover.ImportManager(_counter, slipcover.FileMatcher(sources=_SOURCES)).__enter__()


def write() -> None:
    """Write what this worker has reached, if it counts."""
    if _counter is not None:
        Path(os.environ[FOLDER_VARIABLE], f"{os.getpid()}.json").write_text(json.dumps(_counter.get_coverage()))


def table(folder: Path) -> Iterator[str]:
    """Yield a line for each module that the workers have not reached in full, and the sum of all."""
    import slipcover

    # Modules that none of them has imported count, too.
    reached = slipcover.Slipcover(branch=True, source=_SOURCES, exclude_also=_EXCLUDED).get_coverage()
    for file in folder.iterdir():
        slipcover.merge_coverage(reached, json.loads(file.read_text()))
    yield f"{'':60}{'lines':>7}{'missed':>8}{'branches':>10}{'missed':>8}"
    for name, found in [*sorted(reached["files"].items()), ("all", reached)]:
        summary = found["summary"]
        missed = summary["missing_lines"], summary["missing_branches"]
        if any(missed):
            lines, branches = summary["covered_lines"] + missed[0], summary["covered_branches"] + missed[1]
            yield f"{name:60}{lines:7}{missed[0]:8}{branches:10}{missed[1]:8}{summary['percent_covered']:7.0f} %"
