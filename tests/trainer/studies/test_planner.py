"""The planner stores only its decisions: another step, a crash, or another caller changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.studies.fake_queue import FakeQueue, request_study, states_of
from tests.trainer.studies.study_helpers import RATES
from trainer.errors import JobFolderBusyError, UsageError
from trainer.exchange.job_dir import read_spec, write_spec
from trainer.exchange.study_dir import write_study_request
from trainer.protocol.study import ChildOutcome, ChildState, CompareRequest, KfoldRequest
from trainer.studies.study_folder import StudyFolder, StudyKind

KINDS = [("kfold", {"folds": 3}, "fold 2"), ("compare", {"vary": [RATES]}, "c03")]


@pytest.mark.parametrize(("kind", "request_", "failing"), KINDS)
def test_a_failed_child_is_left_out_and_named_in_the_verdict(
    tmp_path: Path, kind: str, request_: dict[str, Any], failing: str
) -> None:
    last = FakeQueue(request_study(tmp_path, kind, **request_), failing=(failing,)).run_all()
    assert (last.is_over, last.has_failed) == (True, False)
    assert last.result is not None
    assert states_of(last)[failing] is ChildState.FAILED
    assert any("The device is full. Take less." in sentence for sentence in last.verdict)


def test_the_verdict_has_the_reason_that_the_queue_gives_for_a_lost_child(tmp_path: Path) -> None:
    queue = FakeQueue(request_study(tmp_path, "kfold", folds=2))
    queue.run(queue.step().goals[0])
    queue.end("fold 2", ChildOutcome.FAILED, "Its machine was lost three times.")
    assert any("Its machine was lost three times." in sentence for sentence in queue.step().verdict)


@pytest.mark.parametrize("kind", ["kfold", "compare"])
def test_a_study_fails_if_all_its_runs_fail(tmp_path: Path, kind: str) -> None:
    job = request_study(tmp_path, kind, **({"folds": 2} if kind == "kfold" else {"vary": [RATES]}))
    last = FakeQueue(job, failing=("fold 1", "fold 2", "c01", "c02", "c03", "c04")).run_all()
    assert (last.is_over, last.has_failed, last.result, last.goals) == (True, True, None, ())
    assert not (job / "final").exists()
    assert not (job / "winner").exists()


def test_no_child_is_started_twice_and_another_step_changes_nothing(tmp_path: Path) -> None:
    queue = FakeQueue(request_study(tmp_path, "compare", vary=[RATES]), failing=("c02",))

    def assert_same() -> None:
        assert queue.step() == queue.step()

    queue.run_all(between=assert_same)
    assert queue.started == [
        *(("c01", 2), ("c02", 2), ("c03", 2), ("c04", 2)),
        *(("c01", None), ("c03", None)),
        ("winner", None),
    ]


class KilledError(BaseException):
    """Simulates the death of the process."""


@pytest.mark.parametrize("kind", ["kfold", "compare"])
def test_a_kill_before_any_write_does_not_change_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    request: dict[str, Any] = {"folds": 2} if kind == "kfold" else {"vary": ["training.learning_rate=1e-4,3e-4,1e-3"]}
    whole = FakeQueue(request_study(tmp_path / "whole", kind, **request)).run_all()
    queue = FakeQueue(request_study(tmp_path / "killed", kind, **request))
    deaths = kill_at_each_write(queue, monkeypatch)
    last = queue.step()
    assert deaths >= 8
    assert (last.verdict, last.table) == (whole.verdict, whole.table)
    assert len(queue.started) == len(set(queue.started))


def kill_at_each_write(queue: FakeQueue, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a study to its end; each step dies before its first write, then before its second, until it completes."""
    replace, deaths = Path.replace, 0
    while True:
        for survived in range(100):
            left = survived

            def dying(source: Path, target: Path) -> Path:
                nonlocal left
                if queue.job in target.parents and left == 0:
                    raise KilledError
                left -= 1
                return replace(source, target)

            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", dying)
                try:
                    step = queue.step()
                    break
                except KilledError:
                    deaths += 1
        if step.is_over:
            return deaths
        queue.run(step.goals[0])


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=2)
    queue = FakeQueue(job)
    queue.step()
    write_study_request(job, KfoldRequest(folds=3))
    with pytest.raises(UsageError, match=r"another study, a k-fold cross-validation \(2 folds\)"):
        queue.step()
    write_study_request(job, KfoldRequest(folds=2))
    write_spec(job, read_spec(job).model_copy(update={"name": "other"}))
    with pytest.raises(UsageError, match="was changed after the study began"):
        queue.step()


def test_a_finished_comparison_can_train_its_winner_to_the_end_later(tmp_path: Path) -> None:
    job = request_study(tmp_path, "compare", vary=[RATES], finishes=False)
    queue = FakeQueue(job)
    assert queue.run_all().result is None
    write_study_request(job, CompareRequest(vary=(RATES,)))
    assert queue.run_all().result == "winner"
    assert queue.started[-1] == ("winner", None)


def test_a_study_is_planned_by_one_process_at_a_time(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=2)
    with StudyFolder(job, StudyKind.KFOLD, "2 folds", read_spec(job)), pytest.raises(JobFolderBusyError):
        FakeQueue(job).step()
    assert len(FakeQueue(job).step().goals) == 2


def test_a_damaged_state_file_is_refused(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=2)
    (job / "study.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read"):
        FakeQueue(job).step()


def test_a_study_without_a_prepared_dataset_is_refused(tmp_path: Path) -> None:
    for kind, request in (("kfold", {"folds": 2}), ("compare", {"vary": [RATES]})):
        job = request_study(tmp_path / kind, kind, **request)
        shutil.rmtree(tmp_path / kind / "dataset")
        with pytest.raises(Exception, match="is not a prepared dataset"):
            FakeQueue(job).step()


@pytest.mark.slow
def test_a_step_loads_no_large_library_before_there_are_curves(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=2)
    code = (
        "import sys; from trainer.__main__ import main; main(sys.argv[1:]);"
        "print(sorted({'torch', 'diffusers', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "study", str(job)], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert len(json.loads(done.stdout)["goals"]) == 2
