"""Settings for all tests: one thread per process, the slowest files first, the same hypothesis examples each time.

HYPOTHESIS_PROFILE=random make test                     # other examples each time
.venv/bin/python -m pytest -n 2 --record-durations      # record the times that order the files
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.golden import REWRITE_VARIABLE
from tests.trainer.fork_server import ForkServer

#: Seconds of each file, recorded by `--record-durations`.
DURATIONS = Path(__file__).parent / "durations.json"

# Set before torch is imported, and inherited by child processes: runs are compared to the bit, and the threads of
# several processes would wait for each other on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples everywhere: what passes here passes in CI.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="rewrite the golden files (tests/golden.py)")
    parser.addoption("--record-durations", action="store_true", help="record the seconds of each file, for the order")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--rewrite-golden"):
        os.environ[REWRITE_VARIABLE] = "1"


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Start trainers as forks of a process that has imported torch already (tests/trainer/fork_server.py)."""
    with ForkServer() as server:
        yield server


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first (after the shuffle), so that no worker is left alone with one at the end."""
    recorded: dict[str, float] = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
    items.sort(key=lambda item: -recorded.get(_file_of(item.nodeid), 0.0))


_measured: dict[str, float] = defaultdict(float)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the time of each file: setup, test and teardown."""
    _measured[_file_of(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--record-durations") and not hasattr(session.config, "workerinput"):
        rounded = {name: round(seconds, 1) for name, seconds in sorted(_measured.items()) if seconds >= 1}
        DURATIONS.write_text(json.dumps(rounded, indent=0) + "\n", encoding="utf-8")


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]
