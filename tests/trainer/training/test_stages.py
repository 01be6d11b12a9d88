"""Stages: which epochs they have, what they train, at which rates, and which parameters decay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import peft
import pytest
from torch import nn

from trainer.errors import BadSpecError
from trainer.protocol.spec import make_spec
from trainer.protocol.training_settings import Stage
from trainer.training.stages import (
    check_patterns,
    decayed_parameters,
    is_trained,
    parameter_groups,
    plan_stages,
    rate_of,
    set_trainable,
    stage_at,
    trained_parts,
)


class Model:
    """Two modules with five blocks, with the interface of a method."""

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
    runs = plan_stages(stages({"epochs": 3}, {"epochs": 2}))

    assert [(run.number, run.first_epoch, run.last_epoch) for run in runs] == [(1, 1, 3), (2, 4, 5)]
    assert [stage_at(runs, epoch).number for epoch in (1, 3, 4, 5, 6)] == [1, 1, 2, 2, 2]
    assert runs[1].epoch_in_stage(5) == 2


def test_a_stage_starts_or_unfreezes_at_its_epochs() -> None:
    (run,) = plan_stages(stages({"epochs": 4, "unfreeze": [{"blocks": "unet.mid", "from_epoch": 3}]}))

    assert [run.starts_or_unfreezes_at(epoch) for epoch in (1, 2, 3, 4)] == [True, False, True, False]


def test_blocks_are_trained_frozen_and_unfrozen_later() -> None:
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


def test_blocks_that_are_unfrozen_later_are_a_group_of_their_own() -> None:
    """Libraries count steps per group: in a shared group they would start without bias correction."""
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


def test_text_encoders_have_their_own_rate_half_by_default() -> None:
    model = Model()
    (plain,) = stages({"epochs": 1}, learning_rate=1e-3)
    (explicit,) = stages({"epochs": 1}, learning_rate=1e-3, text_encoder_learning_rate=1e-5)

    assert rates(model, plain)["text_encoder.layers.0.weight"] == 5e-4
    assert rates(model, explicit)["text_encoder.layers.0.weight"] == 1e-5
    assert rates(model, explicit)["unet.up.weight"] == 1e-3


def test_each_text_encoder_and_the_b_of_a_lora_may_have_their_own_rate() -> None:
    (plain,) = stages({"epochs": 1}, learning_rate=1e-3, text_encoder_learning_rate=1e-5)
    (own,) = stages({"epochs": 1}, learning_rate=1e-3, text_encoder_2_learning_rate=3e-6, lora_plus_ratio=4)
    first, second = "text_encoder.layers.0.q_proj.lora_A", "text_encoder_2.layers.0.q_proj.lora_A"

    assert [rate_of(name, [], plain) for name in (first, second)] == [1e-5, 1e-5]
    assert [rate_of(name, [], own) for name in (first, second)] == [5e-4, 3e-6]
    assert rate_of("unet.up.to_q.lora_A", [], own) == 1e-3
    assert rate_of("unet.up.to_q.lora_B", [], own) == pytest.approx(4e-3)
    assert rate_of(second.replace("lora_A", "lora_B"), [], own) == pytest.approx(1.2e-5)


def test_layer_decay_lowers_the_rate_of_each_earlier_block() -> None:
    (stage,) = stages({"epochs": 1}, learning_rate=1e-2, layer_decay=0.5)

    found = rates(Model(), stage)

    assert [found[f"unet.{block}.weight"] for block in ("up", "mid", "down")] == [1e-2, 5e-3, 2.5e-3]
    assert [found[f"text_encoder.layers.{layer}.weight"] for layer in (1, 0)] == [5e-3, 2.5e-3]


def test_an_unknown_block_is_refused_with_a_list_of_blocks() -> None:
    runs = plan_stages(stages({"epochs": 1, "freeze": ["unet.dwon"]}))

    with pytest.raises(BadSpecError) as refusal:
        check_patterns(Model(), runs)  # type: ignore[arg-type]

    assert "'unet.dwon'" in refusal.value.message
    assert "unet.down, unet.mid, unet.up" in refusal.value.hint


def test_a_stage_that_trains_nothing_is_refused() -> None:
    runs = plan_stages(stages({"epochs": 1}, {"epochs": 1, "train": ["mid"], "freeze": ["unet"]}))

    with pytest.raises(BadSpecError, match="Stage 2 trains nothing"):
        check_patterns(Model(), runs)  # type: ignore[arg-type]


def test_trained_parts_count_trainable_and_all_weights() -> None:
    model = Model()
    (stage,) = stages({"epochs": 1, "train": ["unet.up", "unet.mid"]})
    set_trainable(model, stage, epoch=1)  # type: ignore[arg-type]

    parts = {part.name: (part.trainable, part.total) for part in trained_parts(model)}  # type: ignore[arg-type]

    assert parts["unet.up"] == (4, 4)
    assert parts["unet.mid"] == (4, 4)
    assert parts["unet.down"] == (0, 6)
    assert not is_trained("unet.down.weight", stage, epoch=1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(10, 4)
        self.norm = nn.GroupNorm(2, 4)
        self.linear = nn.Linear(4, 4)
        self.conv = nn.Conv2d(4, 4, 3)


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    block = Block()

    assert decayed_parameters(block.named_parameters(), [block]) == {"linear.weight", "conv.weight"}


@pytest.mark.parametrize(
    ("config", "part", "is_decayed"),
    [
        (peft.LoraConfig(r=2, target_modules=["linear", "conv"]), "lora_A", True),
        (peft.LoraConfig(r=2, target_modules=["linear", "conv"]), "lora_B", True),
        (peft.LoraConfig(r=2, target_modules=["linear", "conv"], use_dora=True), "lora_magnitude_vector", False),
        (peft.IA3Config(target_modules=["linear", "conv"], feedforward_modules=["linear"]), "ia3_l", False),
        (peft.LoHaConfig(r=2, target_modules=["linear", "conv"]), "hada_w1_a", True),
        (peft.LoKrConfig(r=1, target_modules=["linear", "conv"]), "lokr_w1", True),
    ],
)
def test_factors_and_magnitudes_of_adapters_do_not_decay(config: peft.PeftConfig, part: str, is_decayed: bool) -> None:
    model: nn.Module = peft.inject_adapter_in_model(config, Block())
    named = [(name, parameter) for name, parameter in model.named_parameters() if part in name]
    assert len(named) >= 2

    assert decayed_parameters(named, [model]) == ({name for name, _ in named} if is_decayed else set())
