"""Class pictures are drawn once for a base and a prompt, and a kill loses a few at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from trainer.dataset.split.mixing import Source, mix, plan_repeats, seen_per_epoch
from trainer.protocol.mix import MixRole
from trainer.protocol.report import Split, read_report
from trainer.protocol.settings import Prior
from trainer.tasks.prior import prior_source

PRIOR = Prior(class_prompt="A photo of a dog!", images=10, weight=0.25)


@dataclass
class Painter:
    """Draws a patchwork that follows from the seed, and remembers what it was asked for."""

    asked: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self, plan: Sequence[tuple[str, int]]) -> list[Image.Image]:
        self.asked += plan
        return [Image.frombytes("RGB", (8, 8), Random(seed).randbytes(192)).resize((64, 64)) for _, seed in plan]


class KilledError(Exception):
    pass


def _source(
    folder: Path, painter: Painter, prior: Prior = PRIOR, fingerprint: str = "f", resolution: int = 64
) -> Source:
    return prior_source(prior, folder=folder, fingerprint=fingerprint, resolution=resolution, draw=painter)


def test_each_picture_has_a_seed_of_its_own_and_the_class_prompt(tmp_path: Path) -> None:
    painter = Painter()

    source = _source(tmp_path, painter)

    assert {prompt for prompt, _ in painter.asked} == {"A photo of a dog!"}
    assert len({seed for _, seed in painter.asked}) == 10
    assert [image.caption for image in source.report.images] == ["A photo of a dog!"] * 10
    assert len({image.pixels_sha256 for image in source.report.images}) == 10
    assert source.name.startswith("a-photo-of-a-dog-")


def test_they_are_drawn_once(tmp_path: Path) -> None:
    first = _source(tmp_path, Painter())
    painter = Painter()

    assert _source(tmp_path, painter) == first
    assert painter.asked == []


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
def test_another_base_prompt_or_setting_draws_anew(tmp_path: Path, change: dict[str, object]) -> None:
    first = _source(tmp_path, Painter())
    settings = {name: value for name, value in change.items() if name in Prior.model_fields}
    others = {name: value for name, value in change.items() if name not in settings}
    painter = Painter()

    second = _source(tmp_path, painter, PRIOR.model_copy(update=settings), **others)  # type: ignore[arg-type]

    assert len(painter.asked) == 10
    assert second.folder != first.folder


def test_more_pictures_draw_what_is_missing_and_fewer_take_the_first(tmp_path: Path) -> None:
    ten = _source(tmp_path, Painter())
    painter = Painter()

    twelve = _source(tmp_path, painter, PRIOR.model_copy(update={"images": 12}))
    three = _source(tmp_path, painter, PRIOR.model_copy(update={"images": 3}))

    assert len(painter.asked) == 2
    assert twelve.report.images[:10] == ten.report.images
    assert three.report.images == ten.report.images[:3]


def test_a_kill_keeps_what_is_drawn_and_the_next_run_draws_the_rest(tmp_path: Path) -> None:
    whole = _source(tmp_path / "whole", Painter())
    before, after = Painter(), Painter()

    def kill(done: int, total: int) -> None:
        assert total == 10
        if done >= 8:
            raise KilledError

    with pytest.raises(KilledError):
        prior_source(PRIOR, folder=tmp_path / "cut", fingerprint="f", resolution=64, draw=before, between_pictures=kill)
    cut = _source(tmp_path / "cut", after)

    assert (len(before.asked), len(after.asked)) == (8, 2)
    assert cut.report == whole.report


def test_a_damaged_picture_is_drawn_again(tmp_path: Path) -> None:
    first = _source(tmp_path, Painter())
    path = first.folder / str(first.report.images[3].path)
    path.write_bytes(path.read_bytes()[:200])
    painter = Painter()

    assert _source(tmp_path, painter).report == first.report
    assert len(painter.asked) == 1
    assert [file.suffix for file in path.parent.iterdir()] == [".png"] * 10


def test_they_have_their_share_of_an_epoch_and_measure_nothing(tmp_path: Path, dataset: Path) -> None:
    main = Source(folder=dataset, report=read_report(dataset))
    mixture = mix([main, _source(tmp_path, Painter())])

    rows = seen_per_epoch(mixture, plan_repeats(mixture, seed=0))

    assert (rows[1].role, rows[1].pictures) == (MixRole.REGULARIZATION, 10)
    assert rows[1].share == pytest.approx(0.25, abs=0.05)
    assert all(member.source == 0 for split in (Split.VALIDATION, Split.TEST) for member in mixture.of(split))
    assert mixture.left_out == ()
    assert mixture.caption_of(mixture.of(Split.TRAIN)[-1]) == "A photo of a dog!"
