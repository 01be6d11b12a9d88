"""How a diffusion task is placed on its device."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.conftest import MakeJob
from trainer.dataset.split.mixing import read_mixture
from trainer.device import to_device
from trainer.exchange.job_dir import read_spec
from trainer.protocol.training_settings import Precision
from trainer.tasks.diffusion import DiffusionTask


# torch's compiler imports what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equal_blocks_are_compiled_and_not_the_whole_model(make_job: MakeJob) -> None:
    spec = read_spec(make_job(training={"compile": True}))
    task = DiffusionTask(spec, read_mixture(spec), torch.device("cpu"))

    task.place(Precision.FP32)

    # Nothing is compiled before it runs.
    compiled = {type(part).__name__ for part in task.base.denoiser.modules() if part._compiled_call_impl is not None}
    assert compiled == {"BasicTransformerBlock"}


def test_what_goes_to_a_gpu_goes_through_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no GPU here: the calls are what can be seen.
    calls: list[tuple[str, object]] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(("pin", None))
        return tensor

    def move(tensor: torch.Tensor, device: torch.device, **options: object) -> torch.Tensor:
        calls.append((device.type, options.get("non_blocking")))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", move)
    tensor = torch.ones(2)

    to_device(tensor, torch.device("cuda"))
    to_device(tensor, torch.device("cpu"))

    assert calls == [("pin", None), ("cuda", True), ("cpu", None)]
