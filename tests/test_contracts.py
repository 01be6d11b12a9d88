"""Bot and trainer run without each other's packages; names of modules and classes are unique."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TRAINER_ONLY = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "PIL", "matplotlib")
BOT_ONLY = ("discord", "aiosqlite", "apscheduler", "simcord")


def import_all(
    package: str, absent: tuple[str, ...], leave_out: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Import every module of a package in a fresh interpreter that cannot find the `absent` packages."""
    code = textwrap.dedent(
        f"""
        import importlib, pkgutil, sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {absent!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}} (absent in this test)", name=name)

        sys.meta_path.insert(0, Absent())
        package = importlib.import_module({package!r})
        for module in pkgutil.walk_packages(package.__path__, {package!r} + "."):
            if not module.name.endswith("__main__") and not module.name.startswith({leave_out!r}):
                importlib.import_module(module.name)
        """
    )
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_bot_runs_without_torch_and_pillow() -> None:
    # Not the demo: its simulated Discord needs Pillow.
    result = import_all("bot", TRAINER_ONLY, leave_out=("bot.demo",))

    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_trainer_runs_without_discord() -> None:
    result = import_all("trainer", BOT_ONLY)

    assert result.returncode == 0, result.stderr


def test_the_protocol_needs_nothing_but_pydantic() -> None:
    result = import_all("trainer.protocol", (*TRAINER_ONLY, *BOT_ONLY))

    assert result.returncode == 0, result.stderr


def test_an_absent_package_is_noticed() -> None:
    assert "absent in this test" in import_all("trainer.protocol", ("pydantic",)).stderr


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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(str(path.relative_to(ROOT)))

    assert {name: paths for name, paths in classes.items() if len(paths) > 1} == {}


def source_files() -> list[Path]:
    return [path for package in ("bot", "trainer") for path in (ROOT / package).rglob("*.py")]
