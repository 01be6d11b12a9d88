"""Which parameters get weight decay, on the layers and names that models and peft really have."""

from __future__ import annotations

import peft
import pytest
from torch import nn

from trainer.training.weight_decay import split_decay


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(10, 4)
        self.norm = nn.GroupNorm(2, 4)
        self.linear = nn.Linear(4, 4)
        self.conv = nn.Conv2d(4, 4, 3)


def trained_of(config: peft.PeftConfig) -> nn.Module:
    model: nn.Module = peft.inject_adapter_in_model(config, Block())
    return model


def test_weights_decay_and_norms_biases_and_words_do_not() -> None:
    block = Block()
    with_decay, without = split_decay(block.named_parameters(), [block])
    assert [name for name, _ in with_decay] == ["linear.weight", "conv.weight"]
    assert [name for name, _ in without] == ["word.weight", "norm.weight", "norm.bias", "linear.bias", "conv.bias"]


def test_both_lists_hold_the_parameters_themselves() -> None:
    block = Block()
    with_decay, without = split_decay(block.named_parameters(), [block])
    assert {id(parameter) for _, parameter in with_decay + without} == {id(p) for p in block.parameters()}


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
    model = trained_of(config)
    named = [(name, parameter) for name, parameter in model.named_parameters() if part in name]
    assert len(named) >= 2
    with_decay, without = split_decay(named, [model])
    assert (with_decay if is_decayed else without) == named
