"""The specs of children: candidates are checked before anything runs; folds and the final run differ as they should."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden import check_sentences
from trainer.errors import UsageError
from trainer.protocol.spec import Spec, make_spec
from trainer.protocol.training_settings import Stage, Unfreeze
from trainer.studies.child_specs import Candidate, final_spec, make_candidates, measured_spec, parse_axis, scale_stages


def spec_of(**settings: object) -> Spec:
    return make_spec({"dataset": "x", **settings})


def grid(*axes: str, spec: Spec | None = None) -> tuple[Candidate, ...]:
    return make_candidates(spec or spec_of(), [parse_axis(axis) for axis in axes])


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


def test_bare_words_and_lists_are_values_too() -> None:
    assert [one.spec.training.optimizer for one in grid("training.optimizer=adamw,lion")] == ["adamw", "lion"]
    found = grid("training.optimizer_arguments.betas=[0.9, 0.99],[0.95, 0.98]")
    assert [one.spec.training.optimizer_arguments["betas"] for one in found] == [(0.9, 0.99), (0.95, 0.98)]


def test_a_setting_of_a_stage_has_the_index_of_the_stage() -> None:
    found = grid("stages.1.epochs=2,6", spec=STAGED)
    assert [one.spec.training.epochs for one in found] == [4, 8]


STAGED = spec_of(training={"epochs": 4}, stages=[{"epochs": 2}, {"epochs": 2}])
VALUES = ",".join(str(value) for value in range(1, 10))
#: Axes that are refused; the golden file has the sentence of each.
REFUSED: list[tuple[str, ...]] = [
    ("method.rank",),
    ("method.rank=8",),
    ("method.rank=8,16,8",),
    ("validation.draws=1,2",),
    ("base.source=a,b",),
    ("split.fold=1,2",),
    ("training.resolution=256,512",),
    ("objective.prediction=epsilon,v_prediction",),
    ("samples.steps=10,20",),
    # A table would replace a whole group, with the settings in it that may not be varied.
    ('base={source="a"},{source="b"}',),
    ('objective={prediction="epsilon"},{prediction="v_prediction"}',),
    ('samples={similarity_model="a"},{similarity_model="b"}',),
    ("training={epochs=999},{epochs=1000}",),
    ("stages=[{epochs=999}],[{epochs=1000}]",),
    ("stages=1,2",),
    ("training=1,2",),
    ("training.optimizer_arguments={},{betas=[0.9, 0.99]}",),
    ("stages.2.epochs=2,6",),
    ("stages.1.epochs=a,b",),
    ("method.rank=8,16", "stages=1,2"),
    ("method.rank=2026-12-01,2026-12-02",),
    # Only one of the combinations cannot be trained.
    ("training.learning_rate=1e-4,1", "training.optimizer=adamw,sgd"),
    ("method.rnak=8,16",),
    ("training.batch_size=0,4",),
    ("method.rank=8,16", "method.rank=4,32"),
    (f"method.rank={VALUES}", f"training.repeats={VALUES}"),
]


def test_axes_that_cannot_be_compared_are_refused_with_the_reason() -> None:
    sentences = {}
    for axes in REFUSED:
        with pytest.raises(UsageError) as refusal:
            grid(*axes, spec=STAGED if "stages" in axes[0] else None)
        sentences[" ".join(axes)] = refusal.value
    check_sentences(Path(__file__).parent / "golden" / "refused_axes.txt", sentences)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 200))
def test_scaled_stages_have_the_wanted_length_and_none_is_empty(lengths: list[int], epochs: int) -> None:
    stages = scale_stages(tuple(Stage(epochs=length) for length in lengths), epochs)
    assert sum(stage.epochs for stage in stages) == max(epochs, len(lengths))
    if epochs >= sum(lengths):
        exact = [length * epochs / sum(lengths) for length in lengths]
        assert all(abs(stage.epochs - share) < 1 for stage, share in zip(stages, exact, strict=True))


def test_the_epochs_of_unfreezing_scale_with_their_stage() -> None:
    unfreeze = (Unfreeze(blocks="a", from_epoch=1), Unfreeze(blocks="b", from_epoch=6))
    stages = scale_stages((Stage(epochs=10, unfreeze=unfreeze), Stage(epochs=10)), 8)
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
def test_a_measured_run_draws_samples_only_at_its_end_and_is_not_tested(epochs: int) -> None:
    spec = make_spec({"dataset": "x", "training": {"epochs": epochs}, "samples": {"unrelated_prompts": ["a car"]}})
    child = measured_spec(spec)
    assert child.samples.every_epochs == epochs
    assert child.samples.unrelated_prompts == ()
    assert not child.validation.test
    assert child.training == spec.training
