"""Reads archives and whole sources as a preparation does, for the dataset tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.console import ignore_progress
from trainer.dataset.archives import open_archive
from trainer.dataset.images.image_record import ImageRecord
from trainer.dataset.input_files import HEAD_BYTES, Limits, RefusedError, sniff
from trainer.dataset.preparing.intake import read_images
from trainer.dataset.sources.source_readers import Sources
from trainer.protocol.report import RefusalKind, Refused


def read_archive(path: Path, limits: Limits | None = None) -> dict[str, bytes | RefusalKind]:
    """Members by name, read in reverse order: their bytes, or why they were refused."""
    with path.open("rb") as file:
        kind = sniff(file.read(HEAD_BYTES))
    result: dict[str, bytes | RefusalKind] = {}
    with open_archive(path, kind, limits or Limits()) as archive:
        for member in reversed(archive.members):
            try:
                result[member.name] = member.read()
            except RefusedError as refusal:
                result[member.name] = refusal.kind
    return dict(reversed(result.items()))


def archive_refusal(path: Path, limits: Limits | None = None) -> RefusedError:
    """Why a whole archive is refused."""
    with pytest.raises(RefusedError) as caught:
        read_archive(path, limits)
    return caught.value


def read_sources(
    tmp_path: Path, *sources: Path | str, limits: Limits | None = None
) -> tuple[list[ImageRecord], list[Refused]]:
    """The decoded images of some sources, and what was refused."""
    root = tmp_path / f"read-{len(list(tmp_path.glob('read-*')))}"
    root.mkdir()
    with Sources(sources, limits or Limits()) as opened:
        records = read_images(opened, root, limits or Limits(), ignore_progress)
        return records, opened.refused


def captions_of(records: list[ImageRecord]) -> dict[str, str]:
    """The caption of each image by its source."""
    return {record.source: record.labels.caption.text if record.labels.caption else "" for record in records}
