"""Jobs beside each other: order, how sure it is, what differs, and samples of the same prompts and seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.trainer.studies.test_leaderboard import losses, run
from trainer.__main__ import main
from trainer.exchange.event_file import EVENTS_FILE
from trainer.exchange.job_dir import sample_folder, write_spec
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.job_comparison import JobComparison
from trainer.protocol.spec import make_spec
from trainer.studies.job_comparison_page import compare_jobs


def job(folder: Path, epoch_losses: list[float], ratio: float, **settings: Any) -> Path:
    """A job whose only epoch has these losses and this ratio, with a sample of one prompt."""
    folder.mkdir()
    run(folder, epoch_losses)
    spec = {"name": folder.name, "dataset": "/nowhere", "training": {"learning_rate": 1e-4}, **settings}
    write_spec(folder, make_spec(spec))
    samples = sample_folder(folder, 1)
    samples.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(samples / "0.png")
    events = [json.loads(line) for line in (folder / EVENTS_FILE).read_text().splitlines()]
    for event in events:
        if event["type"] == "epoch_ended":
            event["validation"]["ratio"] = ratio
    named = [
        {"path": f"samples/epoch-001/{number}.png", "prompt": prompt, "seed": 1}
        for number, prompt in enumerate(("a fox", "a prompt whose file is gone"))
    ]
    events.append({"type": "sampled", "seq": 99, "time": 0, "epoch": 1, "sheet": "sheet.png", "samples": named})
    (folder / EVENTS_FILE).write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_the_best_is_first_and_better_by_more_than_chance(tmp_path: Path) -> None:
    jobs = {
        "#1 slow": job(tmp_path / "slow", losses(0.5, 0.5), 0.8),
        "#2 fast": job(tmp_path / "fast", losses(0.4, 0.4), 0.6, training={"learning_rate": 1e-3}),
    }
    found = compare_jobs(jobs, tmp_path)

    assert found.order == (1, 0)
    assert found.verdict[0] == "#2 fast: 40 % better than the base model, after epoch 1."
    assert found.verdict[-1].startswith("#2 fast is better than #1 slow: on the same images its error is 20 to 20 %")
    assert [(each.name, each.values) for each in found.settings] == [("training.learning_rate", ("0.0001", "0.001"))]
    assert found.chart is not None
    assert found.samples is not None
    for picture in (found.chart, found.samples):
        with Image.open(tmp_path / picture) as image:
            assert image.width > 300


def test_a_difference_within_chance_is_called_so(tmp_path: Path) -> None:
    noisy = [loss * (1.3 if index % 3 else 0.6) for index, loss in enumerate(losses(0.5, 0.5))]
    jobs = {"a": job(tmp_path / "a", noisy, 0.7), "b": job(tmp_path / "b", losses(0.51, 0.51), 0.71)}
    assert compare_jobs(jobs, tmp_path).verdict[-1] == (
        "a is not clearly better than b: on the same images it may be chance."
    )


def test_numbers_of_other_images_or_bases_are_not_put_into_one_order(tmp_path: Path) -> None:
    one, other = job(tmp_path / "a", losses(0.5, 0.5), 0.7), job(tmp_path / "b", losses(0.4, 0.4), 0.6)
    (other / "validation" / "validation-triples.json").unlink()
    assert "not measured on the same images" in compare_jobs({"a": one, "b": other}, tmp_path).verdict[-1]
    base = job(tmp_path / "c", losses(0.4, 0.4), 0.6, base={"source": "other/base"})
    assert "different base models" in compare_jobs({"a": one, "c": base}, tmp_path).verdict[-1]


def test_jobs_without_common_prompts_or_epochs_have_no_pictures(tmp_path: Path) -> None:
    one, other = job(tmp_path / "a", losses(0.5, 0.5), 0.7), tmp_path / "b"
    other.mkdir()
    write_spec(other, make_spec({"name": "b", "dataset": "/nowhere"}))
    found = compare_jobs({"a": one, "b": other}, tmp_path)
    assert found.order == (0, 1)
    assert found.samples is None
    empty = compare_jobs({"b": other, "again": other}, tmp_path)
    assert empty.chart is None
    assert empty.verdict == ("None of them has ended an epoch yet.",)


def test_a_job_without_its_files_is_left_out_of_the_samples_and_named(tmp_path: Path) -> None:
    jobs = {name: job(tmp_path / name, losses(0.5, 0.5), 0.7) for name in ("a", "b", "c")}
    shutil.rmtree(jobs["b"] / "samples")
    found = compare_jobs(jobs, tmp_path)
    assert found.samples is not None
    assert "From left to right: a (30 % better) and c (30 % better)." in found.samples_alt
    assert found.verdict[-1] == "There are no images of the same prompts and seeds from b."


def test_the_command_prints_one_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = job(tmp_path / "a", losses(0.5, 0.5), 0.7), job(tmp_path / "b", losses(0.4, 0.4), 0.6)
    out = tmp_path / "new" / "out"
    assert main(["compare-jobs", f"#1 a=b={one}", str(other), "--out", str(out)]) == 0
    found = JobComparison.model_validate_json(capsys.readouterr().out)
    assert found.verdict[1].startswith("#1 a=b: ")
    assert main(["compare-jobs", str(one), "--out", str(out)]) == EXIT_REFUSED
    assert main(["compare-jobs", str(one), str(tmp_path / "no"), "--out", str(out)]) == EXIT_REFUSED
