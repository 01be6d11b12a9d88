"""Image classifiers of a few thousand random parameters, with the real classes of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIDE = 64
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def make_random_resnet(folder: Path, *, labels: int = 10) -> Path:
    """Write a ResNet of four stages, laid out as `microsoft/resnet-18`: 64 px images, 64 features."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        num_labels=labels,
    )
    model = ResNetForImageClassification(config)
    _settle(model)
    # The processor of microsoft/resnet-18.
    ConvNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_pct=0.875, image_mean=_MEAN, image_std=_STD
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def make_random_vit(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=SIDE,
        patch_size=16,
        num_labels=3,
    )
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def make_random_convnext(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
    ConvNextImageProcessorPil(size={"shortest_edge": SIDE}).save_pretrained(folder)
    ConvNextForImageClassification(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def _settle(model: Any) -> None:
    """Make the random features change smoothly with the image, as pretrained ones do.

    Residual branches get small weights, and batch norms get the statistics of images.
    """
    for stage in model.resnet.encoder.stages:
        for layer in stage.layers:
            layer.layer[-1].normalization.weight.fill_(0.1)
    model.train()
    for _ in range(40):
        # Large patches of one color each.
        model(pixel_values=torch.nn.functional.interpolate(2 * torch.randn(16, 3, 3, 3), SIDE))
    model.eval()
