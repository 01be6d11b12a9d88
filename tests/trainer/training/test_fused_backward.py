"""Weights that change within the backward pass: equal to a step after it, with one gradient in memory, also in bf16."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.conftest import MakeJob
from tests.trainer.job_events import events_of
from trainer.errors import BadSpecError
from trainer.models.methods.full import FullTraining
from trainer.protocol.events import EXIT_FAILED, Failed, FailureKind, Warned
from trainer.protocol.run_options import RunOptions
from trainer.training import batch_size_finder, recipe, step
from trainer.training.fused_backward import check_machine, state_in_fp32, stepping_in_backward
from trainer.training.optimizers import make_optimizer
from trainer.training.run import run

#: Steps of AdamW on a weight of 1 in bf16, whose neighbors are 0.004 and 0.008 away.
SMALL_RATE, STEPS = 1e-4, 20


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


def loss_of(model: nn.Module, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    output: Tensor = model(torch.randn(5, 8, generator=generator))
    return output.square().mean()


def optimizer_of(model: nn.Module, kind: str = "adamw", rate: float = 1e-3) -> Any:
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2], "lr": rate}, {"params": parameters[2:], "lr": rate / 2}]
    return make_optimizer(kind, groups, weight_decay=0.01, arguments={})


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "adafactor", "torch.RAdam"])
def test_the_weights_are_those_of_a_step_after_the_backward_pass(kind: str) -> None:
    plain, fused = network(), network()
    plain_optimizer, fused_optimizer = optimizer_of(plain, kind), optimizer_of(fused, kind)

    for number in range(4):
        # Two micro-batches: the gradients of the first are part of the step.
        for half in (0, 100):
            torch.autograd.backward(loss_of(plain, number + half))
        plain_optimizer.step()
        plain_optimizer.zero_grad()
        torch.autograd.backward(loss_of(fused, number))
        with stepping_in_backward(fused_optimizer, max_grad_norm=1e9):
            torch.autograd.backward(loss_of(fused, number + 100))

    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert len(fused_optimizer.param_groups) == 2
    assert len(fused_optimizer.state) == 6


def test_each_gradient_is_freed_before_the_next_one_is_complete() -> None:
    model = network()
    optimizer, alive = optimizer_of(model), []
    with stepping_in_backward(optimizer, max_grad_norm=1.0):
        for parameter in model.parameters():
            parameter.register_hook(lambda _gradient: alive.append(sum(p.grad is not None for p in model.parameters())))
        torch.autograd.backward(loss_of(model, 0))

    assert len(alive) == 6
    # A linear layer completes its weight's and its bias's gradient together.
    assert max(alive) <= 1


def test_each_gradient_is_limited_by_itself() -> None:
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    groups = [{"params": list(model.parameters()), "lr": 1.0}]
    optimizer = make_optimizer("sgd", groups, weight_decay=0.0, arguments={"momentum": 0.0})

    with stepping_in_backward(optimizer, max_grad_norm=1e-3):
        torch.autograd.backward(loss_of(model, 0))

    changes = [float((new.detach() - old).norm()) for new, old in zip(model.parameters(), before, strict=True)]
    assert changes == [pytest.approx(1e-3, rel=1e-3)] * 6


def test_a_weight_without_a_gradient_in_the_last_pass_steps_by_those_before() -> None:
    model = network()
    (first, *_others, last, _bias) = model.parameters()
    optimizer, before = optimizer_of(model), last.detach().clone()
    torch.autograd.backward(loss_of(model, 0))

    with stepping_in_backward(optimizer, max_grad_norm=1.0):
        torch.autograd.backward(first.sum())

    assert not torch.equal(last, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def weight_in_bf16(rate: float) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    return parameter, make_optimizer("adamw", [{"params": [parameter], "lr": rate}], weight_decay=0.0, arguments={})


def step_down(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    with stepping_in_backward(optimizer, max_grad_norm=1e9):
        torch.autograd.backward(parameter.float().sum())


def test_small_steps_of_weights_in_bf16_are_not_lost() -> None:
    torch.manual_seed(0)
    parameter, optimizer = weight_in_bf16(SMALL_RATE)
    for _step in range(STEPS):
        step_down(parameter, optimizer)
    nearest, plain = weight_in_bf16(SMALL_RATE)
    for _step in range(STEPS):
        torch.autograd.backward(nearest.float().sum())
        plain.step()
        plain.zero_grad()

    assert parameter.dtype is torch.bfloat16
    assert float(parameter.detach().float().mean()) == pytest.approx(
        1 - STEPS * SMALL_RATE, abs=0.05 * STEPS * SMALL_RATE
    )
    # Rounded to the nearest, they do not move at all.
    assert torch.equal(nearest, torch.ones_like(nearest))


def test_the_state_of_weights_in_bf16_is_fp32_and_stays_so_when_it_is_loaded() -> None:
    torch.manual_seed(0)
    parameter, optimizer = weight_in_bf16(SMALL_RATE)
    step_down(parameter, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)

    other, resumed = weight_in_bf16(SMALL_RATE)
    with state_in_fp32([other]):
        resumed.load_state_dict(torch.load(file, weights_only=True))

    loaded, stored = resumed.state[other], optimizer.state[parameter]
    assert loaded["exp_avg"].dtype is torch.float32
    assert torch.equal(loaded["exp_avg"], stored["exp_avg"])
    assert other.dtype is torch.bfloat16


FUSED: dict[str, Any] = {
    "training": {"epochs": 1, "fused_backward": True, "micro_batch_size": 4},
    "method": {"kind": "full", "rank": 16, "alpha": None, "dropout": 0.0, "targets": None, "text_encoder": False},
    "validation": {"test": False},
}


def test_running_out_of_memory_within_the_pass_ends_the_job_and_does_not_repeat_the_step(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some weights have changed by then: the same step in smaller parts would change them twice.
    tried = []

    def run_out(*_arguments: Any, **_options: Any) -> Tensor:
        tried.append(1)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(step, "_backward", run_out)
    job_dir = make_job(**FUSED)

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED

    assert tried == [1]
    assert [event.kind for event in events_of(job_dir, Failed)] == [FailureKind.OUT_OF_MEMORY]
    assert "micro_batch_halved" not in {event.kind for event in events_of(job_dir, Warned)}


@pytest.mark.slow
def test_a_full_fine_tune_that_cannot_fit_is_refused_before_its_weights_take_memory(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "total_memory_bytes", lambda _device: 2**20)
    # What would fit is not the subject, and each try takes a second.
    monkeypatch.setattr(batch_size_finder, "_changes_that_fit", lambda *_given: None)
    monkeypatch.setattr(FullTraining, "widen", lambda _self: pytest.fail("they were converted"))
    job_dir = make_job(**FUSED)

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED

    (failed,) = events_of(job_dir, Failed)
    assert failed.kind is FailureKind.BAD_SPEC
    assert "needs about" in failed.message


@pytest.mark.parametrize(
    ("count", "scaler", "message"),
    [(2, None, "works on one GPU, and this training has 2"), (1, object(), "needs bf16")],
)
def test_a_machine_that_cannot_do_it_is_refused(count: int, scaler: object, message: str) -> None:
    processes: Any = SimpleNamespace(count=count, accelerator=SimpleNamespace(scaler=scaler))

    with pytest.raises(BadSpecError, match=message):
        check_machine(processes)
