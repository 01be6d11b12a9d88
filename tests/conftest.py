"""Settings for all tests: one thread per process, the slowest files first, the same hypothesis examples each time.

HYPOTHESIS_PROFILE=random make test               # other examples each time, ten times as many
make test-all PYTEST_ADDOPTS=--record-durations   # record the times that order the files
"""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import worker_coverage
from tests.golden import REWRITE_VARIABLE
from tests.trainer.fork_server import TRAINER, ForkServer

#: Seconds of the fast and of the slow tests of each file, recorded by `--record-durations`.
DURATIONS = Path(__file__).parent / "durations.json"
_WORKER = "tests.pytest_worker:main"
#: Imports what the bot and its tests need.
_BOT = "tests.wire.forked_bot:main"
#: The environment variable with the socket of the server that the workers share.
_SHARED_SERVER = "DARKROOM_FORK_SERVER"

# Set before torch is imported, and inherited by child processes: runs are compared to the bit, and the threads of
# several processes would wait for each other on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples everywhere: what passes here passes in CI; the other profile looks for more. No deadline for an
# example, which would measure the load of the machine.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("random", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="rewrite the golden files (tests/golden.py)")
    parser.addoption("--record-durations", action="store_true", help="record the seconds of each file, for the order")
    parser.addoption("--coverage", action="store_true", help="print what of bot and trainer a whole run reaches")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--rewrite-golden"):
        os.environ[REWRITE_VARIABLE] = "1"
    is_whole_run = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if hasattr(config, "workerinput"):
        return
    if is_whole_run and config.getoption("tx", None):
        _fork_workers(config)
    elif config.getoption("--coverage"):
        raise pytest.UsageError("--coverage is for a whole run in workers: make test COVERAGE=1")


def _fork_workers(config: pytest.Config) -> None:
    """Let pytest-xdist's workers, and the trainers that they start, be forks of one process with all libraries."""
    if config.getoption("--coverage"):
        folder = tempfile.TemporaryDirectory(prefix="coverage-")
        config.add_cleanup(folder.cleanup)
        os.environ[worker_coverage.FOLDER_VARIABLE] = folder.name
    server = ForkServer(_WORKER, imports=[_WORKER, TRAINER, _BOT])
    config.add_cleanup(server.__exit__)
    config.option.tx = [f"popen//python={shlex.join(server.command)}" for _ in config.option.tx]
    os.environ[_SHARED_SERVER] = server.socket


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Start trainers as forks of a process that has imported torch already (tests/trainer/fork_server.py)."""
    with ForkServer(socket=os.environ.get(_SHARED_SERVER)) as server:
        yield server


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files of which `-m slow` or `-m "not slow"` selects no test: each worker would compile and import them."""
    if collection_path.suffix != ".py" or collection_path in {Path(arg.partition("::")[0]) for arg in config.args}:
        return None
    source = collection_path.read_text(encoding="utf-8")
    match config.getoption("markexpr"):
        case "slow":
            return "pytest.mark.slow" not in source or None
        case "not slow":
            return bool(re.search(r"^pytestmark = .*pytest\.mark\.slow", source, re.MULTILINE)) or None
    return None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage meanwhile, and never again look through what was made: libraries, tests, fixtures."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first (after the shuffle), so that no worker is left alone with one at the end."""
    recorded = _recorded()
    parts: dict[str, set[str]] = defaultdict(set)
    for item in items:
        parts[_file_of(item.nodeid)].add(_part_of(item.nodeid, is_slow=item.get_closest_marker("slow") is not None))
    expected = {file: sum(recorded.get(part, 0.0) for part in found) for file, found in parts.items()}
    items.sort(key=lambda item: -expected[_file_of(item.nodeid)])


_measured: dict[str, float] = defaultdict(float)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the time of setup, test and teardown."""
    _measured[_part_of(report.nodeid, is_slow="slow" in report.keywords)] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--coverage") and (folder := os.environ.get(worker_coverage.FOLDER_VARIABLE)):
        for line in worker_coverage.table(Path(folder)):
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    worker_coverage.write()
    if session.config.getoption("--record-durations") and not hasattr(session.config, "workerinput"):
        # What did not run now keeps its time.
        known = {part: seconds for part, seconds in (_recorded() | _measured).items() if _file_exists(part)}
        rounded = {part: round(seconds, 1) for part, seconds in sorted(known.items()) if seconds >= 1}
        DURATIONS.write_text(json.dumps(rounded, indent=0) + "\n", encoding="utf-8")


def _recorded() -> dict[str, float]:
    recorded: dict[str, float] = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
    return recorded


def _part_of(nodeid: str, *, is_slow: bool) -> str:
    return f"{_file_of(nodeid)}{' slow' if is_slow else ''}"


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _file_exists(part: str) -> bool:
    return (DURATIONS.parents[1] / part.partition(" ")[0]).exists()
