"""`python -m trainer kfold`, `compare` and `study`: stopping, killing and resuming lose nothing and repeat nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.studies.fake_queue import FakeQueue, request_study
from tests.trainer.studies.study_helpers import (
    RATES,
    epochs_of,
    events_of,
    is_alive,
    make_study,
    start_study,
    wait_until,
)
from trainer.__main__ import main
from trainer.exchange.job_dir import read_spec
from trainer.protocol.events import (
    EXIT_BUSY,
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_REFUSED,
    EXIT_STOPPED,
    Finished,
    Started,
    Stopped,
)
from trainer.protocol.study import StudyStep
from trainer.studies.study_folder import StudyFolder, StudyKind

pytestmark = pytest.mark.timeout(180)
Capture = pytest.CaptureFixture[str]


def run_to_end(*arguments: str, status: int = EXIT_FINISHED) -> str:
    """Run a study with fake trainers and return its standard output."""
    with start_study(*arguments) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    return output


def hurry(folder: Path) -> None:
    """Let the trainers that start from now on not wait."""
    (folder / "job" / "behavior.json").write_text("{}", encoding="utf-8")


@pytest.mark.slow
def test_sigterm_stops_every_fold_and_the_same_command_continues(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"epoch_s": 0.2}})
    job = tmp_path / "job"
    arguments = ("kfold", str(job), "--folds", "2", "--parallel", "2")
    folds = (job / "folds/1", job / "folds/2")
    with start_study(*arguments) as process:
        wait_until(lambda: all(epochs_of(fold) for fold in folds))
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, errors
    assert str(job / "results.md") in output
    for fold in folds:
        assert not is_alive(fold)
        assert len(events_of(fold, Stopped)) == 1

    hurry(tmp_path)
    run_to_end(*arguments)
    assert epochs_of(folds[0]) == list(range(1, 9))
    assert len(events_of(job / "final", Finished)) == 1


@pytest.mark.slow
def test_a_killed_study_leaves_its_folds_running_and_adopts_them_when_it_continues(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"epoch_s": 0.3}})
    job = tmp_path / "job"
    arguments = ("kfold", str(job), "--folds", "2", "--parallel", "2")
    folds = (job / "folds/1", job / "folds/2")
    with start_study(*arguments) as process:
        wait_until(lambda: all(epochs_of(fold) for fold in folds))
        process.kill()
    assert all(is_alive(fold) for fold in folds)

    hurry(tmp_path)
    run_to_end(*arguments)
    for fold in folds:
        assert len(events_of(fold, Started)) == 1
        assert epochs_of(fold) == list(range(1, 9))
    assert len(events_of(job / "final", Finished)) == 1


@pytest.mark.slow
def test_a_stopped_comparison_continues_with_the_same_decisions(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"epoch_s": 0.25}})
    job = tmp_path / "job"
    arguments = ("compare", str(job), "--vary", RATES, "--parallel", "2", "--finish")
    candidates = {name: job / "candidates" / name for name in ("c01", "c02", "c03", "c04")}
    with start_study(*arguments) as process:
        wait_until(lambda: bool(rungs_of(job)))
        wait_until(lambda: len(epochs_of(candidates["c03"])) >= 3)
        process.send_signal(signal.SIGINT)
        _output, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, errors
    assert not any(is_alive(folder) for folder in candidates.values())
    decided = rungs_of(job)
    starts = len(events_of(candidates["c01"], Started))

    hurry(tmp_path)
    run_to_end(*arguments)
    assert read_spec(job / "winner").training.learning_rate == 3e-4
    assert rungs_of(job) == decided
    assert len(events_of(candidates["c01"], Started)) == starts
    assert epochs_of(candidates["c03"]) == list(range(1, 9))


@pytest.mark.slow
def test_a_comparison_that_is_killed_between_its_rungs_decides_by_the_events_of_its_runs(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"epoch_s": 0.3}})
    job = tmp_path / "job"
    arguments = ("compare", str(job), "--vary", RATES, "--parallel", "2")
    with start_study(*arguments) as process:
        wait_until(lambda: bool(epochs_of(job / "candidates/c01")))
        process.kill()
    hurry(tmp_path)
    output = run_to_end(*arguments)
    assert read_spec(job / "winner").training.learning_rate == 3e-4
    assert f"python -m trainer run {job / 'winner'}" in output
    [first] = rungs_of(job)
    assert (first["epoch"], first["ended"]) == (2, ["c01", "c04"])


@pytest.mark.slow
def test_a_time_budget_ends_a_comparison_with_what_is_known(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"epoch_s": 0.5}})
    arguments = ("--vary", RATES, "--parallel", "4", "--budget-hours", str(2.5 / 3600))
    run_to_end("compare", str(tmp_path / "job"), *arguments, status=EXIT_STOPPED)
    assert (tmp_path / "job" / "results.md").exists()


@pytest.mark.slow
def test_a_study_of_which_all_runs_fail_exits_as_failed(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"fails": True}})
    run_to_end("kfold", str(tmp_path / "job"), "--folds", "2", status=EXIT_FAILED)


def rungs_of(job: Path) -> list[dict[str, Any]]:
    path = job / "study.json"
    rungs: list[dict[str, Any]] = json.loads(path.read_bytes())["rungs"] if path.exists() else []
    return rungs


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["compare", "--vary", "training.learning_rate=1e-4,1"], "learning_rate 1 is too high for adamw"),
        (["compare", "--vary", RATES, "--keep-one-in", "1"], "keep_one_in 1 is not between 2"),
        (["compare", "--vary", RATES, "--first-look", "1"], "first_look 1 is not between 2"),
        (["kfold", "--folds", "7"], "6 folds at most."),
        (["kfold", "--folds", "21"], "folds 21 is not between 2"),
    ],
)
def test_bad_requests_are_refused_before_anything_starts(
    tmp_path: Path, capsys: Capture, arguments: list[str], reason: str
) -> None:
    make_study(tmp_path)
    assert main([arguments[0], str(tmp_path / "job"), *arguments[1:]]) == EXIT_REFUSED
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "job" / "candidates").exists()
    assert not (tmp_path / "job" / "folds").exists()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"kind": "kfold", "folds": 7}, "6 folds at most."),
        (
            {"kind": "compare", "vary": ["training.learning_rate=1e-4,1"]},
            "With training.learning_rate 1: training.learning_rate 1 is too high for adamw",
        ),
        ({"kind": "compare", "vary": ["method.rnak=4,8"]}, "did you mean method.rank"),
        ({"kind": "compare", "vary": ["method.rank"]}, "“method.rank” is not a setting with its values."),
    ],
)
def test_a_first_step_that_is_refused_says_why_and_writes_nothing(
    tmp_path: Path, capsys: Capture, request_: dict[str, Any], reason: str
) -> None:
    job = request_study(tmp_path, **request_)
    before = sorted(job.rglob("*"))
    assert main(["study", str(job)]) == EXIT_REFUSED
    assert reason in capsys.readouterr().err
    assert sorted(job.rglob("*")) == before


def test_a_step_is_printed_as_one_line(tmp_path: Path, capsys: Capture) -> None:
    job = request_study(tmp_path, "kfold", folds=2)
    assert main(["study", str(job)]) == EXIT_FINISHED
    [line] = capsys.readouterr().out.splitlines()
    assert StudyStep.model_validate_json(line) == FakeQueue(job).step()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no study_request.json"),
        ("{", "is not JSON"),
        ('{"kind": "kfold", "folds": 21}', "folds 21 is not between 2 and 20."),
        ('{"kind": "kflod"}', "A study is of kind kfold or compare, not 'kflod'."),
        ('{"kind": "compare", "vary": ["method.rank=4,8"], "keep_one_on": 3}', "did you mean keep_one_in?"),
    ],
)
def test_an_invalid_request_is_refused(tmp_path: Path, capsys: Capture, content: str | None, reason: str) -> None:
    job = request_study(tmp_path, "kfold")
    (job / "study_request.json").unlink()
    if content is not None:
        (job / "study_request.json").write_text(content, encoding="utf-8")
    assert main(["study", str(job)]) == EXIT_REFUSED
    assert reason in capsys.readouterr().err


def test_a_step_of_a_busy_study_exits_as_busy(tmp_path: Path) -> None:
    job = request_study(tmp_path, "kfold", folds=2)
    with StudyFolder(job, StudyKind.KFOLD, "2 folds", read_spec(job)):
        assert main(["study", str(job)]) == EXIT_BUSY
