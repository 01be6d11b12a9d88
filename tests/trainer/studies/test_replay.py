"""A study whose children are jobs of a queue: each call goes on as far as it can, and asks for what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.studies.scripted import RATES, Queue, fail, order_study, train
from tests.trainer.studies.studying import all_events, epochs_of, events_of, fake_children, make_study
from trainer.__main__ import main
from trainer.protocol.events import EXIT_BUSY, EXIT_REFUSED, Finished, LastWord
from trainer.protocol.spec import read_spec
from trainer.protocol.study import ChildState, GivenUp, StudyStep
from trainer.studies.compare import Halving, run_compare
from trainer.studies.grid import candidates, parse_axis
from trainer.studies.kfold import run_kfold
from trainer.studies.state import Study, StudyKind

pytestmark = pytest.mark.timeout(180)

Capture = pytest.CaptureFixture[str]


def asked(step: StudyStep) -> list[tuple[str, int | None]]:
    return [(goal.name, goal.until_epoch) for goal in step.goals]


def states(step: StudyStep) -> dict[str, ChildState]:
    return {row.name: row.state for row in step.table}


def test_a_cross_validation_asks_for_its_folds_and_then_for_the_final_run(tmp_path: Path, capsys: Capture) -> None:
    job = order_study(tmp_path, "kfold", folds=3)
    queue = Queue(job, capsys)

    first = queue.step()
    assert asked(first) == [("fold 1", None), ("fold 2", None), ("fold 3", None)]
    assert [goal.folder for goal in first.goals] == ["folds/1", "folds/2", "folds/3"]
    assert all(read_spec(job / goal.folder).split.fold for goal in first.goals)
    assert (first.is_over, first.chart, first.result) == (False, None, None)
    for goal in first.goals:
        queue.run(goal)

    then = queue.step()
    assert asked(then) == [("final", None)]
    assert then.chart is not None
    assert (job / then.chart).stat().st_size > 10_000
    assert "Over 3 folds the best validation loss is 80.6 % of the base's on average" in then.verdict[0]
    queue.run(then.goals[0])

    last = queue.step()
    assert (last.goals, last.is_over, last.has_failed, last.result) == ((), True, False, "final")
    assert last.verdict[0] in (job / last.report).read_text(encoding="utf-8")
    assert (job / last.page).exists()
    assert set(states(last).values()) == {ChildState.FINISHED}
    assert last.table[-1].test_ratio is not None


def test_its_answer_is_that_of_a_study_which_runs_its_children_itself(tmp_path: Path, capsys: Capture) -> None:
    spec = make_study(tmp_path / "itself")
    alone = run_kfold(tmp_path / "itself" / "job", spec, 3, fake_children())
    last = Queue(order_study(tmp_path / "queue", "kfold", folds=3), capsys).run_all()
    assert last.verdict == alone.page.verdict
    assert last.table == alone.rows
    markdown = [(tmp_path / name / "job" / "results.md").read_text(encoding="utf-8") for name in ("itself", "queue")]
    assert markdown[0] == markdown[1]


def test_a_comparison_stops_at_each_look_and_ends_the_worse(tmp_path: Path, capsys: Capture) -> None:
    job = order_study(tmp_path, "compare", vary=[RATES])
    queue = Queue(job, capsys)
    first = queue.step()
    assert asked(first) == [("c01", 2), ("c02", 2), ("c03", 2), ("c04", 2)]
    for goal in first.goals[:3]:
        queue.run(goal)

    waits = queue.step()
    assert asked(waits) == [("c04", 2)], "nobody is decided about before all are there"
    assert states(waits)["c01"] is ChildState.WAITING
    assert waits.verdict[0].startswith("learning rate 0.0003 leads so far")
    queue.run(waits.goals[0])

    rest = queue.step()
    assert asked(rest) == [("c02", None), ("c03", None)]
    assert states(rest) == {
        "c01": ChildState.ENDED_EARLY,
        "c02": ChildState.OPEN,
        "c03": ChildState.OPEN,
        "c04": ChildState.ENDED_EARLY,
    }
    for goal in rest.goals:
        queue.run(goal)

    winner = queue.step()
    assert asked(winner) == [("winner", None)]
    queue.run(winner.goals[0])
    last = queue.step()
    assert (last.is_over, last.has_failed, last.result) == (True, False, "winner")
    assert last.verdict[0].startswith("learning rate 0.0003 wins: 63.3 % of the base's validation loss")
    assert [row.label for row in last.table[:2]] == ["learning rate 0.0003", "learning rate 0.00029"]
    assert epochs_of(job / "winner") == list(range(1, 9)), "those of the candidate, none trained twice"
    assert len(events_of(job / "winner", Finished)) == 1


@pytest.mark.parametrize("keep_one_in", [2, None])
def test_a_comparison_decides_as_one_that_runs_its_children_itself(
    tmp_path: Path, capsys: Capture, keep_one_in: int | None
) -> None:
    spec = make_study(tmp_path / "itself", {"*": {"epoch_s": 0.25}} if keep_one_in else None)
    found = candidates(spec, [parse_axis(RATES)])
    halving = Halving(first_epoch=2, keep_one_in=keep_one_in)
    alone = run_compare(tmp_path / "itself" / "job", spec, found, halving, fake_children(), finishes=True)
    job = order_study(tmp_path / "queue", "compare", vary=[RATES], first_look=2, keep_one_in=keep_one_in)
    last = Queue(job, capsys).run_all()
    assert last.verdict == alone.page.verdict
    assert last.table == alone.rows


@pytest.mark.parametrize(("kind", "failing"), [("kfold", "fold 2"), ("compare", "c03")])
def test_a_child_that_was_given_up_is_left_out_and_told(
    tmp_path: Path, capsys: Capture, kind: str, failing: str
) -> None:
    job = order_study(tmp_path, kind, **({"folds": 3} if kind == "kfold" else {"vary": [RATES]}))
    last = Queue(job, capsys, failing=(failing,)).run_all()
    assert (last.is_over, last.has_failed) == (True, False)
    assert last.result is not None
    assert states(last)[failing] is ChildState.FAILED
    assert any("failed" in sentence and "The device is full. Take less." in sentence for sentence in last.verdict)


def test_a_child_that_failed_and_may_be_tried_again_is_waited_for(tmp_path: Path, capsys: Capture) -> None:
    queue = Queue(order_study(tmp_path, "compare", vary=[RATES]), capsys)
    for goal in queue.step().goals:
        if goal.name == "c03":
            fail(queue.job / goal.folder)
        else:
            queue.run(goal)
    assert asked(queue.step()) == [("c03", 2)]
    train(queue.job / "candidates" / "c03", 2)
    assert asked(queue.step()) == [("c02", None), ("c03", None)]


def test_a_child_that_died_for_good_without_a_word_is_told_with_the_caller_s_reason(
    tmp_path: Path, capsys: Capture
) -> None:
    queue = Queue(order_study(tmp_path, "kfold", folds=2), capsys)
    goals = queue.step().goals
    queue.run(goals[0])
    queue.end("fold 2", GivenUp.FAILED, "Its machine was lost three times.")
    assert "Fold 2 failed and is left out: Its machine was lost three times." in queue.step().verdict


@pytest.mark.parametrize("kind", ["kfold", "compare"])
def test_a_study_of_which_all_failed_has_failed(tmp_path: Path, capsys: Capture, kind: str) -> None:
    job = order_study(tmp_path, kind, **({"folds": 2} if kind == "kfold" else {"vary": [RATES]}))
    last = Queue(job, capsys, failing=("fold 1", "fold 2", "c01", "c02", "c03", "c04")).run_all()
    assert (last.is_over, last.has_failed, last.result, last.goals) == (True, True, None, ())
    assert not (job / "final").exists()
    assert not (job / "winner").exists()


def test_a_study_whose_last_run_failed_has_failed_and_says_why(tmp_path: Path, capsys: Capture) -> None:
    last = Queue(order_study(tmp_path, "compare", vary=[RATES]), capsys, failing=("winner",)).run_all()
    assert (last.has_failed, last.result) == (True, None)
    assert "Its test and export failed: The device is full. Take less." in last.verdict


def test_a_halted_study_tells_what_is_known_and_goes_on_when_asked_again(tmp_path: Path, capsys: Capture) -> None:
    queue = Queue(order_study(tmp_path, "kfold", folds=2), capsys)
    goals = queue.step().goals
    queue.run(goals[0])
    queue.end("fold 2", GivenUp.HALTED)
    halted = queue.step()
    assert (halted.is_over, halted.has_failed, halted.result, halted.goals) == (True, False, None, ())
    assert "Over 1 fold" in halted.verdict[0]
    assert halted.verdict[-1] == "Stopped with fold 2 still to train; started again, it goes on."
    (queue.job / "study_ended.json").unlink()
    assert Queue(queue.job, capsys).run_all().result == "final"


def test_garbage_among_the_events_of_a_child_is_passed_over(tmp_path: Path, capsys: Capture) -> None:
    queue = Queue(order_study(tmp_path, "compare", vary=["method.rank=4,8"]), capsys)
    while (step := queue.step()).goals[0].name != "winner":
        queue.run(step.goals[0])
        with (queue.job / step.goals[0].folder / "events.jsonl").open("ab") as file:
            file.write(b"garbage\n\xff\xfe\n")
    last = queue.run_all()
    assert last.result == "winner"
    assert epochs_of(queue.job / "winner") == list(range(1, 9))


def test_nothing_is_started_twice_and_a_call_more_changes_nothing(tmp_path: Path, capsys: Capture) -> None:
    queue = Queue(order_study(tmp_path, "compare", vary=[RATES]), capsys, failing=("c02",))
    queue.run_all(between=lambda: assert_same(queue))
    assert queue.started == [
        *(("c01", 2), ("c02", 2), ("c03", 2), ("c04", 2)),
        *(("c01", None), ("c03", None)),
        ("winner", None),
    ]


def assert_same(queue: Queue) -> None:
    assert queue.step() == queue.step()


class Killed(BaseException):
    """As if the process had been killed."""


@pytest.mark.parametrize("kind", ["kfold", "compare"])
def test_killed_before_any_of_its_writes_it_says_the_same_in_the_end(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    order: dict[str, Any] = {"folds": 2} if kind == "kfold" else {"vary": ["training.learning_rate=1e-4,3e-4,1e-3"]}
    whole = Queue(order_study(tmp_path / "whole", kind, **order), capsys).run_all()
    queue = Queue(order_study(tmp_path / "killed", kind, **order), capsys)
    deaths = kill_at_each_write(queue, monkeypatch)
    last = queue.step()
    assert deaths > 10
    assert last.verdict == whole.verdict
    assert last.table == whole.table
    assert len(queue.started) == len(set(queue.started))


def kill_at_each_write(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a study to its end; each step dies before its first write, then before its second, until it gets through."""
    replace, deaths = Path.replace, 0
    while True:
        for survived in range(100):
            left = survived

            def dying(source: Path, target: Path) -> Path:
                nonlocal left
                if queue.job in target.parents and left == 0:
                    raise Killed
                left -= 1
                return replace(source, target)

            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", dying)
                try:
                    step = queue.step()
                    break
                except Killed:
                    deaths += 1
        if step.is_over:
            return deaths
        queue.run(step.goals[0])


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ({"kind": "kfold", "folds": 7}, "Take 6 folds at most."),
        (
            {"kind": "compare", "vary": ["training.learning_rate=1e-4,1"]},
            "With training.learning_rate 1: learning_rate 1 is too high for adamw",
        ),
        ({"kind": "compare", "vary": ["method.rnak=4,8"]}, "did you mean method.rank"),
        ({"kind": "compare", "vary": ["method.rank"]}, "method.rank is not GROUP.NAME=VALUE,VALUE."),
    ],
)
def test_a_check_refuses_by_name_and_writes_nothing(
    tmp_path: Path, capsys: Capture, order: dict[str, Any], why: str
) -> None:
    job = order_study(tmp_path, **order)
    before = sorted(job.rglob("*"))
    assert main(["study", str(job), "--check"]) == EXIT_REFUSED
    assert why in capsys.readouterr().err
    assert sorted(job.rglob("*")) == before


def test_a_check_says_what_would_run_first_and_writes_nothing(tmp_path: Path, capsys: Capture) -> None:
    job = order_study(tmp_path, "compare", vary=[RATES])
    before = sorted(job.rglob("*"))
    assert main(["study", str(job), "--check"]) == 0
    checked = StudyStep.model_validate_json(capsys.readouterr().out)
    assert sorted(job.rglob("*")) == before
    assert checked == Queue(job, capsys).step()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "has no study_order.json"),
        ("{", "is not JSON"),
        ('{"kind": "kfold", "folds": 21}', "folds 21 is outside 2 – 20."),
        ('{"kind": "kflod"}', "A study is of kind kfold or compare, not 'kflod'."),
        ('{"kind": "compare", "vary": ["method.rank=4,8"], "keep_one_on": 3}', "did you mean keep_one_in?"),
    ],
)
def test_an_order_that_is_none_is_refused_in_words(
    tmp_path: Path, capsys: Capture, content: str | None, why: str
) -> None:
    job = order_study(tmp_path, "kfold")
    (job / "study_order.json").unlink()
    if content is not None:
        (job / "study_order.json").write_text(content, encoding="utf-8")
    assert main(["study", str(job)]) == EXIT_REFUSED
    assert why in capsys.readouterr().err


def test_two_at_once_are_refused_and_nothing_is_wrong_with_the_study(tmp_path: Path, capsys: Capture) -> None:
    job = order_study(tmp_path, "kfold", folds=2)
    with Study(job, StudyKind.KFOLD, "2 folds", read_spec(job)):
        assert main(["study", str(job)]) == EXIT_BUSY
    assert len(Queue(job, capsys).step().goals) == 2


def test_a_step_loads_neither_torch_nor_what_draws(tmp_path: Path) -> None:
    job = order_study(tmp_path, "kfold", folds=2)
    code = (
        "import sys; from trainer.__main__ import main; main(sys.argv[1:]);"
        "print(sorted({'torch', 'diffusers', 'matplotlib', 'optuna'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "study", str(job)], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert len(json.loads(done.stdout)["goals"]) == 2


def number_attempts(path: Path) -> None:
    """As if a queue had started the trainer."""
    lines = path.read_text(encoding="utf-8").replace('"attempt":0', '"attempt":1')
    path.write_text(lines, encoding="utf-8")


def test_a_winner_has_nothing_of_the_attempts_at_its_candidate(tmp_path: Path, capsys: Capture) -> None:
    queue = Queue(order_study(tmp_path, "compare", vary=[RATES]), capsys)
    while (step := queue.step()).goals[0].name != "winner":
        candidate = queue.job / step.goals[0].folder
        for name in ("attempt.json", "heartbeat"):
            (candidate / name).touch()
        queue.run(step.goals[0])
        number_attempts(candidate / "events.jsonl")
    assert not (queue.job / "winner" / "attempt.json").exists()
    assert not (queue.job / "winner" / "heartbeat").exists()
    said = all_events(queue.job / "winner")
    assert not any(isinstance(event, LastWord) for event in said), "a candidate's stop is not the winner's"
    assert [event.seq for event in said] == list(range(1, len(said) + 1))
    assert {event.attempt for event in said} == {0}
