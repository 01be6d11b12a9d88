"""What holds for all tests: one thread for each process that computes, the longest files first, the same examples.

HYPOTHESIS_PROFILE=random make test      # other examples each time: to look for what nobody thought of
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.golden import REWRITE_VARIABLE

# Before anything imports torch, and handed on to child processes. Runs are compared to the bit; and threads of several
# processes that wait for each other on two cores cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What passed here passes in CI: a rare example that is found there would stop somebody else's work.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="rewrite the golden files (tests/golden.py)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--rewrite-golden"):
        os.environ[REWRITE_VARIABLE] = "1"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """After they were shuffled: files whose tests may take long begin, so that no process is left alone with one."""
    longest: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, 0.0), float(mark.args[0]) if mark else 0.0)
    items.sort(key=lambda item: -longest[item.path])
