"""Class images are drawn once per base and prompt; a kill loses at most a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from trainer.dataset.split.mixing import MixSource, epoch_exposure, mix, plan_repeats
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.report import Split
from trainer.protocol.settings import MixRole, Prior
from trainer.tasks.drawing import prior_source

PRIOR = Prior(class_prompt="A photo of a dog!", images=10, weight=0.25)


@dataclass
class FakeSampler:
    """Draw images of seeded noise, and record the requests."""

    requests: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self, plan: Sequence[tuple[str, int]]) -> list[Image.Image]:
        self.requests += plan
        return [Image.frombytes("RGB", (8, 8), Random(seed).randbytes(192)).resize((64, 64)) for _, seed in plan]


class KilledError(Exception):
    pass


def _source(
    folder: Path, sampler: FakeSampler, prior: Prior = PRIOR, fingerprint: str = "f", resolution: int = 64
) -> MixSource:
    return prior_source(prior, folder=folder, fingerprint=fingerprint, resolution=resolution, draw=sampler)


def test_class_images_share_the_prompt_and_have_different_seeds(tmp_path: Path) -> None:
    sampler = FakeSampler()

    source = _source(tmp_path, sampler)

    assert {prompt for prompt, _ in sampler.requests} == {"A photo of a dog!"}
    assert len({seed for _, seed in sampler.requests}) == 10
    assert [image.caption for image in source.report.images] == ["A photo of a dog!"] * 10
    assert len({image.pixels_sha256 for image in source.report.images}) == 10
    assert source.name.startswith("a-photo-of-a-dog-")


def test_class_images_are_drawn_once(tmp_path: Path) -> None:
    first = _source(tmp_path, FakeSampler())
    sampler = FakeSampler()

    assert _source(tmp_path, sampler) == first
    assert sampler.requests == []


@pytest.mark.parametrize(
    "change",
    [
        {"class_prompt": "a cat"},
        {"steps": 30},
        {"guidance": 3.0},
        {"seed": 5},
        {"fingerprint": "g"},
        {"resolution": 128},
    ],
)
def test_another_base_prompt_or_setting_draws_again(tmp_path: Path, change: dict[str, object]) -> None:
    first = _source(tmp_path, FakeSampler())
    settings = {name: value for name, value in change.items() if name in Prior.model_fields}
    others = {name: value for name, value in change.items() if name not in settings}
    sampler = FakeSampler()

    second = _source(tmp_path, sampler, PRIOR.model_copy(update=settings), **others)  # type: ignore[arg-type]

    assert len(sampler.requests) == 10
    assert second.folder != first.folder


def test_more_images_draw_the_missing_ones_and_fewer_use_the_first(tmp_path: Path) -> None:
    ten = _source(tmp_path, FakeSampler())
    sampler = FakeSampler()

    twelve = _source(tmp_path, sampler, PRIOR.model_copy(update={"images": 12}))
    three = _source(tmp_path, sampler, PRIOR.model_copy(update={"images": 3}))

    assert len(sampler.requests) == 2
    assert twelve.report.images[:10] == ten.report.images
    assert three.report.images == ten.report.images[:3]


def test_a_killed_run_keeps_its_images_and_the_next_one_draws_the_rest(tmp_path: Path) -> None:
    whole = _source(tmp_path / "whole", FakeSampler())
    before, after = FakeSampler(), FakeSampler()

    def kill(done: int, total: int) -> None:
        assert total == 10
        if done >= 8:
            raise KilledError

    with pytest.raises(KilledError):
        prior_source(PRIOR, folder=tmp_path / "cut", fingerprint="f", resolution=64, draw=before, between_batches=kill)
    cut = _source(tmp_path / "cut", after)

    assert (len(before.requests), len(after.requests)) == (8, 2)
    assert cut.report == whole.report


def test_a_damaged_image_is_drawn_again(tmp_path: Path) -> None:
    first = _source(tmp_path, FakeSampler())
    path = first.folder / str(first.report.images[3].path)
    path.write_bytes(path.read_bytes()[:200])
    sampler = FakeSampler()

    assert _source(tmp_path, sampler).report == first.report
    assert len(sampler.requests) == 1
    assert [file.suffix for file in path.parent.iterdir()] == [".png"] * 10


@pytest.mark.slow
def test_class_images_have_their_share_of_an_epoch_and_no_validation_split(tmp_path: Path, dataset: Path) -> None:
    main = MixSource(folder=dataset, report=read_report(dataset))
    mixture = mix([main, _source(tmp_path, FakeSampler())])

    rows = epoch_exposure(mixture, plan_repeats(mixture, seed=0))

    assert (rows[1].role, rows[1].images) == (MixRole.REGULARIZATION, 10)
    assert rows[1].share == pytest.approx(0.25, abs=0.05)
    assert all(member.source == 0 for split in (Split.VALIDATION, Split.TEST) for member in mixture.of(split))
    assert mixture.left_out == ()
    assert mixture.captions_of(mixture.of(Split.TRAIN)[-1]) == ("A photo of a dog!",)
