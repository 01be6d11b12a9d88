"""Stored images that cannot be read any more when a training begins cost only themselves."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.conftest import job_maker
from tests.trainer.dataset.damaged_images import DAMAGES
from tests.trainer.job_events import events_of
from trainer.dataset.images.decoding import UnreadableFilesError, open_for_bucket
from trainer.dataset.images.mask_files import open_mask
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.events import EXIT_FAILED, EXIT_FINISHED, Failed, FailureKind, Finished, Started, Warned
from trainer.protocol.report import Split
from trainer.protocol.run_options import RunOptions
from trainer.training.run import run


@pytest.fixture
def damaged(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset without caches."""
    return Path(shutil.copytree(dataset, tmp_path / "prepared", ignore=shutil.ignore_patterns("cache")))


def damage(path: Path) -> None:
    path.write_bytes(DAMAGES["zero block"](path.read_bytes(), random.Random(1)))


@pytest.mark.slow
# The end of a training opens the images once more, which takes as long as the training.
@pytest.mark.parametrize(("spoil", "has_end"), [(damage, False), (Path.unlink, True)])
def test_a_training_goes_on_without_an_image_that_was_damaged_after_the_preparation(
    damaged: Path, random_base: Path, tmp_path: Path, spoil: Callable[[Path], None], has_end: bool
) -> None:
    images = [image for image in read_report(damaged).images if image.split is Split.TRAIN]
    for image in images[:2]:
        spoil(damaged / str(image.path))
    job_dir = job_maker(damaged, random_base, tmp_path)(training={"epochs": 1}, validation={"test": has_end})

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]

    (told,) = [event.message for event in events_of(job_dir, Warned) if event.kind == "unreadable_image"]
    # Not the files of the prepared dataset, which end like them: 0003.png.
    assert re.findall(r"\b\d\d\.png", told) == [image.source for image in images[:2]]
    assert events_of(job_dir, Started)[0].train_images == len(images) - 2
    assert events_of(job_dir, Finished)


def test_a_training_without_most_of_its_images_fails(damaged: Path, random_base: Path, tmp_path: Path) -> None:
    shutil.rmtree(damaged / "images")
    job_dir = job_maker(damaged, random_base, tmp_path)()

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED

    last = events_of(job_dir)[-1]
    assert isinstance(last, Failed)
    assert last.kind is FailureKind.BAD_DATASET
    assert "of the dataset cannot be read" in last.message


@pytest.mark.parametrize("damage_name", ["zero block", "truncated", "cut header", "one byte"])
def test_whatever_a_decoder_raises_for_a_stored_file_names_the_file(tmp_path: Path, damage_name: str) -> None:
    path = tmp_path / "images" / "0001.png"
    path.parent.mkdir()
    Image.effect_noise((128, 128), 60).save(path)
    path.write_bytes(DAMAGES[damage_name](path.read_bytes(), random.Random(2)))

    with pytest.raises(UnreadableFilesError, match=r"^images/0001\.png of the dataset") as caught:
        open_for_bucket(tmp_path, "images/0001.png", (64, 64))
    assert list(caught.value.reasons) == [path]
    with pytest.raises(UnreadableFilesError):
        open_mask(tmp_path, "images/missing.png")
