"""Captions the pictures of a prepared dataset, and keeps the captions in its edits, marked as automatic."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError

from trainer.captioning.captioner import Captioner, Detail
from trainer.captioning.loading import load_captioner
from trainer.errors import DatasetError, OutOfMemoryError
from trainer.protocol import report
from trainer.protocol.edits import Edits, read_edits

logger = logging.getLogger(__name__)

#: Phase, done, total.
Progress: TypeAlias = Callable[[str, int, int], None]

#: Captions are written down this often, so that a run that is broken off loses little.
_SAVE_EVERY_S = 10.0


def run(
    dataset_dir: Path,
    source: str,
    out: Path,
    *,
    only_missing: bool = True,
    batch_size: int = 4,
    device: str | None = None,
    detail: Detail = Detail.SHORT,
    progress: Progress = lambda phase, done, total: None,
) -> int:
    """Caption the kept pictures with the model `source` and add the captions to the edits file `out`; returns how many.

    A picture that has a caption there already, automatic or by hand, is left alone if `only_missing`; otherwise only
    one by hand is. `device`: None is the GPU where there is one.

    Raises:
        DatasetError: `dataset_dir` is no prepared dataset, or a picture in it is damaged.
        MissingModelError: the model cannot be loaded.
        OutOfMemoryError: the batch is too large for the GPU.
        EditsError: `out` holds something else.
    """
    edits = read_edits(out) if out.exists() else Edits()
    done = {*edits.captions, *(edits.automatic if only_missing else ())}
    images = _to_caption(dataset_dir, only_missing, done)
    if not images:
        return 0
    captioner = load_captioner(source, device=device or _best_device(), detail=detail)
    written: dict[str, str] = {}
    saved_at = time.monotonic()
    try:
        for captions in _captions(captioner, dataset_dir, images, batch_size, progress):
            written |= captions
            if time.monotonic() - saved_at > _SAVE_EVERY_S:
                _with(edits, written, _known_as(source)).write(out)
                saved_at = time.monotonic()
    finally:
        if written:
            _with(edits, written, _known_as(source)).write(out)
    logger.info("%s: %d pictures captioned by %s", dataset_dir, len(written), source)
    return len(written)


def _to_caption(dataset_dir: Path, only_missing: bool, done: Collection[str]) -> list[report.Image]:
    """Kept pictures that are to be captioned; `done`: pixel hashes of those that are not, whatever they have."""
    try:
        images = report.read_report(dataset_dir).images
    except (OSError, ValidationError) as error:
        raise DatasetError(
            f"{dataset_dir} is not a prepared dataset.", "Make it with `python -m trainer prepare`."
        ) from error
    return [
        image
        for image in images
        if image.path is not None and image.pixels_sha256 not in done and not (only_missing and _has_caption(image))
    ]


def _has_caption(image: report.Image) -> bool:
    return image.caption_source not in (None, report.CAPTION_BY_RULE) and bool(image.caption.strip())


def _captions(
    captioner: Captioner, dataset_dir: Path, images: Sequence[report.Image], batch_size: int, progress: Progress
) -> Iterator[dict[str, str]]:
    """Captions by pixel hash, batch by batch."""
    progress("captioning", 0, len(images))
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pictures = [_open(dataset_dir / str(image.path)) for image in batch]
        try:
            captions = captioner.write(pictures)
        except torch.OutOfMemoryError as error:
            message = f"{captioner.name} does not fit the GPU's memory with {len(batch)} pictures at a time."
            raise OutOfMemoryError(message, "Use a smaller batch, a smaller model, or the CPU.") from error
        progress("captioning", start + len(batch), len(images))
        pairs = zip(batch, captions, strict=True)
        yield {str(image.pixels_sha256): caption for image, caption in pairs if caption}


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DatasetError(f"The picture {path} of the dataset is damaged or gone.", "Prepare it again.") from error


def _known_as(source: str) -> str:
    """The hub name, or a folder's own name: where it lies on this machine is nobody's business in a chat."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() else source


def _with(edits: Edits, written: dict[str, str], captioner: str) -> Edits:
    """The edits with these captions, which nobody has looked at yet."""
    return edits.model_copy(
        update={
            "automatic": edits.automatic | written,
            "captioner": captioner,
            "reviewed": tuple(pixels for pixels in edits.reviewed if pixels not in written),
        }
    )


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
