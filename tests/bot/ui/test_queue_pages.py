"""The board of the queue, lists of jobs, the history of a job, and the audit."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.db.audit import AuditEntry
from bot.queue.domain.job import EndReason, EndReasonKind, Job, Priority, State
from bot.queue.domain.job_progress import Progress
from bot.queue.planning.forecast import Forecast
from bot.queue.store.history import AttemptRecord
from bot.queue.store.queue_control import PauseKind, QueuePause
from bot.queue.store.slots import Slot
from bot.ui.queue_pages import BoardSnapshot, audit_page, entry_line, history_page, job_list, queue_board
from tests.bot.ui.examples import NOW, job
from tests.bot.ui.rendering import check_messages, ids, text_of
from tests.bot.ui.test_job_messages import queued

GOLDEN = Path(__file__).parent / "golden"
PAUSE = QueuePause(kind=PauseKind.PAUSE, by=7, at=NOW, why="driver update")
LATER = NOW + timedelta(minutes=35)
#: What is written into the audit.
VERBS = {
    *(
        "begin",
        "bump",
        "cancel",
        "claim",
        "extend",
        "keep_best",
        "note",
        "pause",
        "pin",
        "requeue",
        "resume",
        "retry",
    ),
    *("settle", "share", "submit", "unpin", "unshare", "delete files", "limit role", "queue drain", "queue pause"),
    *("queue resume", "slot off", "slot on"),
}


def board(**changes: Any) -> BoardSnapshot:
    return BoardSnapshot(**{"now": NOW, "jobs": [], **changes})


def forecast(job_id: int, starts_at: float) -> Forecast:
    return Forecast(job_id=job_id, starts_at=starts_at, ends_at=None, seconds=None)


def job_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if "**#" in line]


def test_the_board() -> None:
    slots = [
        Slot(id="a", device="0", name="GPU 0 · RTX 4090", job_id=1),
        Slot(id="b", device="1", name="GPU 1 · RTX 4090"),
        Slot(id="c", device="2", name="GPU 2 · RTX 4090", is_enabled=False),
    ]
    jobs: list[Job] = [
        job(id=1, slots=("GPU 0 · RTX 4090",)),
        queued(id=2, priority=Priority.HIGH),
        queued(id=3, run_after=LATER),
        job(id=4, state=State.PAUSED),
    ]
    another_day = NOW + timedelta(days=2)
    free, taken = slots[1], dataclasses.replace(slots[1], job_id=9)
    boards = {
        "with everything": board(
            jobs=jobs,
            positions={2: 5, 3: 6},
            forecasts={2: forecast(2, LATER.timestamp())},
            slots=slots,
            queue_pause=PAUSE,
            why_closed="The training window opens Mon 20:00 (UTC).",
        ),
        "another day": board(
            jobs=[queued(id=1, run_after=another_day), queued(id=2)],
            positions={1: 1, 2: 2},
            forecasts={2: forecast(2, another_day.timestamp())},
        ),
        "requeued": board(jobs=[job(state=State.QUEUED)], positions={42: 4}),
        "empty": board(slots=[free]),
        "empty and paused": board(slots=[free], queue_pause=PAUSE),
        "empty and busy with other servers": board(slots=[taken]),
    }
    check_messages(GOLDEN / "queue_board.txt", {name: queue_board(each) for name, each in boards.items()})


def test_a_full_board_is_cut_between_jobs() -> None:
    name = "NVIDIA RTX 6000 Ada Generation"
    slots = [Slot(id=str(n), device=str(n), name=f"GPU {n} · {name}", job_id=n) for n in range(9)]
    jobs = [job(id=n, slots=(f"GPU {n} · {name}",)) for n in range(9)]
    jobs += [queued(id=n) for n in range(10, 300)] + [job(id=n, state=State.PAUSED) for n in range(300, 340)]
    positions = {n: n for n in range(10, 300)}

    text = text_of(
        queue_board(board(jobs=jobs, positions=positions, slots=slots, queue_pause=PAUSE, why_closed="x" * 250))
    )

    assert all(f"({count})" in text for count in (9, 290, 40))
    assert not [line for line in job_lines(text) if line.endswith("…")]


def test_jobs_that_do_not_fit_on_their_page_are_counted() -> None:
    long = [queued(id=10**12 + number, name="x" * 90, run_after=LATER, priority=Priority.HIGH) for number in range(15)]
    text = text_of(queue_board(board(jobs=long, counts={State.QUEUED: 2000})))

    shown = job_lines(text)
    assert "(2000)" in text
    assert f"… and {15 - len(shown)} more" in text
    assert all("<@555>" in line for line in shown)


def test_a_study_shows_its_runs_and_their_places() -> None:
    study = job(id=10, study='{"kind": "kfold", "folds": 5}', gpus=0, progress=Progress())
    runs = [
        queued(id=13, parent_id=10, child_name="fold-3"),
        job(id=11, parent_id=10, child_name="fold-1"),
        queued(id=12, parent_id=10, child_name="fold-2"),
    ]
    waiting = queued(id=14)
    snapshot = board(jobs=[study, waiting], runs={10: runs}, positions={12: 1, 13: 2, 14: 3})
    check_messages(GOLDEN / "queue_study.txt", {"board": queue_board(snapshot)})


def test_a_long_queue_has_pages() -> None:
    counts, jobs = {State.QUEUED: 40, State.RUNNING: 1}, [queued(id=n) for n in range(1, 16)]
    pages = [queue_board(board(jobs=[job(id=99), *jobs], counts=counts, page=page)) for page in range(3)]

    assert [ids(page) for page in pages] == [
        ["job:1:queue_page", "job:0:queue_page"],
        ["job:0:queue_page", "job:2:queue_page", "job:1:queue_page"],
        ["job:1:queue_page", "job:2:queue_page"],
    ]
    assert ["#99" in text_of(page) for page in pages] == [True, False, False]


@pytest.mark.parametrize(
    ("verb", "after", "why"),
    [(verb, None, "") for verb in sorted(VERBS - {"settle", "bump"})]
    + [("settle", state, "") for state in State]
    + [("bump", "queued", "HIGH"), ("cancel", "stopping", "too {slow}"), ("un{known}", None, None)],
)
def test_each_verb_of_the_audit_is_a_sentence(verb: str, after: str | None, why: str | None) -> None:
    for names_job in (True, False):
        line = entry_line(
            AuditEntry(at=NOW, job_id=42, actor_id=7, verb=verb, before="running", after=after, why=why),
            names_job=names_job,
        )
        assert "_" not in line.replace("keep_best", "")
        assert " → " not in line
        assert ("#42" in line) == (
            names_job and not verb.startswith("queue") and "limit" not in verb and "slot" not in verb
        )


def test_a_list_of_jobs() -> None:
    jobs = [
        job(id=1, state=State.FAILED, ended_at=LATER),
        job(id=2),
        queued(id=3, run_after=LATER),
        queued(id=4, run_after=NOW - timedelta(minutes=1)),
    ]
    check_messages(
        GOLDEN / "job_list.txt", {"newest": job_list("Newest", jobs, NOW), "empty": job_list("Newest", [], NOW)}
    )


def test_history_and_audit() -> None:
    entry = AuditEntry(at=NOW, job_id=42, actor_id=7, verb="cancel", before="running", after="stopping", why="too slow")
    by_bot = AuditEntry(at=NOW, job_id=None, actor_id=None, verb="queue resume", before=None, after=None, why=None)
    lost = EndReason(kind=EndReasonKind.PROCESS_DIED, attempt=1, max_attempts=3, epoch=4, kept_epoch=3, is_retried=True)
    attempts = [
        AttemptRecord(number=1, started_at=NOW, ended_at=LATER, slots=("GPU 0",), outcome="queued", reason=lost),
        AttemptRecord(number=2, started_at=LATER, ended_at=None, slots=("GPU 1",), outcome=None, reason=None),
    ]
    pages = {
        "audit": audit_page("Audit", [entry, by_bot]),
        "history": history_page(job(), attempts, [entry]),
        "history of a job that never started": history_page(queued(), [], []),
    }
    check_messages(GOLDEN / "history.txt", pages)
