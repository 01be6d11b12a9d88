"""Adapters of every kind with random weights, and the prediction that shows their effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from trainer.models.base import Family, LoadedBase
from trainer.models.methods.adapters import attach_adapter
from trainer.models.methods.kohya import kohya_keys
from trainer.models.methods.trained import ExportedFile, Trained, Weights
from trainer.protocol.settings import Method, MethodKind, Targets


class Load(Protocol):
    """Loads a new random base of a family, with settings of its objective."""

    def __call__(self, family: str, clip_skip: int = 1, **objective: Any) -> LoadedBase: ...


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


@dataclass(frozen=True, kw_only=True)
class ExportedAdapter:
    """A trained adapter and all of its files."""

    family: Family
    method: Method
    state: Weights
    files: Sequence[ExportedFile]
    #: The prediction of the base, and that with the adapter.
    before: Tensor
    after: Tensor
    #: Each adapted weight as peft merges it, by kohya's name of the layer.
    merged: Mapping[str, Tensor]

    @property
    def effect(self) -> float:
        """The largest change of the prediction."""
        return float((self.after - self.before).abs().max())


#: Returns the adapter of a kind on a family, which all tests share.
Exports: TypeAlias = Callable[[str, MethodKind], ExportedAdapter]


def export_adapter(load: Load, family: str, method: Method, folder: Path) -> ExportedAdapter:
    """Attach an adapter, change its weights, and write its files as `egg` into a folder."""
    base = load(family)
    before = predict(base)
    trained = attach_adapter(base, method, lambda: load(family))
    train_a_little(trained)
    after = predict(base)
    files = trained.export(folder, "egg", {})
    state = trained.state()
    merged: dict[str, Tensor] = {}
    for name, module in trained.modules.items():
        layers: dict[str, Any] = {path: m for path, m in module.named_modules() if isinstance(m, BaseTunerLayer)}
        for path, key in kohya_keys(base, name, layers).items():
            layers[path].merge()
            merged[key] = layers[path].get_base_layer().weight.detach()
    return ExportedAdapter(
        family=base.family, method=method, state=state, files=files, before=before, after=after, merged=merged
    )
