"""The memory of trainings is predicted once, by another process, while requests go on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from bot.config import Config, ModelSettings, StorageSettings
from bot.predictions import MemoryPredictions, usual_memory
from trainer.protocol.presets import spec_from_preset

#: A trainer whose predictions are one byte more each time.
_TRAINER = """
import sys
from pathlib import Path

command, job_dir, _keep, folder = sys.argv[1:]
assert command == "memory"
calls = Path(__file__).with_name("calls")
calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
if Path(__file__).with_name("broken").exists():
    sys.exit("no operation of that name")
# Only now: they take a quarter of a second.
from trainer.exchange.job_dir import read_spec
from trainer.exchange.memory_predictions import keep_prediction
keep_prediction(Path(folder), read_spec(Path(job_dir)), len(calls.read_text()))
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    header = json.dumps({"conditioner.embedders.0.a": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "base.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "predictor.py").write_text(_TRAINER)
    sources = {"tiny": "tiny", "SDXL": str(tmp_path / "base.safetensors")}
    return Config(
        storage=StorageSettings(data_dir=tmp_path / "data"), models=ModelSettings(sources=sources, vaes={"SDXL": "a/b"})
    )


@pytest.fixture
def predictions(config: Config, tmp_path: Path) -> MemoryPredictions:
    command = [sys.executable, str(tmp_path / "predictor.py")]
    return MemoryPredictions(config, command=command, env=config.trainer_environment())


async def test_a_request_is_predicted_once_and_known_from_then_on(
    config: Config, predictions: MemoryPredictions, tmp_path: Path
) -> None:
    spec = spec_from_preset("lora", dataset="/data", base=config.models.sources["SDXL"])
    assert await predictions.of(spec) is None
    assert await predictions.of(spec) is None
    await predictions.step()
    await predictions.step()
    assert await predictions.of(spec) == 1
    assert (tmp_path / "calls").read_text() == "x"


async def test_a_base_has_a_prediction_of_its_own(config: Config, predictions: MemoryPredictions) -> None:
    assert usual_memory(config, "SDXL", {}) is None
    assert await predictions.of_base("SDXL") == 1
    assert usual_memory(config, "SDXL", {}) == 1
    assert await predictions.of_base("tiny") is None
    # Without its VAE it is another base.
    other = config.model_copy(update={"models": ModelSettings(sources=config.models.sources)})
    assert usual_memory(other, "SDXL", {}) is None


async def test_what_failed_is_tried_again_with_other_files(
    config: Config, predictions: MemoryPredictions, tmp_path: Path
) -> None:
    (tmp_path / "broken").touch()
    assert await predictions.of_base("SDXL") is None
    (tmp_path / "broken").unlink()
    assert await predictions.of_base("SDXL") is None

    os.utime(tmp_path / "base.safetensors", (1, 1))

    assert await predictions.of_base("SDXL") == 2


async def test_what_failed_is_tried_again_after_a_while_and_who_asked_is_told(
    config: Config, predictions: MemoryPredictions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.predictions._FIRST_PAUSE_S", 0.0)
    spec = spec_from_preset("lora", dataset="/data", base=config.models.sources["SDXL"])
    told: list[str] = []

    async def when_known() -> None:
        told.append("known")

    (tmp_path / "broken").touch()
    await predictions.of(spec, when_known)
    await predictions.step()
    assert told == []
    (tmp_path / "broken").unlink()
    # By itself.
    await predictions.step()

    assert await predictions.of(spec) == 2
    assert told == ["known"]


async def test_an_answer_that_fails_does_not_end_the_service(
    config: Config, predictions: MemoryPredictions, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_from_preset("lora", dataset="/data", base=config.models.sources["SDXL"])

    async def when_known() -> None:
        raise OSError("no connection")

    await predictions.of(spec, when_known)
    await predictions.step()
    assert "no connection" in caplog.text
    assert await predictions.of(spec) == 1


async def test_what_cannot_be_predicted_is_not_tried_at_each_request(
    config: Config, predictions: MemoryPredictions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken").touch()
    for rank in (4, 8):
        changes = {"method": {"rank": rank}}
        spec = spec_from_preset("lora", dataset="/data", base=config.models.sources["SDXL"], changes=changes)
        assert await predictions.of(spec) is None
        await predictions.step()
    assert (tmp_path / "calls").read_text() == "x"
    assert "no operation of that name" in caplog.text
