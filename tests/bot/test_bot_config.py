"""Settings from TOML: defaults, and every problem at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bot.config import Config
from bot.config_file import load_config, read_token
from bot.errors import ConfigError
from trainer.protocol.setting_problems import dotted_names

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"


def problems_of(tmp_path: Path, text: str) -> tuple[str, ...]:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert all(problem in str(raised.value) for problem in raised.value.problems)
    return raised.value.problems


def test_the_example_has_the_defaults() -> None:
    assert load_config(EXAMPLE) == Config()


def test_the_example_names_every_setting() -> None:
    text = EXAMPLE.read_text()
    for dotted in dotted_names(Config):
        name = dotted.rpartition(".")[2]
        assert re.search(rf"^(# )?{name} = |^\[{re.escape(dotted)}\]", text, re.MULTILINE), dotted


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("")
    assert load_config(path) == Config()


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    problems = problems_of(
        tmp_path,
        """
        [queue]
        slotz = 2
        max_attempts = 0
        poll_s = "often"
        [discord]
        token = "abc"
        guild_ids = ["x"]
        [storrage]
        data_dir = "x"
        [models]
        default = "sdxl"
        [cards]
        old_edit_interval_s = 1e9
        """,
    )
    assert sorted(problems) == [
        "cards.old_edit_interval_s is 1000000000.0; it must be 3600 or less.",
        "discord.guild_ids.0 is 'x'; it must be a valid integer.",
        "discord.token does not belong in a file. Set the environment variable DARKROOM_TOKEN.",
        "models: default is 'sdxl', which is not among the sources (tiny).",
        "queue.max_attempts is 0; it must be 1 or more.",
        "queue.poll_s is 'often'; it must be a valid number.",
        "queue.slotz is not a setting; did you mean queue.slots?",
        "storrage is not a setting; did you mean storage?",
    ]


def test_a_vae_is_for_a_known_model(tmp_path: Path) -> None:
    [problem] = problems_of(tmp_path, '[models.vaes]\nown = "/vae.safetensors"\n')
    assert "own" in problem
    assert "tiny" in problem


def test_a_right_name_in_the_wrong_group_is_recognized(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "max_epochs = 3") == ("max_epochs is not a setting; did you mean limits.max_epochs?",)


def test_invalid_toml_is_reported_with_its_line(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "[queue]\nslots = = 1\n")
    assert problem.startswith("It is not TOML:")
    assert "line 2" in problem


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Copy config\.example\.toml"):
        load_config(tmp_path / "nowhere.toml")


def test_the_token_comes_from_the_environment_and_is_not_passed_to_trainers() -> None:
    config = Config()
    environ = {"DARKROOM_TOKEN": "secret", "PATH": "/bin"}
    assert read_token(config, environ) == "secret"
    assert config.trainer_environment(environ) == {"PATH": "/bin"}
    with pytest.raises(ConfigError, match="DARKROOM_TOKEN is not set"):
        read_token(config, {})
