"""Adapters of every kind with random weights, and the prediction that shows their effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from trainer.models.base import LoadedBase
from trainer.models.methods.trained import Trained
from trainer.protocol.settings import Method, MethodKind, Targets

#: Loads a new random base of a family.
Load: TypeAlias = Callable[[str], LoadedBase]

KINDS = [kind for kind in MethodKind if kind.is_adapter]
#: All kinds; only LoRA and LoKr are in the fast set.
KINDS_MOSTLY_SLOW = [
    pytest.param(kind, marks=() if kind in {MethodKind.LORA, MethodKind.LOKR} else pytest.mark.slow) for kind in KINDS
]
#: Each kind on each family; each kind on SD 1 and LoRA on each family are in the fast set. SD 2 with another kind would
#: show nothing new: its layers are those of SD 1, projected as in SDXL.
FAMILIES_AND_KINDS = [
    pytest.param(family, kind, marks=() if family == "sd1" or kind is MethodKind.LORA else pytest.mark.slow)
    for family in ("sd1", "sd2", "sdxl", "sd3")
    for kind in KINDS
    if family != "sd2" or kind is MethodKind.LORA
]
#: The other pairs, for what is listed by family.
OTHER_KINDS_ON_SD2 = [
    pytest.param("sd2", kind, marks=pytest.mark.slow) for kind in KINDS if kind is not MethodKind.LORA
]


def method_of(kind: MethodKind, **settings: Any) -> Method:
    given = {"rank": 4, "alpha": 2.0, "targets": Targets.ALL, "text_encoder": True, "block_size": 8, **settings}
    return Method.model_validate({"kind": kind, **given})


@torch.no_grad()
def predict(base: LoadedBase) -> Tensor:
    noise = torch.randn(2, base.denoiser.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    return base.predict(noise, torch.tensor([100, 700]), base.encode_text(["a red egg", "blue"]))


@torch.no_grad()
def train_a_little(trained: Trained) -> None:
    """Add noise to each weight, as if it was trained."""
    generator = torch.Generator().manual_seed(2)
    for _, parameter in trained.named_parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
