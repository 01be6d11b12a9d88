"""Cross-validation: each fold is a run, and the final one is as long as the folds were best on average."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import check_golden
from tests.trainer.studies.fake_queue import FakeQueue, goals_of, request_study, states_of
from tests.trainer.studies.study_helpers import epochs_of, events_of
from trainer.errors import DatasetError
from trainer.exchange.job_dir import read_spec
from trainer.protocol import events
from trainer.protocol.events import Finished
from trainer.protocol.settings import SplitKind
from trainer.protocol.study import ChildOutcome, ChildState

GOLDEN = Path(__file__).parent / "golden"


def test_the_folds_run_first_and_then_the_final_run(tmp_path: Path, real_charts: None) -> None:
    job = request_study(tmp_path, "kfold", folds=3)
    queue = FakeQueue(job)

    first = queue.step()
    assert goals_of(first) == [("fold 1", None), ("fold 2", None), ("fold 3", None)]
    assert [goal.folder for goal in first.goals] == ["folds/1", "folds/2", "folds/3"]
    for fold, goal in enumerate(first.goals, 1):
        split = read_spec(job / goal.folder).split
        assert (split.kind, split.fold, split.folds) == (SplitKind.FOLD, fold, 3)
    assert (first.is_over, first.chart, first.result) == (False, None, None)
    queue.run(*first.goals)

    then = queue.step()
    assert goals_of(then) == [("final", None)]
    assert then.chart is not None
    assert (job / then.chart).stat().st_size > 10_000
    queue.run(*then.goals)

    last = queue.step()
    assert (last.goals, last.is_over, last.has_failed, last.result) == ((), True, False, "final")
    assert set(states_of(last).values()) == {ChildState.FINISHED}
    assert last.table[-1].test_ratio is not None
    check_golden(GOLDEN / "kfold.md", (job / last.report).read_text(encoding="utf-8"))
    assert (job / last.page).exists()


def test_the_final_run_has_all_images_and_the_mean_best_epoch_of_the_folds(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=3)
    FakeQueue(job).run_all()
    # The folds of the fake trainer are best after epochs 5, 6 and 7.
    final = read_spec(job / "final")
    assert final.training.epochs == 6
    assert final.split.kind is SplitKind.ALL
    assert not final.early_stopping.enabled
    assert epochs_of(job / "final") == [1, 2, 3, 4, 5, 6]


def test_the_test_images_are_used_once(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=3)
    FakeQueue(job).run_all()
    folders = ("folds/1", "folds/2", "folds/3", "final")
    assert [len(events_of(job / folder, events.Tested)) for folder in folders] == [0, 0, 0, 1]


def test_the_verdict_advises_more_epochs_if_the_last_epoch_of_each_fold_is_its_best(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", settings={"training": {"epochs": 4}}, folds=3)
    check_golden(GOLDEN / "kfold_best_at_the_end.txt", "\n".join(FakeQueue(job).run_all().verdict))


def test_the_final_run_waits_for_a_fold_that_is_retried(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=3)
    queue = FakeQueue(job, failing=("fold 2",))
    queue.run_all()
    (job / "study_ended.json").unlink()
    step = FakeQueue(job).step()
    assert goals_of(step) == [("fold 2", None)]
    assert states_of(step)["final"] is ChildState.HALTED
    assert FakeQueue(job).run_all().result == "final"
    assert len(events_of(job / "final", Finished)) == 1


def test_a_halted_study_keeps_its_results_and_continues_when_it_is_started_again(tmp_path: Path) -> None:
    queue = FakeQueue(request_study(tmp_path, "kfold", folds=2))
    queue.run(queue.step().goals[0])
    queue.end("fold 2", ChildOutcome.HALTED)
    halted = queue.step()
    assert (halted.is_over, halted.has_failed, halted.result, halted.goals) == (True, False, None, ())
    assert states_of(halted) == {"fold 1": ChildState.FINISHED, "fold 2": ChildState.HALTED}
    check_golden(GOLDEN / "kfold_halted.txt", "\n".join(halted.verdict))
    (queue.job / "study_ended.json").unlink()
    assert FakeQueue(queue.job).run_all().result == "final"


def test_more_folds_than_different_images_are_refused_before_anything_starts(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=7)
    with pytest.raises(DatasetError, match="6 folds"):
        FakeQueue(job).step()
    assert not (job / "folds").exists()
    assert not (job / "study.json").exists()
