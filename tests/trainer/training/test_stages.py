"""Stages: which epoch is whose, what trains in it, and how fast each block goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest
from torch import nn

from trainer.errors import BadSpecError
from trainer.protocol.settings import Stage
from trainer.protocol.spec import make_spec
from trainer.training.stages import (
    check_patterns,
    is_trained,
    lay_out,
    parameter_groups,
    set_trainable,
    stage_at,
    trained_parts,
)


class Model:
    """Two modules of three blocks in all, as a method offers them."""

    def __init__(self) -> None:
        self._text_encoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
        self._unet = nn.ModuleDict({"down": nn.Linear(2, 2), "mid": nn.LayerNorm(2), "up": nn.Linear(2, 2, bias=False)})

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"text_encoder": self._text_encoder, "unet": self._unet}

    @property
    def blocks(self) -> Sequence[str]:
        return ["text_encoder.layers.0", "text_encoder.layers.1", "unet.down", "unet.mid", "unet.up"]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self.modules.items():
            yield from ((f"{prefix}.{name}", parameter) for name, parameter in module.named_parameters())


def stages(*content: dict[str, object], **training: object) -> tuple[Stage, ...]:
    return make_spec({"dataset": "/d", "training": training, "stages": list(content)}).plan


def trainable(model: Model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def rates(model: Model, stage: Stage) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group["lr"]
        for group in parameter_groups(model, stage)  # type: ignore[arg-type]
        for parameter in group["params"]
    }


def test_epochs_belong_to_their_stages_in_order() -> None:
    runs = lay_out(stages({"epochs": 3}, {"epochs": 2}))

    assert [(run.number, run.first_epoch, run.last_epoch) for run in runs] == [(1, 1, 3), (2, 4, 5)]
    assert [stage_at(runs, epoch).number for epoch in (1, 3, 4, 5, 6)] == [1, 1, 2, 2, 2]
    assert runs[1].epoch_of(5) == 2


def test_a_stage_is_told_where_it_begins_and_where_blocks_join() -> None:
    (run,) = lay_out(stages({"epochs": 4, "unfreeze": [{"blocks": "unet.mid", "from_epoch": 3}]}))

    assert [run.begins_anew(epoch) for epoch in (1, 2, 3, 4)] == [True, False, True, False]


def test_blocks_are_chosen_frozen_and_join_later() -> None:
    model = Model()
    (stage,) = stages(
        {
            "epochs": 3,
            "train": ["unet"],
            "freeze": ["down"],
            "unfreeze": [{"blocks": "text_encoder.layers.1", "from_epoch": 2}, {"blocks": "mid", "from_epoch": 3}],
        }
    )

    seen = []
    for epoch in (1, 2, 3):
        set_trainable(model, stage, epoch=epoch)  # type: ignore[arg-type]
        seen.append(trainable(model))

    text = {"text_encoder.layers.1.weight", "text_encoder.layers.1.bias"}
    assert seen == [
        {"unet.up.weight"},
        {"unet.up.weight"} | text,
        {"unet.up.weight", "unet.mid.weight", "unet.mid.bias"} | text,
    ]


def test_what_joins_at_another_epoch_is_a_group_of_its_own() -> None:
    """The libraries count steps for a group: one that is half frozen would begin without bias correction."""
    model = Model()
    (stage,) = stages({"epochs": 2, "train": ["unet"], "unfreeze": [{"blocks": "unet.down", "from_epoch": 2}]})
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    groups = [{names[id(p)] for p in group["params"]} for group in parameter_groups(model, stage)]  # type: ignore[arg-type]

    assert {"unet.down.weight"} in groups
    assert {"unet.up.weight"} in groups


def test_norms_and_biases_do_not_decay() -> None:
    model = Model()
    (stage,) = stages({"epochs": 1}, weight_decay=0.1)
    decayed = {id(p) for g in parameter_groups(model, stage) if g["weight_decay"] for p in g["params"]}  # type: ignore[arg-type]

    assert {name for name, parameter in model.named_parameters() if id(parameter) in decayed} == {
        "text_encoder.layers.0.weight",
        "text_encoder.layers.1.weight",
        "unet.down.weight",
        "unet.up.weight",
    }


def test_text_encoders_have_a_rate_of_their_own_half_by_default() -> None:
    model = Model()
    (plain,) = stages({"epochs": 1}, learning_rate=1e-3)
    (told,) = stages({"epochs": 1}, learning_rate=1e-3, text_encoder_learning_rate=1e-5)

    assert rates(model, plain)["text_encoder.layers.0.weight"] == 5e-4
    assert rates(model, told)["text_encoder.layers.0.weight"] == 1e-5
    assert rates(model, told)["unet.up.weight"] == 1e-3


def test_each_block_goes_slower_than_the_one_behind_it() -> None:
    (stage,) = stages({"epochs": 1}, learning_rate=1e-2, layer_decay=0.5)

    found = rates(Model(), stage)

    assert [found[f"unet.{block}.weight"] for block in ("up", "mid", "down")] == [1e-2, 5e-3, 2.5e-3]
    assert [found[f"text_encoder.layers.{layer}.weight"] for layer in (1, 0)] == [5e-3, 2.5e-3]


def test_a_name_that_is_no_block_is_refused_with_those_that_are() -> None:
    runs = lay_out(stages({"epochs": 1, "freeze": ["unet.dwon"]}))

    with pytest.raises(BadSpecError) as refusal:
        check_patterns(Model(), runs)  # type: ignore[arg-type]

    assert "Stage 1 names 'unet.dwon'" in str(refusal.value)
    assert "unet.down, unet.mid, unet.up" in str(refusal.value)


def test_a_stage_that_trains_nothing_is_refused() -> None:
    runs = lay_out(stages({"epochs": 1}, {"epochs": 1, "train": ["mid"], "freeze": ["unet"]}))

    with pytest.raises(BadSpecError, match="Stage 2 trains nothing"):
        check_patterns(Model(), runs)  # type: ignore[arg-type]


def test_parts_are_told_with_what_is_trained_of_how_much() -> None:
    model = Model()
    (stage,) = stages({"epochs": 1, "train": ["unet.up", "unet.mid"]})
    set_trainable(model, stage, epoch=1)  # type: ignore[arg-type]

    parts = {part.name: (part.trainable, part.total) for part in trained_parts(model)}  # type: ignore[arg-type]

    assert parts["unet.up"] == (4, 4)
    assert parts["unet.mid"] == (4, 4)
    assert parts["unet.down"] == (0, 6)
    assert not is_trained("unet.down.weight", stage, epoch=1)
