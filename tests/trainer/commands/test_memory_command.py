"""`memory` and `new` tell how much memory a training needs, before it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.random_base import make_random_sd3, store_in_half
from trainer.__main__ import main
from trainer.exchange.job_dir import read_spec, write_spec
from trainer.exchange.memory_predictions import read_prediction
from trainer.protocol.events import EXIT_FINISHED, EXIT_REFUSED
from trainer.protocol.presets import spec_from_preset
from trainer.training import batch_size_finder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 3, which has the fewest layers: the predictions of other families are in test_memory_prediction.py."""
    return store_in_half(make_random_sd3(tmp_path_factory.mktemp("base") / "sd3"))


def test_a_job_is_predicted_once_and_new_says_it(
    base: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, kept = tmp_path / "job", tmp_path / "kept"
    write_spec(job, spec_from_preset("lora", dataset=str(dataset), base=str(base)))
    assert main(["memory", str(job), "--keep", str(kept)]) == EXIT_FINISHED
    memory = int(capsys.readouterr().out)
    # A small model: the libraries are most of it.
    assert 0 < memory - batch_size_finder._OVERHEAD < 1e9
    assert read_prediction(kept, read_spec(job)) == memory

    monkeypatch.setattr(batch_size_finder, "predict_job", lambda _spec: 9 * 2**30)
    assert main(["memory", str(job), "--keep", str(kept)]) == EXIT_FINISHED
    assert int(capsys.readouterr().out) == memory
    assert (
        main(["new", "--dataset", str(dataset), "--base", str(base), "--out", str(tmp_path / "new")]) == EXIT_FINISHED
    )
    captured = capsys.readouterr()
    assert "9.0 GiB" in captured.err
    # A script reads where the spec is.
    assert Path(captured.out.strip()).is_file()


def test_the_toy_model_needs_none_that_matters(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job"
    write_spec(job, spec_from_preset("lora", dataset=str(dataset), base="tiny"))
    assert main(["memory", str(job)]) == EXIT_REFUSED
    assert "toy model" in capsys.readouterr().err
