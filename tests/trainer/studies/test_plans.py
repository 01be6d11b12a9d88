"""What the runs of a study differ in from their job, and how stages are made to fit another length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.protocol.settings import Stage, Unfreeze
from trainer.protocol.spec import make_spec
from trainer.studies.plans import child_spec, final_spec, scaled


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 200))
def test_scaled_stages_have_the_wanted_length_and_none_vanishes(lengths: list[int], epochs: int) -> None:
    stages = scaled(tuple(Stage(epochs=length) for length in lengths), epochs)
    assert sum(stage.epochs for stage in stages) == max(epochs, len(lengths))
    if epochs >= sum(lengths):
        exact = [length * epochs / sum(lengths) for length in lengths]
        assert all(abs(stage.epochs - share) < 1 for stage, share in zip(stages, exact, strict=True))


def test_the_epochs_of_unfreezing_move_with_their_stage() -> None:
    unfreeze = (Unfreeze(blocks="a", from_epoch=1), Unfreeze(blocks="b", from_epoch=6))
    stages = scaled((Stage(epochs=10, unfreeze=unfreeze), Stage(epochs=10)), 8)
    assert [stage.epochs for stage in stages] == [4, 4]
    assert [one.from_epoch for one in stages[0].unfreeze] == [1, 3]


def test_the_final_run_of_a_staged_job_is_a_valid_job() -> None:
    spec = make_spec(
        {
            "dataset": "x",
            "training": {"epochs": 20},
            "stages": [
                {"epochs": 10, "learning_rate": 1e-4},
                {"epochs": 10, "unfreeze": [{"blocks": "b", "from_epoch": 9}]},
            ],
        }
    )
    final = final_spec(spec, 3)
    assert final.training.epochs == 3
    assert [stage.epochs for stage in final.stages] == [2, 1]
    assert final.stages[1].unfreeze[0].from_epoch == 1
    assert final.validation.test


@pytest.mark.parametrize("epochs", [1, 20, 1000])
def test_a_child_draws_samples_at_its_end_alone_and_looks_at_no_test(epochs: int) -> None:
    spec = make_spec({"dataset": "x", "training": {"epochs": epochs}, "samples": {"unrelated_prompts": ["a car"]}})
    child = child_spec(spec)
    assert child.samples.every_epochs == epochs
    assert child.samples.unrelated_prompts == ()
    assert not child.validation.test
    assert child.training == spec.training
