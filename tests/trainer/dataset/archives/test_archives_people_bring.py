"""Of archives as people bring them, the right images and captions are read, and what is not used is told."""

from __future__ import annotations

from pathlib import Path

from tests.trainer.dataset.archive_cases import Archive
from tests.trainer.dataset.archives.others_people_bring import OTHERS
from tests.trainer.dataset.archives.zips_people_bring import ZIPS
from tests.trainer.dataset.read_sources import read_sources
from trainer.dataset.images.image_record import ImageRecord
from trainer.protocol.report import Refused


def read_from(name: str, records: list[ImageRecord], refusals: list[Refused]) -> Archive:
    """What of one archive was read, and what was not."""
    inside = {r.source.removeprefix(f"{name}!"): r for r in records if r.source.startswith(f"{name}!")}
    return Archive(
        images={
            path: record.labels.caption.text if record.labels.caption else ""
            for path, record in inside.items()
            if record.pixels is not None
        },
        refused={r.source.removeprefix(f"{name}!"): r.kind for r in refusals if r.source.startswith(f"{name}!")},
        whole=next((refusal.kind for refusal in refusals if refusal.source == name), None),
        dropped=frozenset(path for path, record in inside.items() if record.pixels is None),
    )


def test_of_each_archive_the_images_and_captions_are_read_and_the_rest_is_told(tmp_path: Path) -> None:
    cases = {**ZIPS, **OTHERS}
    expected = {name: build(tmp_path / name) for name, build in cases.items()}

    # All in one preparation, so that one set of decoders serves them.
    records, refusals = read_sources(tmp_path, *(tmp_path / name for name in cases))

    found = {name: read_from(name, records, refusals) for name in cases}
    assert {name: found[name] for name in cases if found[name] != expected[name]} == {}
    assert len(cases) >= 70
