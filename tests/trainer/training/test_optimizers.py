"""Every optimizer by name: resumed to the bit, right with frozen layers and several rates, refused in sentences."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.errors import BadSpecError, MissingLibraryError
from trainer.protocol.events import FailureKind
from trainer.protocol.settings import Arguments, OptimizerKind, ScheduleKind
from trainer.training.optimizers import check_arguments, effective_rate, evaluation_mode, make_optimizer
from trainer.training.schedules import make_schedule

#: bitsandbytes needs a GPU, which tests have none of.
KINDS = [kind for kind in OptimizerKind if kind is not OptimizerKind.ADAMW_8BIT]
SHAPES = [(4, 3), (5,), (2, 3, 3, 3)]


class Weights:
    """Two sets of parameters in groups of their own, the second at half the rate, and gradients as a training has."""

    def __init__(self, kind: OptimizerKind, *, arguments: Arguments | None = None, second_lr_share: float = 0.5):
        generator = torch.Generator().manual_seed(7)
        self.sets = [[nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES] for _ in range(2)]
        lr = 1.0 if kind.finds_its_rate else 0.01
        groups = [{"params": self.sets[0], "lr": lr}, {"params": self.sets[1], "lr": lr * second_lr_share}]
        self.optimizer = make_optimizer(kind, groups, weight_decay=0.1, arguments=arguments or {})

    def step(self, number: int, trained: Sequence[int] = (0, 1)) -> None:
        """Gradients follow from `number` and the weights; sets that are not `trained` have none."""
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
@pytest.mark.parametrize("trained_at_first", [(0, 1), (0,)], ids=["all trained", "second frozen at first"])
def test_a_training_resumed_from_a_file_goes_on_to_the_bit(
    kind: OptimizerKind, trained_at_first: tuple[int, ...]
) -> None:
    weights = Weights(kind)
    for number in range(4):
        weights.step(number, trained_at_first)
    saved = through_a_file({"weights": weights.copies(), "optimizer": weights.optimizer.state_dict()})
    resumed = Weights(kind)
    with torch.no_grad():
        for parameter, value in zip(resumed.parameters, saved["weights"], strict=True):
            parameter.copy_(value)
    resumed.optimizer.load_state_dict(saved["optimizer"])
    for number in range(4, 8):
        weights.step(number)
        resumed.step(number)
    assert are_same(weights.copies(), resumed.copies())


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_one_rate_resume_to_the_bit_too(kind: OptimizerKind) -> None:
    weights = Weights(kind, second_lr_share=1.0)
    # The second set stops for a step: from then on it has an age of its own, and sums that were shared before.
    for number in range(30):
        weights.step(number, (0,) if number == 20 else (0, 1))
    resumed = Weights(kind, second_lr_share=1.0)
    with torch.no_grad():
        for parameter, value in zip(resumed.parameters, weights.copies(), strict=True):
            parameter.copy_(value)
    resumed.optimizer.load_state_dict(through_a_file(weights.optimizer.state_dict()))
    for number in range(30, 60):
        weights.step(number)
        resumed.step(number)
    assert are_same(weights.copies(), resumed.copies())


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_without_a_gradient_stay_and_cost_no_memory(kind: OptimizerKind) -> None:
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
def test_a_group_unfrozen_later_moves_as_one_that_begins_then(kind: OptimizerKind, second_lr_share: float) -> None:
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


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.finds_its_rate])
def test_groups_of_one_rate_find_it_together(kind: OptimizerKind) -> None:
    together, apart = Weights(kind, second_lr_share=1.0), Weights(kind)
    for number in range(40):
        together.step(number)
        apart.step(number)
    first, second = together.optimizer.param_groups
    assert first["d"] == second["d"] > 1e-6
    assert apart.optimizer.param_groups[0]["d"] != apart.optimizer.param_groups[1]["d"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.finds_its_rate])
def test_groups_that_no_longer_step_together_leave_each_other_alone(kind: OptimizerKind) -> None:
    with_second, first_only = Weights(kind, second_lr_share=1.0), Weights(kind, second_lr_share=1.0)
    for number in range(60):
        with_second.step(number, (0,) if number == 20 else (0, 1))
        first_only.step(number, (0,) if number >= 20 else (0, 1))
    assert are_same(with_second.copies()[:3], first_only.copies()[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_each_group_goes_at_its_own_rate(kind: OptimizerKind) -> None:
    weights = Weights(kind, second_lr_share=1e-6)
    before = weights.copies()
    for number in range(20):
        weights.step(number)
    moved = [float((one - other).norm()) for one, other in zip(before, weights.copies(), strict=True)]
    assert min(moved[:3]) > 1000 * max(moved[3:])


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_comes_near_the_minimum(kind: OptimizerKind) -> None:
    weights = Weights(kind)
    start = sum(float(value.square().sum()) for value in weights.copies())
    for number in range(300):
        weights.step(number)
    assert sum(float(value.square().sum()) for value in weights.copies()) < 0.2 * start


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_without_weight_decay_of_its_own_gets_the_common_one(kind: OptimizerKind) -> None:
    decayed, kept = nn.Parameter(torch.full((3, 3), 5.0)), nn.Parameter(torch.full((3, 3), 5.0))
    lr = 1.0 if kind.finds_its_rate else 0.1
    groups = [{"params": [decayed], "lr": lr}, {"params": [kept], "lr": lr, "weight_decay": 0.0}]
    arguments: Arguments = {"d0": 0.01} if kind.finds_its_rate else {}
    optimizer = make_optimizer(kind, groups, weight_decay=0.5, arguments=arguments)
    assert "estimate" not in groups[0], "the caller's groups stay as they are"
    for number in range(50):
        # A gradient whose sign changes, so that what remains is the decay.
        for parameter in (decayed, kept):
            parameter.grad = torch.full((3, 3), 0.01 * (-1) ** number)
        optimizer.step()
    assert decayed.mean() < kept.mean() - 1e-4


def test_a_warm_up_from_a_rate_of_0_does_no_harm_to_a_found_rate() -> None:
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
def test_every_optimizer_is_built_without_arguments(kind: OptimizerKind) -> None:
    check_arguments(kind, {})


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (OptimizerKind.ADAMW, {"beta": (0.9, 0.99)}, "Did you mean betas?"),
        (OptimizerKind.PRODIGY, {"use_bias_correction": True}, "Did you mean bias_correction?"),
        (OptimizerKind.LION, {"momentum": 0.9}, "optimizer_arguments.momentum is not an argument of lion"),
        (OptimizerKind.ADAMW, {"betas": 0.9}, "Give 2 numbers"),
        (OptimizerKind.CAME, {"betas": (0.9, 0.99)}, "Give 3 numbers"),
        (OptimizerKind.SGD, {"nesterov": 1}, "Give true or false"),
        (OptimizerKind.ADAMW, {"eps": "small"}, "Give a number"),
        (OptimizerKind.ADAMW, {"eps": True}, "Give a number"),
        (OptimizerKind.SCHEDULE_FREE_ADAMW, {"decoupling_c": 0.5}, "Give a whole number"),
        (OptimizerKind.ADAMW, {"lr": 0.1}, "Set training.learning_rate"),
        (OptimizerKind.LION, {"maximize": True}, "A loss is minimized"),
        (OptimizerKind.ADAFACTOR, {"relative_step": True}, "The schedule gives the rate"),
        (OptimizerKind.SCHEDULE_FREE_ADAMW, {"warmup_steps": 9}, "Set training.warmup_steps"),
        (OptimizerKind.ADAMW, {"betas": (0.9, 1.5)}, "do not suit adamw"),
        (OptimizerKind.LION, {"betas": (2.0, 0.5)}, "do not suit lion"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_a_sentence(
    kind: OptimizerKind, arguments: Arguments, words: str
) -> None:
    with pytest.raises(BadSpecError) as caught:
        check_arguments(kind, arguments)
    assert words in str(caught.value)


def test_arguments_reach_the_optimizer() -> None:
    weights = Weights(OptimizerKind.PRODIGY, arguments={"d_coef": 2, "bias_correction": False, "betas": (0.8, 0.9)})
    group = weights.optimizer.param_groups[0]
    assert (group["d_coef"], group["bias_correction"], group["safeguard_warmup"]) == (2, False, True)
    assert group["betas"] == (0.8, 0.9)
    assert Weights(OptimizerKind.SGD).optimizer.param_groups[0]["momentum"] == 0.9


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(MissingLibraryError, match=r"pip install pytorch-optimizer") as caught:
        check_arguments(OptimizerKind.LION, {})
    assert caught.value.kind is FailureKind.MISSING_LIBRARY


def test_8_bits_without_bitsandbytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingLibraryError, match=r"pip install bitsandbytes"):
        check_arguments(OptimizerKind.ADAMW_8BIT, {})


def test_8_bits_without_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("bitsandbytes.optim")
    library.__dict__["AdamW8bit"] = torch.optim.AdamW
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingLibraryError, match=r"adamw_8bit needs a CUDA GPU"):
        check_arguments(OptimizerKind.ADAMW_8BIT, {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_arguments(OptimizerKind.ADAMW_8BIT, {})


def test_torchs_own_are_fused_unless_told_otherwise() -> None:
    assert Weights(OptimizerKind.ADAMW).optimizer.defaults["fused"]
    assert not Weights(OptimizerKind.ADAMW, arguments={"foreach": True}).optimizer.defaults["fused"]


def test_the_effective_rate_is_the_highest_and_what_was_found() -> None:
    assert effective_rate(Weights(OptimizerKind.ADAMW, second_lr_share=3.0).optimizer) == pytest.approx(0.03)
    weights = Weights(OptimizerKind.PRODIGY)
    assert effective_rate(weights.optimizer) == pytest.approx(1e-6)
    for number in range(50):
        weights.step(number)
    first, second = weights.optimizer.param_groups
    assert effective_rate(weights.optimizer) == max(first["d"], 0.5 * second["d"]) > 1e-5


def test_accelerates_wrapper_is_looked_through() -> None:
    weights = Weights(OptimizerKind.SCHEDULE_FREE_ADAMW)
    wrapped = Accelerator(cpu=True).prepare_optimizer(weights.optimizer)
    for number in range(3):
        step(wrapped, weights.sets, number)
    before = weights.copies()
    with evaluation_mode(wrapped):
        assert not are_same(before, weights.copies())
    assert are_same(before, weights.copies())
    assert effective_rate(wrapped) == 0.01


def test_schedule_free_is_judged_by_its_average_and_trains_on_to_the_bit() -> None:
    """Against the sequences x, y, z of the paper (Defazio et al. 2024, arXiv:2405.15682, eq. 4–6, with AdamW's
    denominator), at a constant rate: x is the mean of all z."""
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


def test_schedule_free_comes_back_from_an_evaluation_that_fails() -> None:
    weights = Weights(OptimizerKind.SCHEDULE_FREE_ADAMW)
    weights.step(0)
    before = weights.copies()
    with pytest.raises(KeyError), evaluation_mode(weights.optimizer):
        raise KeyError
    assert are_same(before, weights.copies())
    weights.step(1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not OptimizerKind.SCHEDULE_FREE_ADAMW])
def test_other_optimizers_are_judged_as_they_are(kind: OptimizerKind) -> None:
    weights = Weights(kind)
    weights.step(0)
    before = weights.copies()
    with evaluation_mode(weights.optimizer):
        assert are_same(before, weights.copies())
