"""Optimizers resume bit for bit, handle frozen layers and several rates, and check their arguments."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.golden import check_sentences
from trainer.errors import BadSpecError, MissingLibraryError
from trainer.protocol.events import FailureKind
from trainer.protocol.settings import Arguments
from trainer.protocol.training_settings import OptimizerKind, ScheduleKind, finds_its_rate
from trainer.training.averaging import evaluation_mode
from trainer.training.optimizers import check_optimizer_arguments, effective_rate, make_optimizer
from trainer.training.schedules import make_schedule

#: bitsandbytes needs a GPU.
KINDS = [kind for kind in OptimizerKind if kind is not OptimizerKind.ADAMW_8BIT]
SHAPES = [(4, 3), (5,), (2, 3, 3, 3)]


class Weights:
    """Two parameter groups, the second at half the rate, with simulated gradients."""

    def __init__(self, kind: str, *, arguments: Arguments | None = None, second_lr_share: float = 0.5):
        generator = torch.Generator().manual_seed(7)
        self.sets = [[nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES] for _ in range(2)]
        lr = 1.0 if finds_its_rate(kind) else 0.01
        groups = [{"params": self.sets[0], "lr": lr}, {"params": self.sets[1], "lr": lr * second_lr_share}]
        self.optimizer = make_optimizer(kind, groups, weight_decay=0.1, arguments=arguments or {})

    def step(self, number: int, trained: Sequence[int] = (0, 1)) -> None:
        """Step with gradients that follow from `number` and the weights; only the `trained` sets have gradients."""
        step(self.optimizer, self.sets, number, trained)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.sets[0], *self.sets[1]]

    def copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]


def step(optimizer: Optimizer, sets: list[list[nn.Parameter]], number: int, trained: Sequence[int] = (0, 1)) -> None:
    for index, parameters in enumerate(sets):
        generator = torch.Generator().manual_seed(100 * number + index)
        for parameter in parameters:
            if index in trained:
                parameter.grad = parameter.detach() + 0.3 * torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    optimizer.zero_grad()


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def are_same(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("second_lr_share", "steps", "frozen_at"),
    [(0.5, 4, ()), (0.5, 4, range(4)), (1.0, 30, (20,))],
    ids=["all trained", "second frozen at first", "one rate, second skips a step"],
)
def test_an_optimizer_resumes_from_a_file_bit_for_bit(
    kind: OptimizerKind, second_lr_share: float, steps: int, frozen_at: Sequence[int]
) -> None:
    """A set that skips a step has its own age from then on, and running sums that were shared before."""
    weights = Weights(kind, second_lr_share=second_lr_share)
    for number in range(steps):
        weights.step(number, (0,) if number in frozen_at else (0, 1))
    saved = through_a_file({"weights": weights.copies(), "optimizer": weights.optimizer.state_dict()})
    resumed = Weights(kind, second_lr_share=second_lr_share)
    with torch.no_grad():
        for parameter, value in zip(resumed.parameters, saved["weights"], strict=True):
            parameter.copy_(value)
    resumed.optimizer.load_state_dict(saved["optimizer"])
    for number in range(steps, 2 * steps):
        weights.step(number)
        resumed.step(number)
    assert are_same(weights.copies(), resumed.copies())


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_without_a_gradient_do_not_change_and_take_no_memory(kind: OptimizerKind) -> None:
    weights = Weights(kind)
    before = weights.copies()
    for number in range(3):
        weights.step(number, trained=[0])
    after = weights.copies()
    assert are_same(before[3:], after[3:])
    assert not any(torch.equal(one, other) for one, other in zip(before[:3], after[:3], strict=True))
    assert not any(weights.optimizer.state.get(parameter) for parameter in weights.sets[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("second_lr_share", [0.5, 1.0])
def test_a_group_that_is_unfrozen_later_behaves_like_a_new_one(kind: OptimizerKind, second_lr_share: float) -> None:
    weights = Weights(kind, second_lr_share=second_lr_share)
    lr = weights.optimizer.param_groups[1]["lr"]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in weights.sets[1]]
    fresh = make_optimizer(kind, [{"params": alone, "lr": lr}], weight_decay=0.1, arguments={})
    for number in range(3):
        weights.step(number, trained=[0])
    for number in range(3, 40):
        weights.step(number)
        step(fresh, [[], alone], number)
    assert are_same(weights.copies()[3:], [parameter.detach() for parameter in alone])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if finds_its_rate(kind)])
def test_groups_of_one_rate_estimate_it_together(kind: OptimizerKind) -> None:
    together, apart = Weights(kind, second_lr_share=1.0), Weights(kind)
    for number in range(40):
        together.step(number)
        apart.step(number)
    first, second = together.optimizer.param_groups
    assert first["d"] == second["d"] > 1e-6
    assert apart.optimizer.param_groups[0]["d"] != apart.optimizer.param_groups[1]["d"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if finds_its_rate(kind)])
def test_groups_that_no_longer_step_together_are_independent(kind: OptimizerKind) -> None:
    with_second, first_only = Weights(kind, second_lr_share=1.0), Weights(kind, second_lr_share=1.0)
    for number in range(60):
        with_second.step(number, (0,) if number == 20 else (0, 1))
        first_only.step(number, (0,) if number >= 20 else (0, 1))
    assert are_same(with_second.copies()[:3], first_only.copies()[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_each_group_has_its_own_rate(kind: OptimizerKind) -> None:
    weights = Weights(kind, second_lr_share=1e-6)
    before = weights.copies()
    for number in range(20):
        weights.step(number)
    moved = [float((one - other).norm()) for one, other in zip(before, weights.copies(), strict=True)]
    assert min(moved[:3]) > 1000 * max(moved[3:])


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_approaches_the_minimum(kind: OptimizerKind) -> None:
    weights = Weights(kind)
    start = sum(float(value.square().sum()) for value in weights.copies())
    for number in range(300):
        weights.step(number)
    assert sum(float(value.square().sum()) for value in weights.copies()) < 0.2 * start


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_without_weight_decay_uses_the_default(kind: OptimizerKind) -> None:
    decayed, kept = nn.Parameter(torch.full((3, 3), 5.0)), nn.Parameter(torch.full((3, 3), 5.0))
    lr = 1.0 if finds_its_rate(kind) else 0.1
    groups = [{"params": [decayed], "lr": lr}, {"params": [kept], "lr": lr, "weight_decay": 0.0}]
    arguments: Arguments = {"d0": 0.01} if finds_its_rate(kind) else {}
    optimizer = make_optimizer(kind, groups, weight_decay=0.5, arguments=arguments)
    assert "estimate" not in groups[0], "the caller's groups must not change"
    for number in range(50):
        # The gradients cancel, so that only the decay remains.
        for parameter in (decayed, kept):
            parameter.grad = torch.full((3, 3), 0.01 * (-1) ** number)
        optimizer.step()
    assert decayed.mean() < kept.mean() - 1e-4


def test_a_warm_up_from_a_rate_of_0_does_not_break_rate_estimates() -> None:
    for kind in (OptimizerKind.PRODIGY, OptimizerKind.DADAPT_ADAM, OptimizerKind.SCHEDULE_FREE_ADAMW):
        weights = Weights(kind)
        schedule = make_schedule(ScheduleKind.CONSTANT, weights.optimizer, steps=40, warmup_steps=5, arguments={})
        before = weights.copies()
        for number in range(40):
            weights.step(number)
            schedule.step()
        after = weights.copies()
        assert all(bool(value.isfinite().all()) for value in after)
        assert not are_same(before, after)


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_works_without_arguments(kind: OptimizerKind) -> None:
    check_optimizer_arguments(kind, {})


#: Of the 115 classes that can be used: of each library; some average the weights, or find their rate.
LIBRARY_CLASSES = [
    *("torch.RAdam", "torch.NAdam", "torch.optim.Adadelta", "torch.Rprop"),
    *("pytorch_optimizer.AdaBelief", "pytorch_optimizer.ADOPT", "pytorch_optimizer.SOAP", "pytorch_optimizer.Shampoo"),
    *("pytorch_optimizer.StableAdamW", "pytorch_optimizer.ScheduleFreeRAdam", "pytorch_optimizer.DAdaptLion"),
    *("pytorch_optimizer.GaLore", "pytorch_optimizer.AdEMAMix", "pytorch_optimizer.Tiger", "pytorch_optimizer.RAdam"),
]


@pytest.mark.parametrize("name", LIBRARY_CLASSES)
def test_a_class_of_a_library_trains_and_resumes_bit_for_bit(name: str) -> None:
    check_optimizer_arguments(name, {})
    weights = Weights(name)
    for number in range(4):
        weights.step(number, (0,) if number < 2 else (0, 1))
    saved = through_a_file({"weights": weights.copies(), "optimizer": weights.optimizer.state_dict()})
    resumed = Weights(name)
    with torch.no_grad():
        for parameter, value in zip(resumed.parameters, saved["weights"], strict=True):
            parameter.copy_(value)
    resumed.optimizer.load_state_dict(saved["optimizer"])
    for number in range(4, 20):
        weights.step(number)
        resumed.step(number)
    assert are_same(weights.copies(), resumed.copies())
    assert not are_same(weights.copies(), saved["weights"])


#: Classes that exist and cannot train here, or do not exist.
UNUSABLE = [
    *("torch.LBFGS", "torch.SparseAdam", "torch.Optimizer", "torch.AdamV", "pytorch_optimizer.Lookahead"),
    *("pytorch_optimizer.Kron", "pytorch_optimizer.LOMO", "pytorch_optimizer.AdaShift", "pytorch_optimizer.BSAM"),
]


def test_a_class_that_cannot_train_is_refused_with_the_reason() -> None:
    sentences = {}
    for name in UNUSABLE:
        with pytest.raises(BadSpecError) as refusal:
            check_optimizer_arguments(name, {})
        sentences[name] = refusal.value
    check_sentences(Path(__file__).parent / "golden" / "unusable_optimizers.txt", sentences)


def test_arguments_of_a_library_class_are_checked_by_its_signature() -> None:
    check_optimizer_arguments("pytorch_optimizer.AdaBelief", {"rectify": True})
    with pytest.raises(BadSpecError, match="Did you mean rectify"):
        check_optimizer_arguments("pytorch_optimizer.AdaBelief", {"rectfy": True})


#: Arguments that are refused; the golden file has the sentence of each.
REFUSED: list[tuple[OptimizerKind, Arguments]] = [
    (OptimizerKind.ADAMW, {"beta": (0.9, 0.99)}),
    (OptimizerKind.PRODIGY, {"use_bias_correction": True}),
    (OptimizerKind.LION, {"momentum": 0.9}),
    (OptimizerKind.ADAMW, {"betas": 0.9}),
    (OptimizerKind.CAME, {"betas": (0.9, 0.99)}),
    (OptimizerKind.SGD, {"nesterov": 1}),
    (OptimizerKind.ADAMW, {"eps": "small"}),
    (OptimizerKind.ADAMW, {"eps": True}),
    (OptimizerKind.SCHEDULE_FREE_ADAMW, {"decoupling_c": 0.5}),
    (OptimizerKind.ADAMW, {"lr": 0.1}),
    (OptimizerKind.LION, {"maximize": True}),
    (OptimizerKind.ADAFACTOR, {"relative_step": True}),
    (OptimizerKind.SCHEDULE_FREE_ADAMW, {"warmup_steps": 9}),
    (OptimizerKind.ADAMW, {"betas": (0.9, 1.5)}),
    (OptimizerKind.LION, {"betas": (2.0, 0.5)}),
]


def test_invalid_arguments_are_refused_with_a_hint() -> None:
    sentences = {}
    for kind, arguments in REFUSED:
        with pytest.raises(BadSpecError) as refusal:
            check_optimizer_arguments(kind, arguments)
        sentences[f"{kind} {arguments}"] = refusal.value
    check_sentences(Path(__file__).parent / "golden" / "refused_optimizer_arguments.txt", sentences)


def test_arguments_reach_the_optimizer() -> None:
    weights = Weights(OptimizerKind.PRODIGY, arguments={"d_coef": 2, "bias_correction": False, "betas": (0.8, 0.9)})
    group = weights.optimizer.param_groups[0]
    assert (group["d_coef"], group["bias_correction"], group["safeguard_warmup"]) == (2, False, True)
    assert group["betas"] == (0.8, 0.9)
    assert Weights(OptimizerKind.SGD).optimizer.param_groups[0]["momentum"] == 0.9


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(MissingLibraryError, match=r"pip install pytorch-optimizer") as caught:
        check_optimizer_arguments(OptimizerKind.LION, {})
    assert caught.value.kind is FailureKind.MISSING_LIBRARY


def test_adamw_8bit_without_bitsandbytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingLibraryError, match=r"pip install bitsandbytes"):
        check_optimizer_arguments(OptimizerKind.ADAMW_8BIT, {})


def test_adamw_8bit_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("bitsandbytes.optim")
    library.__dict__["AdamW8bit"] = torch.optim.AdamW
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingLibraryError, match=r"adamw_8bit needs a CUDA GPU"):
        check_optimizer_arguments(OptimizerKind.ADAMW_8BIT, {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_optimizer_arguments(OptimizerKind.ADAMW_8BIT, {})


def test_torch_optimizers_are_fused_by_default() -> None:
    assert Weights(OptimizerKind.ADAMW).optimizer.defaults["fused"]
    assert not Weights(OptimizerKind.ADAMW, arguments={"foreach": True}).optimizer.defaults["fused"]


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    return effective_rate(optimizer, [group["lr"] for group in optimizer.param_groups])


def test_the_effective_rate_is_the_highest_rate_times_the_estimate() -> None:
    assert rate_of(Weights(OptimizerKind.ADAMW, second_lr_share=3.0).optimizer) == pytest.approx(0.03)
    weights = Weights(OptimizerKind.PRODIGY)
    assert rate_of(weights.optimizer) == pytest.approx(1e-6)
    for number in range(50):
        weights.step(number)
    first, second = weights.optimizer.param_groups
    assert rate_of(weights.optimizer) == max(first["d"], 0.5 * second["d"]) > 1e-5


def test_optimizer_functions_accept_the_wrapper_of_accelerate() -> None:
    weights = Weights(OptimizerKind.SCHEDULE_FREE_ADAMW)
    wrapped = Accelerator(cpu=True).prepare_optimizer(weights.optimizer)
    for number in range(3):
        step(wrapped, weights.sets, number)
    before = weights.copies()
    with evaluation_mode(wrapped):
        assert not are_same(before, weights.copies())
    assert are_same(before, weights.copies())
    assert rate_of(wrapped) == 0.01


def test_schedule_free_is_evaluated_by_its_average_and_continues_bit_for_bit() -> None:
    """Compare with the sequences x, y, z of the paper at a constant rate, where x is the mean of all z.

    Defazio et al. 2024, arXiv:2405.15682, eq. 4–6, with AdamW's denominator.
    """
    lr, beta1, beta2, decay = 0.01, 0.9, 0.999, 0.1
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    optimizer = make_optimizer(
        OptimizerKind.SCHEDULE_FREE_ADAMW, [{"params": [parameter], "lr": lr}], weight_decay=decay, arguments={}
    )
    x = z = parameter.detach().clone()
    y, v = x, torch.zeros_like(x)
    for number in range(1, 6):
        grad = y - 0.5
        v = beta2 * v + (1 - beta2) * grad**2
        z = z - lr * (grad / ((v / (1 - beta2**number)).sqrt() + 1e-8) + decay * y)
        x = x + (z - x) / number
        y = (1 - beta1) * z + beta1 * x
        parameter.grad = parameter.detach() - 0.5
        optimizer.step()
        trained = parameter.detach().clone()
        torch.testing.assert_close(trained, y)
        with evaluation_mode(optimizer):
            torch.testing.assert_close(parameter.detach(), x)
        assert torch.equal(parameter.detach(), trained)


def test_schedule_free_is_restored_after_a_failed_evaluation() -> None:
    weights = Weights(OptimizerKind.SCHEDULE_FREE_ADAMW)
    weights.step(0)
    before = weights.copies()
    with pytest.raises(KeyError), evaluation_mode(weights.optimizer):
        raise KeyError
    assert are_same(before, weights.copies())
    weights.step(1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not OptimizerKind.SCHEDULE_FREE_ADAMW])
def test_other_optimizers_are_evaluated_with_their_training_weights(kind: OptimizerKind) -> None:
    weights = Weights(kind)
    weights.step(0)
    before = weights.copies()
    with evaluation_mode(weights.optimizer):
        assert are_same(before, weights.copies())
