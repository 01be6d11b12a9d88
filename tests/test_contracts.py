"""Bot and trainer run without each other's packages; names of modules and classes are unique."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.trainer.fork_server import ForkServer

ROOT = Path(__file__).parents[1]

TRAINER_ONLY = "torch,diffusers,transformers,accelerate,peft,safetensors,numpy,PIL,matplotlib"
BOT_ONLY = "discord,aiosqlite,apscheduler,simcord"


def import_all(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Import every module of a package in a fresh interpreter that cannot find some packages."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.absent_packages", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_bot_runs_without_torch_and_pillow() -> None:
    # Not the demo: its simulated Discord needs Pillow.
    result = import_all("bot", TRAINER_ONLY, "bot.demo")

    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_trainer_runs_without_discord(fork_server: ForkServer) -> None:
    # A fork, since the libraries that both may use take ten seconds to import.
    result = fork_server.run(hook=("tests.absent_packages:main", ["trainer", BOT_ONLY]))

    assert result.returncode == 0, result.stderr


def test_the_protocol_needs_nothing_but_pydantic() -> None:
    result = import_all("trainer.protocol", f"{TRAINER_ONLY},{BOT_ONLY}")

    assert result.returncode == 0, result.stderr


def test_an_absent_package_is_noticed() -> None:
    assert "absent in this test" in import_all("trainer.protocol", "pydantic").stderr


def test_preparing_a_dataset_does_not_import_torch() -> None:
    modules = "trainer.__main__, trainer.dataset.preparing.prepare, trainer.report.sheets"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


#: Module names that Python or convention gives.
CONVENTIONAL = {"__init__", "__main__", "errors"}


def test_module_names_are_unique() -> None:
    modules = defaultdict(list)
    for path in source_files():
        if path.stem not in CONVENTIONAL:
            modules[path.stem].append(str(path.relative_to(ROOT)))

    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}


def test_class_names_are_unique() -> None:
    classes = defaultdict(list)
    for path in source_files():
        for name in re.findall(r"^\s*class (\w+)[(:]", path.read_text(encoding="utf-8"), re.MULTILINE):
            classes[name].append(str(path.relative_to(ROOT)))

    assert {name: paths for name, paths in classes.items() if len(paths) > 1} == {}


def source_files() -> list[Path]:
    return [path for package in ("bot", "trainer") for path in (ROOT / package).rglob("*.py")]
