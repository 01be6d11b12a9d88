"""The samples of a study's runs beside each other: which are shown, in which order, and what is said of the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.golden import check_golden
from tests.trainer.studies.fake_queue import FakeQueue, request_study
from tests.trainer.studies.study_helpers import RATES
from trainer.exchange.event_file import EVENTS_FILE
from trainer.exchange.job_dir import read_spec, sample_folder
from trainer.protocol.events import Finished, Sample, Sampled
from trainer.protocol.settings import TaskKind
from trainer.protocol.study import ChildGoal, StudyStep
from trainer.studies.run_history import read_child, read_history
from trainer.studies.run_samples import final_run_samples

GOLDEN = Path(__file__).parent / "golden"
#: Best first: the rates 3e-4, 2.9e-4, 1e-4 and 1e-3 of `RATES`.
COLORS = {"c03": (200, 30, 30), "c02": (30, 160, 30), "c01": (160, 30, 160), "c04": (30, 60, 200)}
BASE, OTHER = (90, 90, 90), (255, 255, 0)
PROMPTS = (("a fox", 1), ("a fox", 2), ("a castle", 3))
#: The side of a tile and of the gap between two.
TILE, GAP = 256, 12


def draw(run: Path, color: tuple[int, int, int]) -> None:
    """Let a run have drawn the base, its best epoch, and an epoch that is not the best."""
    best = read_history(run).best
    assert best is not None
    for epoch, drawn in ((0, BASE), (best.epoch, color), (best.epoch + 1, OTHER)):
        folder = sample_folder(run, epoch)
        folder.mkdir(parents=True)
        for number in range(len(PROMPTS)):
            Image.new("RGB", (64, 64), drawn).save(folder / f"{number}.png")
    samples = tuple(
        Sample(path=f"samples/epoch-000/{number}.png", prompt=prompt, seed=seed)
        for number, (prompt, seed) in enumerate(PROMPTS)
    )
    # As the trainer emits it: before the first epoch, and none for what it draws at the end.
    event = Sampled(seq=1, time=0, epoch=0, samples=samples, sheet="samples/epoch-000/sheet.png")
    file = run / EVENTS_FILE
    file.write_text(event.model_dump_json() + "\n" + file.read_text(encoding="utf-8"), encoding="utf-8")


def compared(folder: Path, *, keep_one_in: int | None = None) -> Path:
    """A comparison whose four candidates have ended and drawn."""
    job = request_study(folder, "compare", vary=[RATES], keep_one_in=keep_one_in)
    FakeQueue(job).run_all()
    for name, color in COLORS.items():
        if isinstance(read_history(job / "candidates" / name).terminal_event, Finished):
            draw(job / "candidates" / name, color)
    return job


def columns(job: Path, step: StudyStep) -> list[object]:
    """The color in the middle of the lowest tile of each column."""
    assert step.samples is not None
    with Image.open(job / step.samples) as sheet:
        lefts = range(GAP, sheet.width - GAP, TILE + GAP)
        return [sheet.getpixel((left + TILE // 2, sheet.height - TILE // 2)) for left in lefts]


def said(step: StudyStep) -> str:
    return "\n".join((step.samples_alt, *step.samples_notes))


def test_the_best_three_candidates_stand_beside_the_base_each_at_its_best_epoch(tmp_path: Path) -> None:
    job = compared(tmp_path)
    step = FakeQueue(job).step()
    assert columns(job, step) == [COLORS["c03"], COLORS["c02"], COLORS["c01"], BASE]
    check_golden(GOLDEN / "samples_best_three.txt", said(step))
    report, page = ((job / path).read_text(encoding="utf-8") for path in (step.report, step.page))
    assert "](samples/runs.png)" in report
    assert 'src="samples/runs.png"' in page
    for note in step.samples_notes:
        assert note in report
        assert note in page


def test_candidates_that_ended_early_are_not_shown_and_that_is_said(tmp_path: Path) -> None:
    job = compared(tmp_path, keep_one_in=2)
    step = FakeQueue(job).step()
    assert columns(job, step) == [COLORS["c03"], COLORS["c02"], BASE]
    check_golden(GOLDEN / "samples_ended_early.txt", said(step))


@pytest.mark.parametrize("damage", ["deleted", "damaged", "other prompts"])
def test_a_candidate_without_its_images_is_left_out_and_named(tmp_path: Path, damage: str) -> None:
    job = compared(tmp_path)
    run = job / "candidates" / "c02"
    match damage:
        case "deleted":
            shutil.rmtree(run / "samples")
        case "damaged":
            for file in run.glob("samples/*/*.png"):
                file.write_bytes(file.read_bytes()[:40])
        case _:
            events = (run / EVENTS_FILE).read_text(encoding="utf-8")
            (run / EVENTS_FILE).write_text(events.replace("a fox", "a cat").replace("a castle", "a hut"))
    step = FakeQueue(job).step()
    assert columns(job, step) == [COLORS["c03"], COLORS["c01"], COLORS["c04"], BASE]
    check_golden(GOLDEN / "samples_without_one.txt", said(step))


def test_a_study_whose_images_are_all_deleted_has_no_sheet_and_says_so(tmp_path: Path) -> None:
    job = compared(tmp_path)
    for folder in job.glob("candidates/*/samples"):
        shutil.rmtree(folder)
    step = FakeQueue(job).step()
    assert (step.samples, step.samples_alt) == (None, "")
    assert step.samples_notes == ("There are no images to show beside each other: the files are missing.",)
    assert step.samples_notes[0] in (job / step.report).read_text(encoding="utf-8")


def test_the_final_run_of_a_cross_validation_stands_beside_the_base(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=2)
    FakeQueue(job).run_all()
    draw(job / "final", COLORS["c01"])
    step = FakeQueue(job).step()
    assert columns(job, step) == [COLORS["c01"], BASE]
    check_golden(GOLDEN / "samples_kfold.txt", said(step))


def test_a_classifier_has_no_samples(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=2)
    FakeQueue(job).run_all()
    draw(job / "final", COLORS["c01"])
    final = read_child(job, ChildGoal(name="final", folder="final"), ended={})
    spec = read_spec(job)
    assert final_run_samples(job, spec, final) is not None
    assert final_run_samples(job, spec.model_copy(update={"task": TaskKind.CLASSIFICATION}), final) is None
