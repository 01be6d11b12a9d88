"""A comparison: the worse are ended early and stay ended, the winner is tested once, and doubts are said."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.trainer.studies.studying import (
    all_events,
    epochs_of,
    events_of,
    fake_children,
    is_alive,
    make_study,
    start_study,
    wait_until,
)
from trainer.__main__ import main
from trainer.protocol import events
from trainer.protocol.events import EXIT_FINISHED, EXIT_REFUSED, EXIT_STOPPED, Exported, Finished, Started
from trainer.protocol.spec import Spec, read_spec
from trainer.studies.children import End
from trainer.studies.compare import Halving, run_compare
from trainer.studies.grid import candidates, parse_axis
from trainer.studies.results import StudyResult

pytestmark = pytest.mark.timeout(180)

#: Best of these is 3e-4; 2.9e-4 is next to it.
RATES = "training.learning_rate=1e-4,2.9e-4,3e-4,1e-3"


def compare(folder: Path, spec: Spec, *axes: str, finishes: bool = False, **halving: int | None) -> StudyResult:
    found = candidates(spec, [parse_axis(axis) for axis in axes or (RATES,)])
    rule = Halving(**{"first_epoch": 2, **halving})  # type: ignore[arg-type]
    return run_compare(folder / "job", spec, found, rule, fake_children(), finishes=finishes)


def child(folder: Path, name: str) -> Path:
    return folder / "job" / ("winner" if name == "winner" else f"candidates/{name}")


def test_the_worse_half_ends_early_and_the_best_wins(tmp_path: Path) -> None:
    spec = make_study(tmp_path, {"*": {"epoch_s": 0.25}})
    result = compare(tmp_path, spec)
    assert result.end is End.FINISHED
    assert result.page.verdict[0].startswith("learning rate 0.0003 wins: 63.3 % of the base's validation loss")
    assert "2 of 4 candidates were ended early, which saved 12 epochs." in result.page.verdict
    assert [len(epochs_of(child(tmp_path, f"c0{place}"))) for place in (1, 2, 3, 4)] == [2, 8, 8, 2]
    assert [row.cells[0] for row in result.page.rows] == ["c03", "c02", "c01", "c04"]
    assert [row.is_faint for row in result.page.rows] == [False, False, True, True]
    assert (tmp_path / "job" / "charts" / "candidates.png").stat().st_size > 10_000


def test_nobody_is_ended_when_all_are_asked_for(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    compare(tmp_path, spec, keep_one_in=None)
    assert [len(epochs_of(child(tmp_path, f"c0{place}"))) for place in (1, 2, 3, 4)] == [8, 8, 8, 8]


def test_candidates_share_split_and_seeds_and_look_at_no_test(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    compare(tmp_path, spec)
    specs = [read_spec(child(tmp_path, f"c0{place}")) for place in (1, 2, 3, 4)]
    assert {one.training.seed for one in specs} == {spec.training.seed}
    assert {one.split for one in specs} == {spec.split}
    assert not any(one.validation.test for one in specs)
    assert not any(events_of(child(tmp_path, f"c0{place}"), events.Tested) for place in (1, 2, 3, 4))


def test_what_chance_may_have_decided_is_said(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    verdict = compare(tmp_path, spec, "training.learning_rate=2.999e-4,3e-4").page.verdict
    assert any(
        sentence.startswith("learning rate 0.0002999 (") and sentence.endswith("cannot be told from it.")
        for sentence in verdict
    )


def test_a_clear_loser_is_worse_by_more_than_chance(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    result = compare(tmp_path, spec, "training.learning_rate=1e-4,3e-4")
    assert "Every other candidate is worse by more than chance." in result.page.verdict
    beside, interval = result.page.rows[1].cells[3:5]
    assert beside.startswith("+")
    assert interval.count("+") == 2


def test_a_failed_candidate_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    spec = make_study(tmp_path, {"c03": {"fails": True}})
    result = compare(tmp_path, spec)
    assert result.page.verdict[0].startswith("learning rate 0.00029 wins")
    assert "learning rate 0.0003 failed: The device is full. Take less." in result.page.verdict
    assert result.page.rows[-1].cells[0] == "c03"


def test_the_winner_is_tested_and_exported_once_without_training_again(tmp_path: Path) -> None:
    spec = make_study(tmp_path, samples={"every_epochs": 3})
    result = compare(tmp_path, spec, finishes=True)
    winner = child(tmp_path, "winner")
    assert any(sentence.startswith("On the test pictures its loss is") for sentence in result.page.verdict)
    assert len(events_of(winner, events.Tested)) == 1
    assert len(events_of(winner, Finished)) == 1
    assert epochs_of(winner) == list(range(1, 9)), "those of the candidate, none trained twice"
    assert read_spec(winner).validation.test
    assert read_spec(winner).samples.every_epochs == 3
    assert read_spec(winner).training.learning_rate == 3e-4


def test_without_finish_the_winner_waits_for_a_command_that_is_named(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    result = compare(tmp_path, spec)
    winner = child(tmp_path, "winner")
    assert result.page.command == f"python -m trainer run {winner}"
    assert not events_of(winner, Finished)
    assert not events_of(winner, Exported)
    assert [event.seq for event in all_events(winner)] == list(range(1, len(all_events(winner)) + 1))


def test_checkpoints_of_the_winner_take_no_second_room(tmp_path: Path) -> None:
    spec = make_study(tmp_path)
    weights = child(tmp_path, "c02") / "checkpoints" / "step-00000001" / "weights"
    weights.parent.mkdir(parents=True)
    weights.write_text("w", encoding="utf-8")
    child_spec = spec.model_copy(
        update={
            "training": spec.training.model_copy(update={"learning_rate": 3e-4}),
            "validation": spec.validation.model_copy(update={"test": False}),
        }
    )
    child_spec.write(child(tmp_path, "c02"))
    compare(tmp_path, spec, "training.learning_rate=1e-4,3e-4")
    copied = child(tmp_path, "winner") / "checkpoints" / "step-00000001" / "weights"
    assert copied.samefile(weights)
    assert not (child(tmp_path, "winner") / "events.jsonl").samefile(child(tmp_path, "c02") / "events.jsonl")


def test_a_failed_candidate_that_wins_at_its_second_try_puts_the_first_winner_aside(tmp_path: Path) -> None:
    spec = make_study(tmp_path, {"c02": {"fails": True}})
    axis = "training.learning_rate=2.9e-4,3e-4"
    compare(tmp_path, spec, axis, finishes=True)
    (tmp_path / "job" / "behaviour.json").write_text("{}", encoding="utf-8")
    result = compare(tmp_path, spec, axis, finishes=True)
    assert result.page.verdict[0].startswith("learning rate 0.0003 wins")
    assert read_spec(child(tmp_path, "winner")).training.learning_rate == 3e-4
    assert read_spec(tmp_path / "job" / "winner-before-1").training.learning_rate == 2.9e-4
    compare(tmp_path, spec, axis, finishes=True)
    assert len(events_of(child(tmp_path, "winner"), Started)) == 2, "the candidate's and its own: nothing is done twice"


def test_a_varied_setting_that_does_nothing_is_told(tmp_path: Path) -> None:
    spec = make_study(tmp_path, method={"kind": "ia3"})
    notes = compare(tmp_path, spec, "method.rank=8,32").page.notes
    assert any("With rank 8: method.rank and method.alpha do nothing for ia3." in note for note in notes)


@pytest.mark.slow
def test_stopped_and_asked_again_it_decides_the_same_and_the_ended_stay_ended(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"epoch_s": 0.25}})
    arguments = ("compare", str(tmp_path / "job"), "--vary", RATES, "--parallel", "2", "--finish")
    state = tmp_path / "job" / "study.json"
    with start_study(*arguments) as process:
        wait_until(lambda: state.exists() and json.loads(state.read_bytes())["rungs"])
        wait_until(lambda: len(epochs_of(child(tmp_path, "c03"))) >= 3)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, errors
    assert "leads so far" in said
    assert "Stopped with 2 candidates still to train" in said
    assert not any(is_alive(child(tmp_path, f"c0{place}")) for place in (1, 2, 3, 4))
    decided = json.loads(state.read_bytes())["rungs"]
    starts = len(events_of(child(tmp_path, "c01"), Started))

    with start_study(*arguments) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_FINISHED, errors
    assert "learning rate 0.0003 wins" in said
    assert json.loads(state.read_bytes())["rungs"] == decided
    assert len(events_of(child(tmp_path, "c01"), Started)) == starts
    assert epochs_of(child(tmp_path, "c03")) == list(range(1, 9))


@pytest.mark.slow
def test_killed_between_the_looks_it_decides_by_what_the_runs_said(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"epoch_s": 0.3}})
    arguments = ("compare", str(tmp_path / "job"), "--vary", RATES, "--parallel", "2")
    with start_study(*arguments) as process:
        wait_until(lambda: len(epochs_of(child(tmp_path, "c01"))) >= 1)
        process.kill()
    with start_study(*arguments) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_FINISHED, errors
    assert "learning rate 0.0003 wins" in said
    [first] = json.loads((tmp_path / "job" / "study.json").read_bytes())["rungs"]
    assert (first["epoch"], first["ended"]) == (2, ["c01", "c04"])


@pytest.mark.slow
def test_a_budget_of_time_ends_it_with_what_is_known(tmp_path: Path) -> None:
    make_study(tmp_path, {"*": {"epoch_s": 0.5}})
    arguments = ("--vary", RATES, "--parallel", "4", "--budget-hours", str(2.5 / 3600))
    with start_study("compare", str(tmp_path / "job"), *arguments) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, errors
    assert "still to train; started again, it goes on" in said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--vary", "training.learning_rate=1e-4,1"], "learning_rate 1 is too high for adamw"),
        (["--vary", RATES, "--keep-one-in", "1"], "--keep-one-in must be at least 2"),
        (["--vary", RATES, "--first-look", "1"], "--first-look must be at least 2"),
    ],
)
def test_bad_requests_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    make_study(tmp_path)
    assert main(["compare", str(tmp_path / "job"), *arguments]) == EXIT_REFUSED
    assert why in capsys.readouterr().err
    assert not (tmp_path / "job" / "candidates").exists()
