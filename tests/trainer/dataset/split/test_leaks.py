"""No edited copy of a training image validates or tests, in one dataset and in several."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.trainer.dataset.edited_images import EDITS, burst_frame, photograph
from tests.trainer.dataset.image_files import encoded, make_zip
from trainer.dataset.preparing.prepare import prepare
from trainer.dataset.split.overlap import JobImage, same_images
from trainer.protocol.report import DatasetReport, Split


def _prepared(tmp_path: Path, name: str, members: dict[str, bytes]) -> DatasetReport:
    return prepare([make_zip(tmp_path / f"{name}.zip", members)], tmp_path / name)


@pytest.mark.parametrize("seed", range(2))
def test_edited_copies_and_frames_of_a_burst_are_in_one_split(tmp_path: Path, seed: int) -> None:
    rng, members = Random(seed), {}
    for number in range(10):
        image = photograph(100 * seed + number)
        members[f"{number}/photo.png"] = encoded(image)
        if number % 2:
            frame = burst_frame(image, number)
            members |= {f"{number}/IMG_01.jpg": encoded(frame, "JPEG"), f"{number}/IMG_02.jpg": encoded(image, "JPEG")}
        else:
            for edit in rng.sample(sorted(EDITS), 2):
                members[f"{number}/{edit}.png"] = encoded(EDITS[edit](image))
    report = _prepared(tmp_path, "all", members)

    kept = [each for each in report.images if each.status == "kept"]
    by_motif: dict[str, set[Split | None]] = {}
    groups: dict[str, set[int | None]] = {}
    for each in kept:
        motif = each.source.removeprefix("all.zip!").partition("/")[0]
        by_motif.setdefault(motif, set()).add(each.split)
        groups.setdefault(motif, set()).add(each.group)
    assert all(len(splits) == 1 for splits in by_motif.values())
    assert all(len(group) == 1 for group in groups.values())
    assert len({group for one in groups.values() for group in one}) == 10
    assert {split for splits in by_motif.values() for split in splits} == set(Split)


def test_edited_copies_in_another_dataset_are_found(tmp_path: Path) -> None:
    edits = ["gray", "turned by 90°", "border of 10 %", "crop of 10 % a side", "mirrored"]
    one = _prepared(tmp_path, "one", {f"{n}.png": encoded(photograph(n)) for n in range(7)})
    changed = {f"{n}.png": encoded(EDITS[edit](photograph(n))) for n, edit in enumerate(edits)}
    other = _prepared(tmp_path, "other", {**changed, "7.png": encoded(photograph(7))})
    members = [
        JobImage(image=image, source=source, split=Split.TRAIN)
        for source, report in enumerate((one, other))
        for image in report.images
    ]
    found = {tuple(sorted(pair)) for pair in same_images(members, [tmp_path / "one", tmp_path / "other"])}
    assert found == {(n, 7 + n) for n in range(len(edits))}
