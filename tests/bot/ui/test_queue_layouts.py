"""The queue in words: why somebody waits, what runs where, what happened, and what a study has come to."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.queue.domain.job import Job, Priority, State, StopIntent
from bot.queue.domain.verbs import Verb, makes_sense
from bot.queue.planning.forecast import Forecast as Coming
from bot.queue.planning.retention import Deletion, Plan, Totals, What
from bot.queue.store.attempts import Attempt
from bot.queue.store.audit import Entry
from bot.queue.store.limits import RoleLimit
from bot.queue.store.queue_control import Halt, HaltKind
from bot.queue.store.slots import Slot
from bot.ui.admin import bumped_words, confirm_page, halted_words, limits_page, plan_digest, slots_page, storage_page
from bot.ui.answers import answer
from bot.ui.audit import audit_page, history
from bot.ui.board import Scene, board, job_list
from bot.ui.card import card
from bot.ui.notices import card_of
from bot.ui.standing import Forecast, Standing
from bot.ui.study import study_lines, study_post
from tests.bot.ui.examples import NOW, job, progress
from tests.bot.ui.test_layouts import labels, text_of
from trainer.protocol.study import ChildState, CompareOrder, KfoldOrder, StudyRow, StudyStep

HALT = Halt(kind=HaltKind.PAUSE, by=7, at=NOW, why="driver update")
LATER = NOW + timedelta(minutes=35)
LATER_T = f"<t:{int(LATER.timestamp())}:t>"


def queued(**changes: Any) -> Job:
    return job(**{"state": State.QUEUED, "attempt": 0, "progress": progress(0, step=None, base=None), **changes})


def standing(folder: Path, **changes: Any) -> Standing:
    return Standing(**{"job_dir": folder, "now": NOW, **changes})


@pytest.mark.parametrize(
    ("changes", "around", "expected"),
    [
        ({}, {"halt": HALT}, "Queue is paused by <@7>: “driver update”. The job is saved as #42."),
        ({"run_after": LATER}, {}, f"It was asked to start at <t:{int(LATER.timestamp())}:f>"),
        ({"run_after": LATER, "attempt": 1}, {}, f"It tries again <t:{int(LATER.timestamp())}:R>"),
        ({}, {"why_closed": "The training window opens Mon 20:00 (UTC)."}, "The training window opens Mon 20:00"),
        ({}, {"owner_runs": 2, "owner_may_run": 2}, "running and may have 2 at once; this one starts when one of"),
        ({}, {"owner_runs": 1, "owner_may_run": 1}, "<@555> has 1 training running and may have 1 at once;"),
        ({"gpus": 4}, {"free_slots": 1, "slots": 4}, "It needs 4 GPUs at once; 1 of 4 is free."),
        (
            {},
            {"forecast": Forecast(starts_at=LATER, seconds=2880, usual_error=0.15)},
            f"starts about {LATER_T} (<t:{int(LATER.timestamp())}:R>) · runs about 48 min (usually ±15%)",
        ),
        ({"priority": Priority.HIGH}, {}, "high priority"),
    ],
)
def test_a_waiting_card_says_why_it_waits(
    tmp_path: Path, changes: dict[str, Any], around: dict[str, Any], expected: str
) -> None:
    assert expected in text_of(card(queued(**changes), standing(tmp_path, place=1, **around)))


def test_nothing_holds_up_a_job_that_only_waits_its_turn(tmp_path: Path) -> None:
    around = standing(tmp_path, place=2, owner_runs=1, owner_may_run=2, free_slots=0, slots=1)
    lines = text_of(card(queued(run_after=NOW - timedelta(minutes=1)), around)).splitlines()
    assert lines[1] == "**Queued · 2nd in line**"
    assert lines[2].startswith("-# fox.zip")


def test_no_start_is_promised_while_the_queue_is_off(tmp_path: Path) -> None:
    text = text_of(card(queued(), standing(tmp_path, halt=HALT, forecast=Forecast(starts_at=LATER, seconds=60))))
    assert "starts about" not in text
    assert "runs about 1 min" in text


def test_what_starts_at_once_is_not_promised_for_a_moment_that_is_over(tmp_path: Path) -> None:
    coming = Forecast(starts_at=NOW + timedelta(seconds=0.5), seconds=290)
    text = text_of(card(queued(), standing(tmp_path, place=1, forecast=coming)))
    assert "\nstarts now · runs about 5 min\n" in text


def test_a_start_that_was_asked_for_is_told_once(tmp_path: Path) -> None:
    around = standing(tmp_path, place=1, forecast=Forecast(starts_at=LATER, seconds=2880))
    text = text_of(card(queued(run_after=LATER), around))
    assert "It was asked to start at" in text
    assert "\nruns about 48 min\n" in text
    later = dataclasses.replace(around, forecast=Forecast(starts_at=LATER + timedelta(minutes=20)))
    assert "starts about" in text_of(card(queued(run_after=LATER), later))


def test_a_running_card_names_its_slot_and_attempt(tmp_path: Path) -> None:
    running = job(slots=("GPU 0 · RTX 4090",), attempt=2, priority=Priority.LOW)
    assert "\non GPU 0 · RTX 4090 · attempt 2 · low priority" in text_of(card(running, standing(tmp_path)))


def test_a_paused_card_says_since_when(tmp_path: Path) -> None:
    paused = job(state=State.PAUSED, stopped_by=7)
    text = text_of(card(paused, standing(tmp_path, since=NOW)))
    assert f"Paused by <@7> <t:{int(NOW.timestamp())}:R>; its GPU is free." in text
    assert "It goes on from the checkpoint of epoch 3." in text


def test_the_board_shows_all_that_a_person_wants_to_know() -> None:
    slots = [
        Slot(id="a", device="0", name="GPU 0 · RTX 4090", job_id=1),
        Slot(id="b", device="1", name="GPU 1 · RTX 4090"),
        Slot(id="c", device="2", name="GPU 2 · RTX 4090", is_enabled=False),
    ]
    starts = LATER.timestamp()
    scene = Scene(
        now=NOW,
        jobs=[
            job(id=1, slots=("GPU 0 · RTX 4090",)),
            queued(id=2, priority=Priority.HIGH),
            queued(id=3, run_after=LATER),
            job(id=4, state=State.PAUSED),
        ],
        places={2: 5, 3: 6},
        forecasts={2: Coming(job_id=2, starts_at=starts, ends_at=None, seconds=None)},
        slots=slots,
        halt=HALT,
        why_closed="The training window opens Mon 20:00 (UTC).",
    )
    text = text_of(board(scene))
    assert "⛔ Queue is paused by <@7>: “driver update”." in text
    assert "🌙 The training window opens Mon 20:00 (UTC)." in text
    assert "GPU 0 · RTX 4090 · #1" in text
    assert "GPU 1 · RTX 4090 · free" in text
    assert "GPU 2 · RTX 4090 · switched off" in text
    assert "🟢 **#1 fox-lora** · <@555> · Training 35% · best val 0.85× @ e3 · on GPU 0 · ends <t:" in text
    assert f"<@555> · 5th in line · high priority · starts about {LATER_T}" in text
    assert f"<@555> · 6th in line · not before {LATER_T}" in text
    assert "Paused at 35% · best val" in text
    assert text.index("**Training** (1)") < text.index("**Waiting** (2)") < text.index("**Paused** (1)")


def test_a_start_of_another_day_is_told_with_its_day() -> None:
    later = NOW + timedelta(days=2)
    coming = Coming(job_id=2, starts_at=later.timestamp(), ends_at=None, seconds=None)
    jobs = [queued(id=1, run_after=later), queued(id=2)]
    text = text_of(board(Scene(now=NOW, jobs=jobs, places={1: 1, 2: 2}, forecasts={2: coming})))
    assert f"not before <t:{int(later.timestamp())}:f>" in text
    assert f"starts about <t:{int(later.timestamp())}:f>" in text


def test_who_waits_to_go_on_is_listed_with_how_far_it_came() -> None:
    text = text_of(board(Scene(now=NOW, jobs=[job(state=State.QUEUED)], places={42: 4})))
    assert "Waiting to go on from its checkpoint at 35% · 4th in line · best val 0.85× @ e3" in text


def test_a_list_says_when_a_job_ended() -> None:
    text = text_of(job_list("Newest", [job(state=State.FAILED, ended_at=LATER), job()], NOW))
    assert f"Failed · best val 0.85× @ e3 · <t:{int(LATER.timestamp())}:R>\n" in text
    assert text.endswith("Training 35% · best val 0.85× @ e3")


def test_a_list_says_what_waits_for_its_hour() -> None:
    jobs = [queued(id=1, run_after=LATER), queued(id=2, run_after=NOW - timedelta(minutes=1))]
    first, second = text_of(job_list("Newest", jobs, NOW)).splitlines()[-2:]
    assert first.endswith(f"not before {LATER_T}")
    assert "not before" not in second


def test_a_board_full_of_everything_is_cut_between_jobs() -> None:
    slots = [
        Slot(id=str(n), device=str(n), name=f"GPU {n} · NVIDIA RTX 6000 Ada Generation", job_id=n) for n in range(9)
    ]
    jobs = [job(id=n, slots=(f"GPU {n} · NVIDIA RTX 6000 Ada Generation",)) for n in range(9)]
    jobs += [queued(id=n) for n in range(10, 300)] + [job(id=n, state=State.PAUSED) for n in range(300, 340)]
    scene = Scene(
        now=NOW, jobs=jobs, places={n: n for n in range(10, 300)}, slots=slots, halt=HALT, why_closed="x" * 250
    )
    text = text_of(board(scene))
    lines = [line for line in text.splitlines() if "**#" in line]
    assert "Training** (9)" in text
    assert "Waiting** (290)" in text
    assert "Paused** (40)" in text
    assert not [line for line in lines if line.endswith("…")]


def test_a_long_line_is_counted_and_not_cut_in_the_middle() -> None:
    text = text_of(board(Scene(now=NOW, jobs=[queued(id=number) for number in range(1, 301)])))
    shown = [line for line in text.splitlines() if line.startswith("🕓")]
    assert f"… and {300 - len(shown)} more" in text
    assert all("<@555>" in line for line in shown)


def test_an_empty_board_promises_a_start_only_where_there_is_room() -> None:
    free = Slot(id="a", device="", name="CPU")
    assert "starts at once" in text_of(board(Scene(now=NOW, jobs=[], slots=[free])))
    assert "starts at once" not in text_of(board(Scene(now=NOW, jobs=[], slots=[free], halt=HALT)))
    taken = dataclasses.replace(free, job_id=9)
    busy = text_of(board(Scene(now=NOW, jobs=[], slots=[taken])))
    assert "starts at once" not in busy
    assert "Nothing of this server is training." in busy


@pytest.mark.parametrize(
    ("verb", "before", "after", "expected"),
    [
        (Verb.PAUSE, {}, {"state": State.STOPPING, "stop_intent": StopIntent.PAUSE}, "pauses after this step"),
        (Verb.PAUSE, {"state": State.QUEUED}, {"state": State.PAUSED}, "#42 is paused. /job resume"),
        (Verb.PAUSE, {"state": State.PAUSED}, {"state": State.PAUSED}, "#42 is paused already."),
        (Verb.PAUSE, {"state": State.FAILED}, {"state": State.FAILED}, "has already ended: failed."),
        (Verb.RESUME, {"state": State.PAUSED}, {"state": State.QUEUED}, "goes on from its checkpoint, 1st in line."),
        (Verb.RESUME, {"state": State.RUNNING}, {"state": State.RUNNING}, "#42 is not paused: training."),
        (Verb.RETRY, {"state": State.FAILED}, {"state": State.QUEUED}, "tried again from its checkpoint, 1st"),
        (Verb.RETRY, {"state": State.SUCCEEDED}, {"state": State.SUCCEEDED}, "is not failed or cancelled: done."),
        (Verb.PIN, {}, {"is_pinned": True}, "#42 is pinned: its files are kept"),
        (Verb.PIN, {"is_pinned": True}, {"is_pinned": True}, "#42 is pinned already"),
        (Verb.UNPIN, {}, {}, "#42 is not pinned."),
        (Verb.SHARE, {"is_shared": True}, {"is_shared": True}, "#42 is shared already"),
        (Verb.UNSHARE, {}, {}, "#42 is not shared."),
        (
            Verb.CANCEL,
            {"state": State.STOPPING, "stop_intent": StopIntent.CANCEL},
            {"state": State.STOPPING, "stop_intent": StopIntent.CANCEL},
            "#42 is already stopping.",
        ),
        (
            Verb.CANCEL,
            {"state": State.STOPPING, "stop_intent": StopIntent.PAUSE},
            {"state": State.STOPPING, "stop_intent": StopIntent.CANCEL},
            "#42 stops after this step",
        ),
    ],
)
def test_a_press_is_answered_with_what_is(
    verb: Verb, before: dict[str, Any], after: dict[str, Any], expected: str
) -> None:
    assert expected in answer(verb, job(**before), job(**after), 1)


def test_every_verb_makes_sense_somewhere_and_none_everywhere() -> None:
    jobs = [job(state=state, is_pinned=pinned, is_shared=pinned) for state in State for pinned in (False, True)]
    for verb in Verb:
        assert {makes_sense(verb, each) for each in jobs} == {True, False}, verb


def test_history_and_audit_name_who_when_and_why() -> None:
    entry = Entry(at=NOW, job_id=42, actor_id=7, verb="cancel", before="running", after="stopping", why="too slow")
    quiet = Entry(at=NOW, job_id=None, actor_id=None, verb="queue resume", before=None, after=None, why=None)
    text = text_of(audit_page("Audit", [entry, quiet]))
    assert "<@7> · cancel #42 · running → stopping · too slow" in text
    assert "Darkroom · queue resume" in text
    ended = Attempt(number=1, started_at=NOW, ended_at=LATER, slots=("GPU 0",), outcome="queued", why="it was lost")
    running = Attempt(number=2, started_at=LATER, ended_at=None, slots=("GPU 1",), outcome=None, why=None)
    told = text_of(history(job(), [ended, running], [entry]))
    assert "**2** · <t:1772368500:f> · GPU 1 · runs" in told
    assert ", 35 min · GPU 0 · then queued: it was lost" in told
    assert f"<t:{int(NOW.timestamp())}:f> · <@7> · cancel · running → stopping" in told


def test_the_switch_says_what_becomes_of_what_runs() -> None:
    assert "1 training that runs goes on" in halted_words(HALT, 1)
    drain = HALT.model_copy(update={"kind": HaltKind.DRAIN})
    assert "2 trainings save a checkpoint and wait at the front of the line" in halted_words(drain, 2)
    assert "1 training saves a checkpoint and waits at" in halted_words(drain, 1)
    assert "nothing new starts, and nothing runs." in halted_words(HALT, 0)
    assert "does not wait: training." in bumped_words(job(), job(), Priority.HIGH)
    assert "high priority now" in bumped_words(queued(), queued(), Priority.HIGH)


def test_slots_and_limits_are_named() -> None:
    slots = [Slot(id="a", device="0", name="GPU 0", memory_bytes=24 * 2**30, job_id=3, is_enabled=False)]
    assert "GPU 0 · 24.0 GiB · #3 · **switched off**" in text_of(slots_page(slots))
    limits = [RoleLimit(role_id=5, max_waiting=4, max_running=0, gpu_hours_per_week=2.5)]
    content = limits_page(limits)
    assert "<@&5> · 4 waiting, any number running and 2.5 GPU-h a week" in text_of(content)
    assert dict(content.allowed_mentions.to_dict()) == {"parse": []}


def test_a_plan_is_deleted_only_as_it_was_shown() -> None:
    one = Deletion(job_id=1, owner_id=5, what=What.CHECKPOINTS, bytes=100, sentence="#1 fox: the checkpoints.")
    plan, totals = Plan(deletions=(one,)), Totals(free_bytes=1, bytes_by_owner={5: 100}, held_bytes=0)
    content = storage_page(plan, totals)
    assert labels(content) == ["Delete these"]
    assert "- <@5> · \\#1 fox: the checkpoints." in text_of(content)
    assert labels(confirm_page(plan)) == ["Yes, delete them"]
    assert labels(storage_page(Plan(), totals)) == []
    more = Plan(deletions=(one, dataclasses.replace(one, job_id=2)))
    other = Plan(deletions=(dataclasses.replace(one, what=What.EVERYTHING),))
    assert len({plan_digest(plan), plan_digest(more), plan_digest(other)}) == 3


def study(order: KfoldOrder | CompareOrder, **changes: Any) -> Job:
    empty = progress(0, step=None, base=None)
    return job(**{"gpus": 0, "study": order.model_dump_json(), "progress": empty, **changes})


def row(name: str, state: ChildState = ChildState.OPEN, **changes: Any) -> StudyRow:
    return StudyRow(**{"name": name, "folder": name, "state": state, "epochs": 3, **changes})


def child(name: str, **changes: Any) -> Job:
    return job(**{"id": 50, "parent_id": 42, "child_name": name, **changes})


def test_a_studys_lines_follow_its_ranking_and_name_what_is_tried() -> None:
    step = StudyStep(
        table=(row("b", label="rank 8"), row("a", ChildState.ENDED_EARLY, label="rank 32")), page="p", report="r"
    )
    children = [child("a", state=State.PAUSED), child("b"), child("c", state=State.QUEUED)]
    lines = study_lines(children, step)
    assert [line.split("**")[1] for line in lines] == ["b", "a", "c"]
    assert "· rank 8 · training 35% · best val 0.85× @ e3" in lines[0]
    assert "rank 32 · ended early: others were better" in lines[1]
    assert lines[2].startswith("🕓")


def test_a_study_has_one_card_and_no_early_end(tmp_path: Path) -> None:
    parent = study(KfoldOrder(folds=3), state=State.RUNNING)
    children = (child("fold-1", state=State.SUCCEEDED), child("fold-2"), child("fold-3", state=State.QUEUED))
    content = card_of(parent, standing(tmp_path, children=children))
    text = text_of(content)
    assert "**1 of 3 runs over** · 3-fold cross-validation" in text
    assert "fold-2" in text
    assert labels(content) == ["Cancel", "Pause", "Refresh"]
    paused = text_of(card_of(dataclasses.replace(parent, state=State.PAUSED, stopped_by=7), standing(tmp_path)))
    assert "Paused by <@7>; its runs keep their checkpoints, and hold no GPU." in paused


def test_a_studys_end_tells_its_verdict_and_carries_its_result(tmp_path: Path) -> None:
    for path in ("study/chart.png", "final/output/kohya.safetensors"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(b"x")
    step = StudyStep(
        is_over=True,
        verdict=("Rank 8 is the best.", "Rank 32 overfits."),
        table=(row("a", ChildState.FINISHED, test_ratio=0.9),),
        page="study/page.html",
        report="study/report.md",
        chart="study/chart.png",
        chart_alt="curves",
        result="final",
    )
    order = CompareOrder(vary=("method.rank=8,32",))
    children = (child("a", state=State.SUCCEEDED),)
    content = study_post(study(order, state=State.SUCCEEDED), standing(tmp_path, children=children, step=step))
    text = text_of(content)
    assert "your comparison of rank is over.\n→ Rank 8 is the best.\n→ Rank 32 overfits." in text
    assert "test 0.90×" in text
    assert " · rank " not in text, "it varies from run to run"
    assert " · lr 0.0001 · " in text
    assert str(tmp_path / "study/page.html") in text
    assert [file.name for file in content.files] == ["study-3.png", "fox-lora-kohya.safetensors"]
    assert content.mentions == 555
