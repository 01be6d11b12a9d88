"""Cross-validation: each fold a run, the final one as long as they were best, and nothing lost or done twice."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.trainer.studies.studying import (
    epochs_of,
    events_of,
    fake_children,
    is_alive,
    make_study,
    start_study,
    wait_until,
)
from trainer.__main__ import main
from trainer.errors import JobFolderBusyError, UsageError
from trainer.protocol import events
from trainer.protocol.events import EXIT_FINISHED, EXIT_REFUSED, EXIT_STOPPED, Finished, Started, Stopped
from trainer.protocol.settings import SplitKind
from trainer.protocol.spec import read_spec
from trainer.studies.children import End
from trainer.studies.kfold import run_kfold
from trainer.studies.state import Study, StudyKind

pytestmark = pytest.mark.timeout(180)


def child(folder: Path, name: str) -> Path:
    return folder / "job" / ("final" if name == "final" else f"folds/{name}")


def test_the_final_run_has_all_pictures_and_the_folds_mean_best_epoch(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    result = run_kfold(tmp_path / "job", spec, 3, fake_children())

    # The fake's folds are best after epochs 5, 6 and 7.
    final = read_spec(child(tmp_path, "final"))
    assert result.end is End.FINISHED
    assert final.training.epochs == 6
    assert final.split.kind is SplitKind.ALL
    assert not final.early_stopping.enabled
    assert epochs_of(child(tmp_path, "final")) == [1, 2, 3, 4, 5, 6]


def test_the_test_pictures_are_looked_at_once(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    run_kfold(tmp_path / "job", spec, 3, fake_children())
    looks = [len(events_of(child(tmp_path, name), events.Tested)) for name in ("1", "2", "3", "final")]
    assert looks == [0, 0, 0, 1]
    for fold in (1, 2, 3):
        one = read_spec(child(tmp_path, str(fold)))
        assert (one.split.kind, one.split.fold, one.split.folds) == (SplitKind.FOLD, fold, 3)


def test_the_page_tells_mean_interval_and_each_fold(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    result = run_kfold(tmp_path / "job", spec, 3, fake_children())
    markdown = (tmp_path / "job" / "results.md").read_text(encoding="utf-8")
    assert result.page.verdict[0] in markdown
    assert "Over 3 folds the best validation loss is 80.6 % of the base's on average" in result.page.verdict[0]
    assert "after 6.0 epochs (median 6)" in result.page.verdict[0]
    assert [row.cells[0] for row in result.page.rows] == [
        "fold 1",
        "fold 2",
        "fold 3",
        "mean of the folds",
        "final, all pictures",
    ]
    assert (tmp_path / "job" / "charts" / "folds.png").stat().st_size > 10_000


def test_folds_that_were_still_falling_ask_for_more_epochs(tmp_path: Path) -> None:
    spec = make_study(tmp_path, training={"epochs": 4})
    result = run_kfold(tmp_path / "job", spec, 3, fake_children())
    assert "In 3 of 3 folds the last of 4 epochs was the best: more epochs may do better." in result.page.verdict


def test_a_failed_fold_is_left_out_and_told(tmp_path: Path) -> None:
    spec = make_study(tmp_path, {"2": {"fails": True}})
    result = run_kfold(tmp_path / "job", spec, 3, fake_children())
    assert result.end is End.FINISHED
    assert "Over 2 folds" in result.page.verdict[0]
    assert "Fold 2 failed and is left out: The device is full. Take less." in result.page.verdict


def test_no_final_run_without_a_single_fold(tmp_path: Path) -> None:
    spec = make_study(tmp_path, {"*": {"fails": True}})
    assert run_kfold(tmp_path / "job", spec, 2, fake_children()).end is End.FAILED
    assert not child(tmp_path, "final").exists()


def test_asked_again_a_finished_study_starts_nothing(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    first = run_kfold(tmp_path / "job", spec, 3, fake_children())
    again = run_kfold(tmp_path / "job", spec, 3, fake_children())
    assert first.page == again.page
    assert [len(events_of(child(tmp_path, name), Started)) for name in ("1", "2", "3", "final")] == [1, 1, 1, 1]


@pytest.mark.slow
def test_sigterm_stops_every_fold_and_the_same_command_goes_on(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"epoch_s": 0.2}})
    arguments = ("kfold", str(tmp_path / "job"), "--folds", "2", "--parallel", "2")
    with start_study(*arguments) as process:
        wait_until(lambda: min(len(epochs_of(child(tmp_path, name))) for name in "12") >= 1)
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, errors
    assert "Stopped with fold 1 and fold 2 still to train" in said
    for name in "12":
        assert not is_alive(child(tmp_path, name))
        assert len(events_of(child(tmp_path, name), Stopped)) == 1

    with start_study(*arguments) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_FINISHED, errors
    assert "Over 2 folds" in said
    assert epochs_of(child(tmp_path, "1")) == list(range(1, 9))


@pytest.mark.slow
def test_killed_it_leaves_its_folds_running_and_takes_them_over_when_asked_again(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"epoch_s": 0.3}})
    arguments = ("kfold", str(tmp_path / "job"), "--folds", "2", "--parallel", "2")
    with start_study(*arguments) as process:
        wait_until(lambda: min(len(epochs_of(child(tmp_path, name))) for name in "12") >= 1)
        process.kill()
    assert is_alive(child(tmp_path, "1"))
    assert is_alive(child(tmp_path, "2"))

    with start_study(*arguments) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_FINISHED, errors
    for name in "12":
        assert len(events_of(child(tmp_path, name), Started)) == 1
        assert epochs_of(child(tmp_path, name)) == list(range(1, 9))
    assert len(events_of(child(tmp_path, "final"), Finished)) == 1


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    run_kfold(tmp_path / "job", spec, 2, fake_children())
    with pytest.raises(UsageError, match=r"another study, a k-fold cross-validation \(2 folds\)"):
        run_kfold(tmp_path / "job", spec, 3, fake_children())
    changed = spec.model_copy(update={"name": "other"})
    with pytest.raises(UsageError, match="was changed after the study began"):
        run_kfold(tmp_path / "job", changed, 2, fake_children())


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    with Study(tmp_path / "job", StudyKind.KFOLD, "2 folds", spec), pytest.raises(JobFolderBusyError):
        run_kfold(tmp_path / "job", spec, 2, fake_children())


def test_more_folds_than_different_pictures_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(tmp_path)
    assert main(["kfold", str(tmp_path / "job"), "--folds", "7"]) == EXIT_REFUSED
    assert "Take 6 folds at most." in capsys.readouterr().err
    assert main(["kfold", str(tmp_path / "job"), "--folds", "21"]) == EXIT_REFUSED
    assert not (tmp_path / "job" / "folds").exists()


def test_the_state_remembers_where_each_run_went(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    run_kfold(tmp_path / "job", spec, 2, fake_children(devices=("0", "1")))
    state = json.loads((tmp_path / "job" / "study.json").read_text(encoding="utf-8"))
    assert sorted(state["devices"]) == ["final", "fold 1", "fold 2"]
    assert not list((tmp_path / "job").glob("*.part"))
