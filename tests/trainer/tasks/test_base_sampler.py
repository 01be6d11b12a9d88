"""A base that stays loaded while models come and go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from trainer.models.methods.applying import Change, ModelChange
from trainer.protocol.settings import Base, Objective
from trainer.tasks import base_sampler
from trainer.tasks.base_sampler import BaseSampler
from trainer.tasks.drawing import SamplePlan

PLAN = [SamplePlan(prompt="a red egg", seed=1), SamplePlan(prompt="a blue egg", negative="red", seed=1)]


@pytest.fixture(scope="module")
def sampler(random_base: Path) -> BaseSampler:
    return BaseSampler(Base(source=str(random_base)), Objective(), torch.device("cpu"))


def draw(sampler: BaseSampler, change: Change | None, strength: float = 1.0) -> Sequence[bytes]:
    batches = sampler.draw(
        change, strength, PLAN, steps=1, guidance=5.0, size=(64, 64), batch=2, progress=lambda done: None
    )
    return [image.tobytes() for batch in batches for image in batch]


def test_a_change_of_the_text_encoder_alone_is_drawn_and_forgotten(sampler: BaseSampler) -> None:
    encoder = sampler.base.text_encoder
    doubled = {"text_encoder": {name: 2 * tensor.data for name, tensor in encoder.named_parameters()}}
    change = ModelChange(weights=lambda: doubled)

    before = draw(sampler, None)
    changed = draw(sampler, change)
    after = draw(sampler, None)

    assert before == after
    assert all(one != other for one, other in zip(before, changed, strict=True))
    assert draw(sampler, change, strength=0.0) == before


def test_what_rests_draws_the_same_again(sampler: BaseSampler) -> None:
    before = draw(sampler, None)
    sampler.rest()
    assert draw(sampler, None) == before


def test_fewer_images_at_once_where_four_do_not_fit(sampler: BaseSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_sampler, "_SMALL_SHARE", 0.0)
    # Each prediction takes a second of CPU.
    need = {batch: sampler._predict((64, 64), batch) for batch in (1, 4)}
    need[2] = (need[1] + need[4]) / 2
    assert need[1] < need[2] < need[4]
    monkeypatch.setattr(sampler, "_predict", lambda _size, batch: need[batch])

    for batch, expected in ((4, 4), (2, 2), (1, 1)):
        memory = need[batch] + base_sampler._LIBRARIES
        monkeypatch.setattr(base_sampler, "total_memory_bytes", lambda device, memory=memory: memory)
        assert sampler.largest_batch((64, 64), None) == expected
    monkeypatch.setattr(base_sampler, "total_memory_bytes", lambda device: 2**60)
    assert sampler.largest_batch((64, 64), 1) == 1
