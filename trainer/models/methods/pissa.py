"""PiSSA (Meng et al. 2024, arXiv:2404.02948): a LoRA that starts from the strongest directions of the base's weights.

The paper (and peft) takes B₀ A₀ out of a weight, and trains A and B from there. Here the weight stays as it is, since
files are for the base as it is, and the layer adds B A - B₀ A₀. With P = B - B₀ and Q = A - A₀, which training changes
from zero, that is

    P (A₀ + Q) + B₀ Q = [P, B₀] [A₀ + Q; Q]

an ordinary LoRA of twice the rank, which is also what files hold. No two large numbers are subtracted in it, so that
bf16 and files in fp16 round what was learned, and not what the base had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name

from trainer.models.methods.trained import Weights

#: Of the randomized SVD (Halko et al. 2009, arXiv:0909.4061): more columns than are used, and power iterations.
_MORE_COLUMNS, _ITERATIONS = 8, 4


def _joined_down(change: Tensor, start: Tensor) -> Tensor:
    return torch.cat([start + change, change])


def _joined_up(change: Tensor, start: Tensor) -> Tensor:
    return torch.cat([change, start], dim=1)


#: By peft's name of a factor.
_JOINED = {"lora_A": _joined_down, "lora_B": _joined_up}


class _Factor(nn.Module):
    """A or B of a layer: `weight` is what training adds to `start`."""

    start: Tensor
    joined: Callable[[Tensor, Tensor], Tensor]


class _LinearFactor(_Factor, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        return F.linear(input, self.joined(self.weight, self.start))


class _Conv2dFactor(_Factor, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        output: Tensor = self._conv_forward(input, self.joined(self.weight, self.start), None)
        return output


@torch.no_grad()
def start_from_base(layer: Any, adapter: str) -> None:
    """Let an adapter of peft's (a `LoraLayer`, without effect so far) start from the weight of its layer."""
    starts = principal_factors(layer.get_base_layer().weight, rank=layer.r[adapter], scale=layer.scaling[adapter])
    for (name, joined), start in zip(_JOINED.items(), starts, strict=True):
        factor = getattr(layer, name)[adapter]
        factor.weight.zero_()
        factor.register_buffer("start", start.reshape(factor.weight.shape))
        factor.joined = joined
        factor.__class__ = _LinearFactor if isinstance(factor, nn.Linear) else _Conv2dFactor


def principal_factors(weight: Tensor, *, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A [rank, inputs] and B [outputs, rank] for which scale * B A is the best approximation of a weight.

    It takes 24 ms for 1280 x 1280 at the rank 16, where an exact SVD takes seconds. By peft's `pissa_init`
    (`tuners/lora/layer.py`). Beyond the rank of the weight itself they are zero.
    """
    weight_OI = weight.detach().float().flatten(1)
    columns = min(rank + _MORE_COLUMNS, *weight_OI.shape)
    u_OR, s_R, v_IR = torch.svd_lowrank(weight_OI, columns, niter=_ITERATIONS)
    root_R = (s_R[:rank] / scale).sqrt()
    missing = rank - len(root_R)
    a = F.pad((v_IR[:, :rank] * root_R).T, (0, 0, 0, missing))
    b = F.pad(u_OR[:, :rank] * root_R, (0, missing))
    return a.contiguous(), b.contiguous()


def as_lora(weights: Weights) -> Weights:
    """Convert the weights of a PiSSA to those of the ordinary LoRA that has its effect (`Method.exported`); others stay
    as they are."""
    return {module: _as_lora(tensors) for module, tensors in weights.items()}


def _as_lora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    lora: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        factor, _, part = name.rpartition(".")
        if part == "weight" and (start := tensors.get(f"{factor}.start")) is not None:
            lora[name] = _JOINED[factor.rpartition(".")[2]](tensor, start)
        elif part != "start":
            lora[name] = tensor
    return lora
