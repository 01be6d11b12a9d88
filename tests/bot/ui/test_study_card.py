"""The card of a study with its runs, and the post of its result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bot.queue.domain.job import Job, State
from bot.ui.job_posts import card_message
from bot.ui.study_card import run_lines, study_files, study_post
from tests.bot.ui.examples import OWNER, context, job, progress
from tests.bot.ui.rendering import check_messages, file_names, text_of, verbs
from trainer.protocol.study import ChildState, CompareRequest, KfoldRequest, StudyRequest, StudyRow, StudyStep

GOLDEN = Path(__file__).parent / "golden"


def study(request: StudyRequest, **changes: Any) -> Job:
    empty = progress(0, step=None, base=None)
    return job(**{"gpus": 0, "study": request.model_dump_json(), "progress": empty, **changes})


def row(name: str, state: ChildState = ChildState.OPEN, **changes: Any) -> StudyRow:
    return StudyRow(**{"name": name, "folder": name, "state": state, "epochs": 3, **changes})


def child(name: str, **changes: Any) -> Job:
    return job(**{"id": 50, "parent_id": 42, "child_name": name, **changes})


def test_runs_follow_the_ranking_of_the_study() -> None:
    table = (row("b", label="rank 8"), row("a", ChildState.ENDED_EARLY, label="rank 32"))
    children = [child("a", state=State.PAUSED), child("b"), child("c", state=State.QUEUED)]

    lines = run_lines(children, StudyStep(table=table, page="p", report="r"))

    assert [line.split("**")[1] for line in lines] == ["b", "a", "c"]
    check_messages(GOLDEN / "study_runs.txt", {"runs": "\n".join(lines)})


def test_the_card_of_a_study(tmp_path: Path) -> None:
    parent = study(KfoldRequest(folds=3), state=State.RUNNING)
    children = (child("fold-1", state=State.SUCCEEDED), child("fold-2"), child("fold-3", state=State.QUEUED))
    queued = dataclasses.replace(parent, state=State.QUEUED, attempt=0)
    cards = {
        "running": card_message(parent, context(tmp_path, children=children)),
        "starting": card_message(parent, context(tmp_path)),
        "queued": card_message(queued, context(tmp_path, position=1)),
        "paused": card_message(dataclasses.replace(parent, state=State.PAUSED, stopped_by=7), context(tmp_path)),
    }
    check_messages(GOLDEN / "study_cards.txt", cards, tmp_path)
    assert verbs(cards["running"]) == ["details", "watch", "stop"]


def test_the_result_of_a_study_carries_its_samples_its_chart_and_its_model(tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / "7"
    for path in ("study/chart.png", "samples/runs.png", "final/output/kohya.safetensors"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(b"x")
    step = StudyStep(
        is_over=True,
        verdict=("Rank 8 is the best.", "Rank 32 overfits."),
        table=(row("a", ChildState.FINISHED, test_ratio=0.9),),
        page="study/page.html",
        report="study/report.md",
        chart="study/chart.png",
        chart_alt="curves",
        samples="samples/runs.png",
        samples_alt="From left to right: rank 8 (best) and base model.",
        samples_notes=("The same prompts and seeds.", "The best 3 of 4 are shown."),
        result="final",
    )
    parent = study(CompareRequest(vary=("method.rank=8,32",)), state=State.SUCCEEDED)

    about = context(folder, children=(child("a", state=State.SUCCEEDED),), step=step)
    post = study_post(parent, about)

    assert file_names(post) == ["samples.png", "study-3.png", "fox-lora-kohya.safetensors"]
    assert post.mentions == (OWNER,)
    assert " · rank " not in text_of(post), "the rank varies from run to run"
    check_messages(GOLDEN / "study_post.txt", {"comparison": post}, folder)

    assert file_names(study_files(parent, about)[0]) == ["fox-lora-kohya.safetensors", "samples.png"]

    of_others = dataclasses.replace(parent, private_to=(OWNER + 1,))
    assert "The same prompts" not in text_of(study_post(of_others, about)), "its pictures are removed from the post"

    (folder / "samples" / "runs.png").unlink()
    without = study_post(parent, about)
    assert file_names(without) == ["study-3.png", "fox-lora-kohya.safetensors"]
    assert "The same prompts" not in text_of(without), "nothing is said of a picture that is not there"
