"""`trainer new --explain`: every setting, at its default, as TOML that can be given back."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.commands.explain_settings import settings_as_toml
from trainer.protocol.setting_problems import SHORT_NAMES, by_dotted_names, dotted_names
from trainer.protocol.spec import Spec, make_spec

#: Settings that are not chosen, and those that stand in entries of a list.
NOT_LISTED = {"version", "dataset", "method.start_sha256", "stages", "mix"}


def uncommented() -> str:
    """The file with every default in force; lists of tables and what has no default stay comments."""
    lines = []
    for line in settings_as_toml().splitlines():
        if line.startswith("# [["):
            break
        is_value = line.startswith("# ") and not line.endswith("not set")
        lines.append(line.removeprefix("# ") if is_value else line)
    return "\n".join(lines)


def test_every_setting_is_listed_with_its_default() -> None:
    text = settings_as_toml()
    tables = re.split(r"^#? ?\[+(\w+)\]+$", text, flags=re.MULTILINE)
    found = set(re.findall(r"^# (\w+) =", tables[0], flags=re.MULTILINE))
    for group, body in zip(tables[1::2], tables[2::2], strict=True):
        found |= {f"{group}.{name}" for name in re.findall(r"^# (\w+) =", body, flags=re.MULTILINE)}
    assert set(dotted_names(Spec)) - NOT_LISTED <= found
    assert {"stages.epochs", "stages.train", "mix.dataset", "mix.weight"} <= found
    assert "## 1 to 1000" in text
    assert "## Images per optimizer step (the effective batch)." in text
    assert all(f"## Short name: {short}\n" in text for short in SHORT_NAMES)


def test_the_defaults_that_it_names_are_those_of_a_spec() -> None:
    tables = tomllib.loads(uncommented())
    assert make_spec({"dataset": "/data", **tables}) == make_spec({"dataset": "/data"})
    assert by_dotted_names(tables)["training.epochs"] == 20


def test_new_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "--explain"]) == 0
    assert capsys.readouterr().out == settings_as_toml()


def test_short_names_and_tables_become_dotted_names(tmp_path: Path) -> None:
    tables = tomllib.loads('lr = 1e-4\nprompts = ["a"]\n[training]\nepochs = 3\n[[stages]]\nepochs = 3\n')
    assert by_dotted_names(tables) == {
        "training.learning_rate": 1e-4,
        "samples.prompts": ["a"],
        "training.epochs": 3,
        "stages": [{"epochs": 3}],
    }
