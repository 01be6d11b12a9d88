"""The processes that share one training (data parallel): sums, gatherings and agreements between them.

Every process holds the whole model and takes its share of each step's pictures. Gradients are summed once a step, by
one flat all-reduce, rather than by DistributedDataParallel: what each picture draws is a function of the step and of
its place in it, so the sum is that of one process, whatever their number, and no process waits for one that has no
micro-batch left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of accelerate's launch; one is the usual case, and then nothing here does anything."""

    accelerator: Accelerator

    @property
    def count(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def index(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def share(self) -> slice:
        """This process's share of a list: every n-th item."""
        return slice(self.index, None, self.count)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], *extras: Tensor) -> tuple[Tensor, ...]:
        """Sum the gradients over all processes, in place, and give the sums of `extras` (scalars)."""
        if self.count == 1:
            return extras
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
        tensors = [gradient.float() for gradient in gradients] + [extra.float().reshape(1) for extra in extras]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        summed = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
        for parameter, gradient in zip(trained, summed, strict=False):
            # In the layout of the parameter: torch's fused optimizers walk both by the same addresses.
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        return tuple(value.reshape(()) for value in summed[len(trained) :])

    def agree(self, value: T) -> T:
        """What the main process says, for all."""
        if self.count == 1:
            return value
        said = [value]
        broadcast_object_list(said)
        return said[0]

    def any(self, value: bool) -> bool:
        """Whether it is so in one of them."""
        return value if self.count == 1 else any(gather_object([value]))

    def gather(self, values: Sequence[T]) -> list[T]:
        """The values of all of them, in the order of the processes."""
        return list(values) if self.count == 1 else list(gather_object(list(values)))

    def wait(self) -> None:
        """Go on only once all are here."""
        self.accelerator.wait_for_everyone()
