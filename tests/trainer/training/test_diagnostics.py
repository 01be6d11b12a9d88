"""Diagnostics find planted copies, the drift of unrelated prompts, and images that are never learned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.golden import check_golden
from tests.trainer.job_events import events_of
from tests.trainer.tasks.random_embedders import make_clip
from trainer.exchange.dataset_dir import read_report
from trainer.exchange.job_dir import read_spec, write_spec
from trainer.protocol.events import EXIT_FINISHED, EXIT_STOPPED, Finished, Warned
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Split
from trainer.protocol.run_options import RunOptions
from trainer.report.insights import Forgetting, NearImage, read_insight
from trainer.training import finale
from trainer.training.diagnostics import (
    describe_forgetting,
    describe_memorization,
    has_leaked,
    measured_forgetting,
)
from trainer.training.image_history import ImageCurve, ImageHistory, read_history
from trainer.training.run import StopRequest, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHANGES: dict[str, Any] = {
    "training": {"epochs": 1, "learning_rate": 5e-3, "batch_size": 4, "micro_batch_size": 4, "repeats": 1},
    "method": {"rank": 4},
    "validation": {"timesteps": 2, "draws": 1, "train_images": 32},
    "samples": {"steps": 2, "prompts": ["a red egg", "a blue egg"], "unrelated_prompts": ["a lake", "a bowl"]},
}


@pytest.fixture(scope="module")
def finished(dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job_dir = tmp_path_factory.mktemp("insight") / "job"
    write_spec(job_dir, spec_from_preset("lora", dataset=str(dataset), base=str(random_base), changes=CHANGES))
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
    return job_dir


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the job just before its end, to be run again without the export, which takes half of the time."""
    monkeypatch.setattr(finale, "export_best", lambda session, sample: None)
    job_dir = tmp_path / "job"
    shutil.copytree(finished, job_dir)
    path = job_dir / "events.jsonl"
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if '"type":"finished"' not in line]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    (job_dir / "insight.json").unlink()
    return job_dir


def warnings(job_dir: Path, kind: str) -> list[str]:
    return [event.message for event in events_of(job_dir, Warned) if event.kind == kind]


def change_samples(job_dir: Path, **changes: object) -> None:
    spec = read_spec(job_dir)
    write_spec(job_dir, spec.model_copy(update={"samples": spec.samples.model_copy(update=changes)}))


def test_a_job_ends_with_diagnostics_and_a_report_page(finished: Path) -> None:
    insight = read_insight(finished)
    (last,) = events_of(finished, Finished)

    assert last.report == "report.html"
    assert (finished / "report.html").is_file()
    assert insight.memorization is not None
    assert insight.forgetting is not None
    assert len(insight.memorization.images) == 4
    assert insight.forgetting.moved_features > 0
    assert insight.forgetting.another_seed is not None
    for path in ("output/nearest.png", "output/unrelated.png", insight.memorization.images[0].thumbnail):
        with Image.open(finished / path) as opened:
            opened.load()
    assert warnings(finished, "diagnostics_failed") == []


def test_both_models_draw_the_unrelated_prompts(finished: Path) -> None:
    folder = finished / "samples" / "unrelated"
    drawn = {side: sorted(path.name for path in (folder / side).iterdir()) for side in ("base", "best")}

    assert drawn["base"] == drawn["best"] == ["0.png", "1.png", "2.png", "3.png"]
    assert (folder / "base" / "0.png").read_bytes() != (folder / "best" / "0.png").read_bytes()


def test_a_copy_among_the_samples_and_an_image_that_is_never_learned_are_found(unfinished: Path, dataset: Path) -> None:
    """In one run: neither depends on the other."""
    report = read_report(dataset)
    number, planted = next((n, i) for n, i in enumerate(report.images, 1) if i.split is Split.TRAIN and i.path)
    with Image.open(dataset / str(planted.path)) as opened:
        opened.convert("RGB").resize((64, 64)).save(unfinished / "samples" / "epoch-001" / "2.png")
    path = unfinished / "validation" / "images.json"
    hashes = [pixels for pixels, one in read_history(path).images.items() if one.split is Split.TRAIN]
    falling = {1: 0.5, 2: 0.42, 3: 0.41, 4: 0.4, 5: 0.4}
    flat = dict.fromkeys(range(1, 6), 1.0)
    curves = {
        pixels: ImageCurve(name=f"{n}.png", split=Split.TRAIN, ratios=falling if n else flat)
        for n, pixels in enumerate(hashes)
    }
    ImageHistory(images=curves).write(path)

    assert run(RunOptions(job_dir=unfinished)) == EXIT_FINISHED

    memorization = read_insight(unfinished).memorization
    assert memorization is not None
    assert [each.is_same for each in memorization.images] == [False, False, True, False]
    assert memorization.images[2].number == number
    assert memorization.images[2].name == planted.source
    assert warnings(unfinished, "memorized") == [memorization.sentence]
    (image,) = read_insight(unfinished).never_learned
    assert image.ratios == flat
    assert (unfinished / image.thumbnail).is_file()
    (sentence,) = warnings(unfinished, "never_learned")
    assert "0.png" in sentence
    assert image.thumbnail in (unfinished / "report.html").read_text(encoding="utf-8")


def test_samples_that_moved_away_cause_a_warning_and_a_clip_model_measures_the_similarity_to_prompts(
    finished: Path, unfinished: Path, dataset: Path, tmp_path: Path
) -> None:
    """In one run: neither depends on the other."""
    change_samples(unfinished, similarity_model=str(make_clip(tmp_path / "clip")))
    train = [image for image in read_report(dataset).images if image.split is Split.TRAIN]
    for number, image in enumerate(train[:4]):
        with Image.open(dataset / str(image.path)) as opened:
            opened.convert("RGB").resize((64, 64)).save(unfinished / "samples" / "epoch-000" / f"{number}.png")

    assert run(RunOptions(job_dir=unfinished)) == EXIT_FINISHED

    (last,) = events_of(unfinished, Finished)
    assert last.best_ratio < 1
    assert len(warnings(unfinished, "moved_away")) == 1
    assert warnings(finished, "moved_away") == []
    insight = read_insight(unfinished)
    assert insight.prompt_similarity is not None
    assert insight.prompt_similarity.before != insight.prompt_similarity.after
    assert insight.forgetting is not None
    assert insight.forgetting.prompt_similarity is not None
    assert insight.memorization is not None
    assert all(one.similarity is not None and -1 <= one.similarity <= 1.001 for one in insight.memorization.images)


def test_a_missing_similarity_model_and_a_failing_diagnosis_cause_warnings_and_the_rest_is_diagnosed(
    unfinished: Path,
) -> None:
    change_samples(unfinished, similarity_model="/nowhere/clip")
    (unfinished / "validation" / "images.json").write_text("{torn", encoding="utf-8")

    assert run(RunOptions(job_dir=unfinished)) == EXIT_FINISHED

    model, history = sorted(warnings(unfinished, "diagnostics_failed"), key=lambda told: "/nowhere/clip" not in told)
    assert "/nowhere/clip" in model
    assert "/nowhere/clip" not in history
    assert read_insight(unfinished).memorization is not None


def test_a_stop_request_during_diagnostics_is_no_failure(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.training import diagnostics

    def stopped(*given: Any) -> Any:
        request = StopRequest()
        request.is_set = True
        request.check()

    monkeypatch.setattr(diagnostics, "_open_album", stopped)

    assert run(RunOptions(job_dir=unfinished)) == EXIT_STOPPED
    assert warnings(unfinished, "diagnostics_failed") == []


def near(number: int, *, is_same: bool = False, base_is_same: bool = False, distance: float = 1.0) -> NearImage:
    return NearImage(
        prompt="p",
        sample="s.png",
        thumbnail="t.jpg",
        number=number,
        name="n",
        is_same=is_same,
        is_mirrored=False,
        difference=1.0,
        distance=distance,
        base_is_same=base_is_same,
        base_distance=1.5,
    )


def test_the_sentences_as_users_read_them() -> None:
    memorized = {
        "clean": [near(1), near(2, distance=1.4)],
        "clean, not nearer": [near(1, distance=1.4)],
        "clean, farther": [near(1, distance=1.8)],
        "one copy": [near(7, is_same=True), near(4)],
        "copies": [near(7, is_same=True), near(7, is_same=True), near(3, is_same=True), near(4)],
        "copied before": [near(7, is_same=True, base_is_same=True)],
    }
    lines = [f"{name}: {describe_memorization(found)}" for name, found in memorized.items()]
    forgetting = Forgetting(
        sentence="",
        sheet="s.png",
        prompts=("p",),
        moved_pixels=0.12,
        moved_features=0.1,
        another_seed=1.0,
        distance_before=2.0,
        distance_after=1.9,
    )
    drifts: dict[str, dict[str, object]] = {
        "unchanged": {},
        "changed": {"moved_features": 0.6},
        "different": {"moved_features": 1.1},
        "no other seed": {"another_seed": None},
        "towards the training images": {"distance_after": 1.0},
    }
    found = {name: forgetting.model_copy(update=each) for name, each in drifts.items()}
    lines += [f"{name}: {describe_forgetting(each)}" for name, each in found.items()]
    lines += [f"{name}, measured: {measured_forgetting(each)}" for name, each in found.items()]
    assert [name for name, each in found.items() if has_leaked(each)] == ["towards the training images"]

    check_golden(Path(__file__).parent / "golden" / "diagnostics.txt", "\n".join(lines))
