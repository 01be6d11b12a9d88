"""The averages of weights follow their formulas and never change the training weights."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.errors import CheckpointError
from trainer.training.averaging import Ema


def _parameters(*, frozen: tuple[str, ...] = ()) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"weight": (4, 3), "bias": (4,), "conv": (2, 4, 3, 3)}
    parameters = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    parameters["conv"].data = parameters["conv"].data.to(memory_format=torch.channels_last)
    for name in frozen:
        parameters[name].requires_grad_(False)
    return parameters


def _walk(parameters: dict[str, nn.Parameter], number: int) -> None:
    """Change the trained parameters, like an optimizer step."""
    generator = torch.Generator().manual_seed(number)
    for parameter in parameters.values():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator))


def test_the_average_follows_its_formula() -> None:
    parameters = _parameters()
    ema = Ema(parameters, decay=0.6)
    reference: list[float] = []
    for number in range(12):
        _walk(parameters, number)
        ema.update()
        value = parameters["weight"][1, 2].item()
        decay = min(0.6, (1 + number) / (10 + number))
        reference.append(value if not reference else decay * reference[-1] + (1 - decay) * value)

    with ema.swapped():
        assert parameters["weight"][1, 2].item() == pytest.approx(reference[-1], abs=1e-5)
    assert parameters["weight"][1, 2].item() != pytest.approx(reference[-1], abs=1e-2)


def test_the_training_weights_are_restored_bit_for_bit_after_an_error() -> None:
    parameters = _parameters()
    ema = Ema(parameters, decay=0.9)
    for number in range(3):
        _walk(parameters, number)
        ema.update()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    with suppress(RuntimeError), ema.swapped():
        assert not torch.equal(parameters["bias"], before["bias"])
        assert parameters["conv"].is_contiguous(memory_format=torch.channels_last)
        raise RuntimeError("no space")

    assert all(torch.equal(parameters[name], tensor) for name, tensor in before.items())


def test_frozen_parameters_have_no_average_and_do_not_change() -> None:
    parameters = _parameters(frozen=("weight",))
    ema = Ema(parameters, decay=0.9)
    _walk(parameters, 0)
    ema.update()

    with ema.swapped():
        assert set(ema.state_dict()["averages"]) == {"bias", "conv"}
        assert torch.equal(parameters["weight"], _parameters()["weight"])


def test_averages_start_with_unfreezing_and_converge_after_freezing() -> None:
    parameters = _parameters(frozen=("weight",))
    ema = Ema(parameters, decay=0.5)
    for number in range(20):
        _walk(parameters, number)
        ema.update()
    parameters["weight"].requires_grad_(True)
    parameters["bias"].requires_grad_(False)
    for number in range(20, 40):
        _walk(parameters, number)
        ema.update()

    averages = ema.state_dict()["averages"]
    assert torch.allclose(averages["bias"], parameters["bias"], atol=1e-4)
    assert not torch.allclose(averages["weight"], parameters["weight"], atol=1e-1)


def test_averages_resume_from_a_file_bit_for_bit(tmp_path: Path) -> None:
    runs = []
    for is_interrupted in (False, True):
        parameters = _parameters()
        ema = Ema(parameters, decay=0.8)
        for number in range(10):
            if is_interrupted and number == 5:
                torch.save(ema.state_dict(), tmp_path / "ema.pt")
                ema = Ema(parameters, decay=0.8)
                ema.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
            _walk(parameters, number)
            ema.update()
        runs.append(ema.state_dict())

    assert runs[0]["updates"] == runs[1]["updates"] == 10
    assert all(torch.equal(average, runs[1]["averages"][name]) for name, average in runs[0]["averages"].items())


def test_loaded_averages_are_on_the_device_of_their_parameters() -> None:
    ema = Ema({"weight": nn.Parameter(torch.ones(2, device="meta"))}, decay=0.5)

    ema.load_state_dict({"updates": 3, "averages": {"weight": torch.ones(2)}})

    assert ema.state_dict()["averages"]["weight"].device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_averages_follow_their_parameters_to_another_device() -> None:
    parameters = _parameters()
    ema = Ema(parameters, decay=0.5)
    ema.update()
    for parameter in parameters.values():
        parameter.data = parameter.data.to("cuda")

    with ema.swapped():
        assert all(parameter.device.type == "cuda" for parameter in parameters.values())


def test_averages_of_another_job_are_refused() -> None:
    ema = Ema(_parameters(), decay=0.5)

    with pytest.raises(CheckpointError, match="bias"):
        ema.load_state_dict({"updates": 1, "averages": {"bias": torch.ones(7)}})
