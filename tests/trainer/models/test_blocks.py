"""Names of a model's blocks, and the name patterns that select them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, ResNetConfig

from tests.trainer.models.random_adapters import Load
from trainer.models.methods.layers import blocks_of, matches


def test_blocks_of_a_unet_are_listed_from_input_to_output(load: Load) -> None:
    base = load("sd1")

    assert blocks_of("unet", base.denoiser) == [
        "unet.conv_in",
        "unet.time_embedding",
        "unet.down_blocks.0",
        "unet.down_blocks.1",
        "unet.mid_block",
        "unet.up_blocks.0",
        "unet.up_blocks.1",
        "unet.conv_norm_out",
        "unet.conv_out",
    ]


def test_blocks_of_a_text_encoder_are_its_layers(load: Load) -> None:
    base = load("sd1")

    assert [name.removeprefix("te.text_model.") for name in blocks_of("te", base.text_encoder)] in (
        ["embeddings", "encoder.layers.0", "encoder.layers.1", "final_layer_norm"],
        ["te.embeddings", "te.encoder.layers.0", "te.encoder.layers.1", "te.final_layer_norm"],
    )


def test_blocks_of_a_transformer_and_of_a_classifier(load: Load) -> None:
    base = load("sd3")
    with torch.device("meta"):
        classifier = AutoModelForImageClassification.from_config(ResNetConfig())

    assert blocks_of("transformer", base.denoiser)[-4:] == [
        "transformer.transformer_blocks.0",
        "transformer.transformer_blocks.1",
        "transformer.norm_out",
        "transformer.proj_out",
    ]
    stages = [f"model.resnet.encoder.stages.{stage}" for stage in range(4)]
    assert blocks_of("model", classifier) == ["model.resnet.embedder", *stages, "model.classifier"]


def test_each_parameter_belongs_to_exactly_one_block(load: Load) -> None:
    unet = load("sd1").denoiser

    blocks = blocks_of("unet", unet)

    for name, _ in unet.named_parameters():
        assert sum(matches(f"unet.{name}", block) for block in blocks) == 1, name


def test_parameters_outside_the_blocks_are_blocks_of_their_own() -> None:
    module = nn.Module()
    module.scale = nn.Parameter(torch.ones(1))
    module.layers = nn.ModuleList([nn.Linear(1, 1), nn.Identity()])

    assert blocks_of("m", module) == ["m.scale", "m.layers.0"]


@pytest.mark.parametrize(
    ("pattern", "is_match"),
    [
        ("up_blocks.1", True),
        ("unet.up_blocks.1", True),
        ("unet", True),
        ("up_blocks.1.attentions.0.proj_in.lora_A", True),
        ("up_blocks.*.proj_in", True),
        ("up_blocks.?.attentions", True),
        ("*.proj_in.*", True),
        ("up_blocks.10", False),
        ("up_blocks.1.att", False),
        ("attentions.0", False),
        ("text_encoder", False),
        ("up_blocks.??", False),
        ("blocks.1", False),
    ],
)
def test_a_pattern_matches_a_name_or_a_prefix_that_ends_at_a_dot(pattern: str, is_match: bool) -> None:
    assert matches("unet.up_blocks.1.attentions.0.proj_in.lora_A", pattern) is is_match
