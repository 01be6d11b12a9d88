"""A comparison: the worse candidates end early and stay ended, the winner is tested once, and doubts are reported."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden import check_golden
from tests.trainer.studies.fake_queue import FakeQueue, fail, goals_of, request_study, states_of, train
from tests.trainer.studies.study_helpers import RATES, all_events, epochs_of, events_of
from trainer.exchange.job_dir import read_spec, write_spec
from trainer.protocol import events
from trainer.protocol.events import Finished, Started, TerminalEvent
from trainer.protocol.spec import make_spec
from trainer.protocol.study import ChildState
from trainer.studies.comparison import MIN_FIRST_RUNG, first_rung, rungs, survivors

GOLDEN = Path(__file__).parent / "golden"


def candidate(job: Path, name: str) -> Path:
    return job / "candidates" / name


def test_all_candidates_reach_a_rung_before_the_worse_end(tmp_path: Path, real_charts: None) -> None:
    job = request_study(tmp_path, "compare", vary=[RATES])
    queue = FakeQueue(job)
    first = queue.step()
    assert goals_of(first) == [("c01", 2), ("c02", 2), ("c03", 2), ("c04", 2)]
    queue.run(*first.goals[:3])

    waits = queue.step()
    assert goals_of(waits) == [("c04", 2)]
    assert states_of(waits)["c01"] is ChildState.WAITING
    queue.run(*waits.goals)

    rest = queue.step()
    assert goals_of(rest) == [("c02", None), ("c03", None)]
    assert states_of(rest) == {
        "c01": ChildState.ENDED_EARLY,
        "c02": ChildState.OPEN,
        "c03": ChildState.OPEN,
        "c04": ChildState.ENDED_EARLY,
    }
    queue.run(*rest.goals)

    winner = queue.step()
    assert goals_of(winner) == [("winner", None)]
    queue.run(*winner.goals)
    last = queue.step()
    assert (last.is_over, last.has_failed, last.result) == (True, False, "winner")
    assert [row.label for row in last.table[:2]] == ["learning rate 0.0003", "learning rate 0.00029"]
    assert [len(epochs_of(candidate(job, f"c0{number}"))) for number in (1, 2, 3, 4)] == [2, 8, 8, 2]
    check_golden(GOLDEN / "comparison.md", (job / last.report).read_text(encoding="utf-8"))
    assert last.chart is not None
    assert (job / last.chart).stat().st_size > 10_000


def test_no_candidate_ends_early_if_that_is_asked_for(tmp_path: Path) -> None:
    job = request_study(tmp_path, "compare", vary=[RATES], keep_one_in=None)
    queue = FakeQueue(job)
    queue.run_all()
    assert queue.started == [*((f"c0{number}", None) for number in (1, 2, 3, 4)), ("winner", None)]


def test_candidates_share_split_and_seed_and_are_not_tested(tmp_path: Path) -> None:
    job = request_study(tmp_path, "compare", vary=[RATES])
    FakeQueue(job).run_all()
    spec = read_spec(job)
    for number in (1, 2, 3, 4):
        one = read_spec(candidate(job, f"c0{number}"))
        assert (one.training.seed, one.split) == (spec.training.seed, spec.split)
        assert not events_of(candidate(job, f"c0{number}"), events.Tested)


def test_the_winner_is_tested_and_exported_once_without_training_again(tmp_path: Path) -> None:
    job = request_study(tmp_path, "compare", settings={"samples": {"every_epochs": 3}}, vary=[RATES])
    FakeQueue(job).run_all()
    winner = read_spec(job / "winner")
    assert len(events_of(job / "winner", events.Tested)) == 1
    assert len(events_of(job / "winner", Finished)) == 1
    assert epochs_of(job / "winner") == list(range(1, 9)), "those of the candidate"
    assert winner.validation.test
    assert winner.samples.every_epochs == 3
    assert winner.training.learning_rate == 3e-4


def test_a_winner_that_is_not_to_be_finished_is_ready_for_a_command_on_the_page(tmp_path: Path) -> None:
    job = request_study(tmp_path, "compare", vary=[RATES], finishes=False)
    last = FakeQueue(job).run_all()
    assert (last.is_over, last.has_failed, last.result) == (True, False, None)
    assert f"python -m trainer run {job / 'winner'}" in (job / last.report).read_text(encoding="utf-8")
    assert not events_of(job / "winner", Finished)


def test_the_winner_has_nothing_of_the_attempts_at_its_candidate(tmp_path: Path) -> None:
    queue = FakeQueue(request_study(tmp_path, "compare", vary=[RATES]))
    while (step := queue.step()).goals[0].name != "winner":
        folder = queue.job / step.goals[0].folder
        for name in ("attempt.json", "heartbeat"):
            (folder / name).touch()
        queue.run(step.goals[0])
        lines = (folder / "events.jsonl").read_text(encoding="utf-8")
        (folder / "events.jsonl").write_text(lines.replace('"attempt":0', '"attempt":1'), encoding="utf-8")
    winner = queue.job / "winner"
    assert not (winner / "attempt.json").exists()
    assert not (winner / "heartbeat").exists()
    found = all_events(winner)
    assert not any(isinstance(event, TerminalEvent) for event in found)
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    assert {event.attempt for event in found} == {0}


def test_checkpoints_of_the_winner_take_no_second_space(tmp_path: Path) -> None:
    job = request_study(tmp_path, "compare", vary=["training.learning_rate=1e-4,3e-4"])
    queue = FakeQueue(job)
    queue.step()
    weights = candidate(job, "c02") / "checkpoints" / "step-00000001" / "weights"
    weights.parent.mkdir(parents=True)
    weights.write_text("w", encoding="utf-8")
    queue.run_all()
    assert (job / "winner" / "checkpoints" / "step-00000001" / "weights").samefile(weights)
    assert not (job / "winner" / "events.jsonl").samefile(candidate(job, "c02") / "events.jsonl")


def test_a_failed_candidate_that_wins_when_it_is_retried_puts_the_first_winner_aside(tmp_path: Path) -> None:
    job = request_study(tmp_path, "compare", vary=["training.learning_rate=2.9e-4,3e-4"])
    FakeQueue(job, failing=("c02",)).run_all()
    assert read_spec(job / "winner").training.learning_rate == 2.9e-4

    (job / "study_ended.json").unlink()
    again = FakeQueue(job)
    assert again.run_all().table[0].name == "c02"
    assert read_spec(job / "winner").training.learning_rate == 3e-4
    assert read_spec(job / "winner-before-1").training.learning_rate == 2.9e-4
    assert again.started == [("c02", None), ("winner", None)], "nothing is done twice"
    assert len(events_of(job / "winner", Started)) == 2, "the candidate's start and its own"


def test_a_failed_winner_fails_the_study(tmp_path: Path) -> None:
    last = FakeQueue(request_study(tmp_path, "compare", vary=[RATES]), failing=("winner",)).run_all()
    assert (last.is_over, last.has_failed, last.result) == (True, True, None)


@pytest.mark.parametrize(
    ("name", "settings", "request_", "failing"),
    [
        ("within_chance", {}, {"vary": ["training.learning_rate=2.999e-4,3e-4"]}, ()),
        ("clear_loser", {}, {"vary": ["training.learning_rate=1e-4,3e-4"]}, ()),
        ("failed_candidate", {}, {"vary": [RATES]}, ("c03",)),
        ("failed_winner", {}, {"vary": [RATES]}, ("winner",)),
        ("all_failed", {}, {"vary": [RATES]}, ("c01", "c02", "c03", "c04")),
        ("idle_setting", {"method": {"kind": "ia3"}}, {"vary": ["method.rank=8,32"]}, ()),
    ],
)
def test_the_page_of_a_finished_comparison(
    tmp_path: Path, name: str, settings: dict[str, object], request_: dict[str, object], failing: tuple[str, ...]
) -> None:
    job = request_study(tmp_path, "compare", settings=settings, **request_)
    last = FakeQueue(job, failing=failing).run_all()
    check_golden(GOLDEN / f"comparison_{name}.md", (job / last.report).read_text(encoding="utf-8"))


def test_a_candidate_that_failed_and_may_be_retried_is_waited_for(tmp_path: Path) -> None:
    queue = FakeQueue(request_study(tmp_path, "compare", vary=[RATES]))
    for goal in queue.step().goals:
        if goal.name == "c03":
            fail(queue.job / goal.folder)
        else:
            queue.run(goal)
    assert goals_of(queue.step()) == [("c03", 2)]
    train(candidate(queue.job, "c03"), 2)
    assert goals_of(queue.step()) == [("c02", None), ("c03", None)]


def test_lines_that_are_not_events_are_skipped(tmp_path: Path) -> None:
    queue = FakeQueue(request_study(tmp_path, "compare", vary=["method.rank=4,8"]))
    while (step := queue.step()).goals[0].name != "winner":
        queue.run(step.goals[0])
        with (queue.job / step.goals[0].folder / "events.jsonl").open("ab") as file:
            file.write(b"garbage\n\xff\xfe\n")
    assert queue.run_all().result == "winner"
    assert epochs_of(queue.job / "winner") == list(range(1, 9))


def test_a_candidate_keeps_the_spec_that_it_was_started_with(tmp_path: Path) -> None:
    job = request_study(tmp_path, "compare", vary=[RATES])
    queue = FakeQueue(job)
    queue.step()
    changed = read_spec(candidate(job, "c01")).model_copy(update={"name": "changed"})
    write_spec(candidate(job, "c01"), changed)
    queue.step()
    assert read_spec(candidate(job, "c01")).name == "changed"


@given(st.lists(st.integers(0, 10**6), min_size=4, max_size=24, unique=True), st.integers(2, 4), st.randoms())
def test_the_best_survive_in_whatever_order_they_are_given(
    ranks: list[int], keep_one_in: int, shuffler: random.Random
) -> None:
    ratios = {f"c{index}": 0.5 + rank / 1e7 for index, rank in enumerate(ranks)}
    best = sorted(ratios, key=ratios.__getitem__)[: max(2, len(ratios) // keep_one_in)]
    assert list(survivors(ratios, keep_one_in)) == best
    names = list(ratios)
    shuffler.shuffle(names)
    assert list(survivors({name: ratios[name] for name in names}, keep_one_in)) == best


@pytest.mark.parametrize(
    ("ratios", "keep_one_in", "expected"),
    [
        ({"a": 0.7, "b": 0.6, "c": 0.8}, 3, ("b", "a")),
        ({"a": 0.7, "b": 0.6}, 2, ("b", "a")),
        ({"a": 0.7}, 2, ("a",)),
        # Those that tie with the last survivor.
        ({"a": 0.5, "b": 0.6, "c": 0.6, "d": 0.7}, 2, ("a", "b", "c")),
    ],
)
def test_at_least_two_survive_and_all_that_tie(
    ratios: dict[str, float], keep_one_in: int, expected: tuple[str, ...]
) -> None:
    assert survivors(ratios, keep_one_in) == expected


@pytest.mark.parametrize(
    ("first", "keep_one_in", "epochs", "expected"),
    [
        (2, 2, 20, (2, 4, 8, 16)),
        (3, 3, 20, (3, 9)),
        (1, 2, 5, (2, 4)),
        (0, 2, 2, ()),
        (4, 2, 4, ()),
        (2, 2, 1, ()),
    ],
)
def test_no_candidate_ends_after_the_first_epoch_or_the_last(
    first: int, keep_one_in: int, epochs: int, expected: tuple[int, ...]
) -> None:
    assert rungs(first, keep_one_in, epochs) == expected


@pytest.mark.parametrize(("epochs", "warmup", "expected"), [(8, 1, MIN_FIRST_RUNG), (20, 1, 4), (21, 1, 5), (20, 7, 7)])
def test_the_first_rung_is_after_a_fifth_of_the_epochs_or_the_warm_up(epochs: int, warmup: int, expected: int) -> None:
    early_stopping = {"warmup_epochs": warmup}
    spec = make_spec({"dataset": "x", "training": {"epochs": epochs}, "early_stopping": early_stopping})
    assert first_rung(spec) == expected
