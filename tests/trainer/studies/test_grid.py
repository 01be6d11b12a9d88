"""Candidates: every combination of the values, checked before anything runs, and refused by name."""

from __future__ import annotations

import pytest

from trainer.errors import UsageError
from trainer.protocol.spec import Spec, make_spec
from trainer.studies.grid import Candidate, candidates, parse_axis


def spec_of(**settings: object) -> Spec:
    return make_spec({"dataset": "x", **settings})


def grid(*axes: str, spec: Spec | None = None) -> tuple[Candidate, ...]:
    return candidates(spec or spec_of(), [parse_axis(axis) for axis in axes])


def test_every_combination_is_a_candidate_and_differs_in_nothing_else() -> None:
    found = grid("training.learning_rate=1e-4,3e-4,1e-3", "method.rank=8,32")
    assert [(one.spec.training.learning_rate, one.spec.method.rank) for one in found] == [
        (1e-4, 8),
        (1e-4, 32),
        (3e-4, 8),
        (3e-4, 32),
        (1e-3, 8),
        (1e-3, 32),
    ]
    assert [one.name for one in found] == ["c01", "c02", "c03", "c04", "c05", "c06"]
    assert found[2].label == "learning rate 0.0003, rank 8"
    back = found[5].spec.model_copy(update={"training": spec_of().training, "method": spec_of().method})
    assert back == spec_of()


def test_bare_words_lists_and_tables_are_values_too() -> None:
    assert [one.spec.training.optimizer for one in grid("training.optimizer=adamw,lion")] == ["adamw", "lion"]
    found = grid("training.optimizer_arguments={betas=[0.9, 0.99]},{betas=[0.95, 0.98]}")
    assert [one.spec.training.optimizer_arguments["betas"] for one in found] == [(0.9, 0.99), (0.95, 0.98)]


def test_a_setting_of_a_stage_goes_by_its_number() -> None:
    staged = spec_of(training={"epochs": 4}, stages=[{"epochs": 2}, {"epochs": 2}])
    found = grid("stages.1.epochs=2,6", spec=staged)
    assert [one.spec.training.epochs for one in found] == [4, 8]
    with pytest.raises(UsageError, match=r"stages\.2\.epochs is not a setting of this job"):
        grid("stages.2.epochs=2,6", spec=staged)


def test_all_that_cannot_be_trained_with_is_named_and_nothing_else() -> None:
    with pytest.raises(UsageError) as refused:
        grid("training.learning_rate=1e-4,1", "training.optimizer=adamw,sgd")
    assert "With training.learning_rate 1, training.optimizer adamw: learning_rate 1 is too high" in str(refused.value)
    assert "sgd" not in str(refused.value)
    with pytest.raises(UsageError, match=r"did you mean method\.rank"):
        grid("method.rnak=8,16")
    with pytest.raises(UsageError, match=r"training\.batch_size 0 is outside 1"):
        grid("training.batch_size=0,4")


@pytest.mark.parametrize(
    ("axis", "why"),
    [
        ("method.rank", "is not GROUP.NAME=VALUE"),
        ("method.rank=8", "has one value"),
        ("method.rank=8,16,8", "has 8 twice"),
        ("validation.draws=1,2", "changes what is measured"),
        ("base.source=a,b", "changes what is measured"),
        ("split.fold=1,2", "changes what is measured"),
        ("training.resolution=256,512", "changes what is measured"),
        ("objective.prediction=epsilon,v_prediction", "changes what is measured"),
        ("samples.steps=10,20", "No result hangs on samples.steps"),
    ],
)
def test_what_may_not_be_varied_says_why(axis: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_axis(axis)


def test_a_setting_is_varied_once_and_the_grid_has_an_end() -> None:
    with pytest.raises(UsageError, match="varied twice"):
        grid("method.rank=8,16", "method.rank=4,32")
    values = ",".join(str(value) for value in range(1, 10))
    with pytest.raises(UsageError, match="These are 81 candidates"):
        grid(f"method.rank={values}", f"training.repeats={values}")
