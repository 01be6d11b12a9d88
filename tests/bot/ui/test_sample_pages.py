"""The card of a sampling in each state, its receipt, and a grid of the largest size."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from bot.queue.domain.job import Job, State
from bot.queue.domain.job_progress import Progress
from bot.queue.store.sample_votes import Ballot
from bot.ui.job_context import StartForecast
from bot.ui.job_posts import card_message
from bot.ui.layout import MAX_BYTES, MAX_CHARACTERS, MAX_PARTS, weight
from bot.ui.sample_pages import drawn_post, images_messages, sampling_failed_post, sampling_receipt
from tests.bot.ui.examples import NOW, context, job
from tests.bot.ui.rendering import check_messages, file_names, verbs
from trainer.protocol.events import Failed, FailureKind, SamplingFinished, SamplingSheet
from trainer.protocol.run_options import JobKind
from trainer.protocol.sampling import make_sampling_spec
from trainer.protocol.text import speaking

GOLDEN = Path(__file__).parent / "golden"


def sampling(**changes: Any) -> Job:
    epochs = [{"kind": "job", "label": f"epoch {n}", "job_dir": "/jobs/7", "epoch": n} for n in (2, 4)]
    spec = make_sampling_spec(
        {
            "models": [{"kind": "base", "label": "base model"}, *epochs],
            "prompts": [{"prompt": "a zkz fox", "negative": "text"}, {"prompt": "a zkz fox in the snow"}],
            "seeds": [7],
            "strengths": [0.7, 1.0],
            "width": 512,
            "height": 768,
        }
    )
    known = {"kind": JobKind.SAMPLE, "source_id": 7, "spec_json": spec.model_dump_json(), "progress": Progress()}
    return job(**{**known, **changes})


def finished(sheets: int = 1) -> SamplingFinished:
    drawn = tuple(SamplingSheet(path=f"grid-{n}.png", alt="A grid of ten images.") for n in range(1, sheets + 1))
    return SamplingFinished(seq=9, time=0, images=10, sheets=drawn, seconds=42)


def failed(kind: FailureKind) -> Failed:
    return Failed(seq=9, time=0, kind=kind, message="The base model is not there.", hint="Add it again.")


def with_images(tmp_path: Path) -> Path:
    folder = tmp_path / "jobs" / "7"
    for path in ("samples/0002.png", "samples/0003.png", "grid-1.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return folder


def test_the_card_in_each_state(tmp_path: Path) -> None:
    folder = with_images(tmp_path)
    drawing = Progress(images=10, drawn=4, newest_cells=(2, 3))
    waits = {"position": 2, "slots": 1, "forecast": StartForecast(starts_at=NOW + timedelta(hours=1), seconds=90)}
    cards = {
        "waiting for a place": card_message(sampling(state=State.QUEUED, attempt=0), context(folder, **waits)),
        "waiting for another of the same person": card_message(
            sampling(state=State.QUEUED, attempt=0),
            context(folder, **{**waits, "owner_runs": 1, "owner_may_run": 1, "free_slots": 1}),
        ),
        "loading": card_message(sampling(state=State.PREPARING), context(folder)),
        "drawing": card_message(sampling(state=State.RUNNING, progress=drawing, started_at=NOW), context(folder)),
        "done": card_message(
            sampling(state=State.SUCCEEDED, progress=drawing, terminal_event=finished()),
            context(folder, votes={Ballot.MODEL: {1: 2, 2: 1}, Ballot.IMAGE: {0: 1, 3: 1}}),
        ),
        "done, one sheet is too large": card_message(
            sampling(state=State.SUCCEEDED, progress=drawing, terminal_event=finished(2)), context(folder)
        ),
        "cancelled": card_message(sampling(state=State.CANCELLED, progress=drawing, stopped_by=7), context(folder)),
        "failed": card_message(
            sampling(state=State.FAILED, terminal_event=failed(FailureKind.MISSING_MODEL)), context(folder)
        ),
        "receipt": sampling_receipt(sampling(state=State.QUEUED, attempt=0), context(folder, **waits)),
        "drawn": drawn_post(sampling(), "https://discord.com/channels/1/2/3"),
        "failed post": sampling_failed_post(sampling(), failed(FailureKind.MISSING_MODEL), ""),
    }
    check_messages(GOLDEN / "sample_cards.txt", cards, tmp_path)
    assert file_names(cards["drawing"]) == ["42-3.png", "42-4.png"]
    assert verbs(cards["failed"]) == [], "the same would fail again"


def test_all_images_are_handed_over_ten_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / "7" / "samples"
    folder.mkdir(parents=True)
    spec = make_sampling_spec(
        {"models": [{"kind": "base"}], "prompts": [{"prompt": "a"}, {"prompt": "b"}], "seeds": list(range(7))}
    )
    for cell in spec.cells[:12]:
        (folder.parent / cell.path).write_bytes(b"x")

    messages = images_messages(sampling(spec_json=spec.model_dump_json()), context(folder.parent))

    assert [len(file_names(message)) for message in messages] == [10, 2], "two are not drawn yet"


def test_the_largest_grid_is_within_discords_limits(tmp_path: Path) -> None:
    settings = {
        "models": [
            {"kind": "job", "label": f"第 {n} 轮" + "画" * 50, "job_dir": "/j", "epoch": n} for n in range(1, 17)
        ],
        "prompts": [{"prompt": f"{n}" + "狐" * 490, "negative": "字" * 500} for n in range(16)],
        "seeds": [2**31 - 1],
    }
    largest = sampling(
        spec_json=json.dumps(settings),
        name="x" * 40,
        note="备" * 300,
        state=State.SUCCEEDED,
        terminal_event=finished(10),
    )
    folder = tmp_path / "jobs" / "7"
    folder.mkdir(parents=True)
    for name in (*(f"grid-{number}.png" for number in range(1, 11)), *(cell.path for cell in largest.sampling.cells)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    votes = {Ballot.MODEL: dict.fromkeys(range(16), 1), Ballot.IMAGE: dict.fromkeys(range(256), 1)}
    for language in ("en", "zh_CN"):
        with speaking(language):
            for message in (
                card_message(
                    largest,
                    context(folder, votes=votes),
                ),
                sampling_receipt(largest, context(folder)),
                *images_messages(largest, context(folder, votes={Ballot.IMAGE: {0: 3}})),
            ):
                parts, characters, size = weight(message.layout)
                assert parts <= MAX_PARTS
                assert characters <= MAX_CHARACTERS
                assert size <= MAX_BYTES
