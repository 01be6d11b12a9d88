"""`python -m bot models`: base models are added to config.toml, and shown with what their files tell."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from bot.config import Config, ModelSettings
from bot.config_file import load_config
from bot.operations.models_command import ModelNotAdded, add_model, models_text
from bot.ui.model_pages import model_lines
from trainer.exchange.memory_predictions import is_predictable, keep_prediction
from trainer.protocol.presets import spec_from_preset


def single_file(path: Path, *names: str) -> Path:
    """A `.safetensors` file with these tensors, empty ones."""
    header = json.dumps({name: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


@pytest.fixture
def sdxl(tmp_path: Path) -> Path:
    return single_file(tmp_path / "own.safetensors", "conditioner.embedders.0.transformer.weight")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data folder is relative to where the command runs."""
    monkeypatch.chdir(tmp_path)


def keep_9_gib(config: Config, label: str) -> None:
    """Predict, as a trainer process would."""
    base = config.models.base_of(label)
    spec = spec_from_preset("lora", dataset="/data", base=base["source"], changes={"base": base})
    if is_predictable(spec):
        keep_prediction(config.storage.data_dir / "predictions", spec, 9 * 2**30)


@pytest.mark.parametrize(
    "before",
    [
        "",
        "# My bot.\n[limits]\nmax_epochs = 50\n",
        '[models.sources]\ntiny = "tiny"\n\n[limits]\nmax_epochs = 50\n',
        '[models]\ndefault = "tiny"\n[models.sources]\ntiny = "tiny"\n# "another" = "x/y"\n',
    ],
)
def test_a_model_is_added_and_everything_else_stays(tmp_path: Path, sdxl: Path, before: str) -> None:
    path = tmp_path / "config.toml"
    if before:
        path.write_text(before)
    text = add_model(path, 'Our "own"', str(sdxl), predict=keep_9_gib)
    assert "SDXL, 1024 px" in text
    assert "9.0 GiB of memory" in text
    config = load_config(path)
    assert config.models.sources['Our "own"'] == str(sdxl)
    assert ("Requests that name no base use it." in text) == (config.models.default == "")
    assert set(before.splitlines()) <= set(path.read_text().splitlines())
    assert config.limits.max_epochs == (50 if "limits" in before else 100)


def test_a_hub_name_is_added_unseen(tmp_path: Path) -> None:
    assert "downloaded at its first use" in add_model(
        tmp_path / "c.toml", "SDXL", "stabilityai/sdxl", {"HF_HOME": "/x"}
    )


def test_what_cannot_be_trained_is_refused_and_nothing_changes(tmp_path: Path, sdxl: Path) -> None:
    lora = single_file(tmp_path / "lora.safetensors", "lora_unet_down.lora_up.weight")
    path = tmp_path / "config.toml"
    path.write_text('[models.sources]\ntiny = "tiny"\n')
    for label, source in (
        ("a", "/no/such/file"),
        ("a", "nowhere"),
        ("a", str(lora)),
        ("a", str(tmp_path)),
        ("tiny", str(sdxl)),
    ):
        with pytest.raises(ModelNotAdded):
            add_model(path, label, source)
    assert path.read_text() == '[models.sources]\ntiny = "tiny"\n'


def test_a_configuration_that_it_cannot_edit_is_left_alone(tmp_path: Path, sdxl: Path) -> None:
    path = tmp_path / "config.toml"
    text = '[models]\nsources = {tiny = "tiny"}\n'
    path.write_text(text)
    with pytest.raises(ModelNotAdded, match="by hand"):
        add_model(path, "own", str(sdxl))
    assert path.read_text() == text


def test_each_model_is_shown_with_what_its_files_tell(tmp_path: Path, sdxl: Path) -> None:
    sources = {"Toy": "tiny", "Own": str(sdxl), "Lost": str(tmp_path / "gone.safetensors"), "Hub": "owner/name"}
    lines = list(model_lines(Config(models=ModelSettings(sources=sources)), {"HF_HOME": str(tmp_path)}))
    assert lines[0] == "Toy: toy model for the demo, 64 px, simple shapes only"
    assert lines[1].startswith("Own: SDXL, 1024 px, ")
    # The first that is no toy.
    assert lines[1].endswith("(default)")
    assert lines[2] == "Lost: ⚠ there is no such file or folder"
    assert lines[3] == "Hub: owner/name, downloaded at its first use (some GB)"
    text = models_text(Config(models=ModelSettings(sources=sources)), predict=keep_9_gib)
    assert "Only the toy model is set up" not in text
    assert text.count("9.0 GiB of memory") == 1
    assert "Only the toy model is set up" in models_text(Config())


def test_the_toy_model_is_the_default_only_if_it_is_said() -> None:
    assert ModelSettings().default_label is None
    assert ModelSettings(default="tiny").default_label == "tiny"
    assert ModelSettings(sources={"tiny": "tiny", "SDXL": "a/b", "SD 1.5": "c/d"}).default_label == "SDXL"
