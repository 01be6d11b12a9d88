"""Captions the images of a prepared dataset, and stores the captions in its edits, marked as automatic."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError

from trainer.captioning import Detail
from trainer.console import Progress, ignore_progress
from trainer.errors import DatasetError, OutOfMemoryError
from trainer.exchange.dataset_dir import read_edits, read_report, write_edits
from trainer.protocol import report
from trainer.protocol.edits import Edits
from trainer.protocol.text import _

if TYPE_CHECKING:
    from trainer.captioning.captioners import Captioner

logger = logging.getLogger(__name__)

#: Captions are saved this often, so that an interrupted run loses little.
_SAVE_EVERY_S = 10.0


def caption_dataset(
    dataset_dir: Path,
    source: str,
    out: Path,
    *,
    only_missing: bool = True,
    batch_size: int = 4,
    device: str | None = None,
    detail: Detail = Detail.SHORT,
    progress: Progress = ignore_progress,
) -> int:
    """Caption the kept images with the model `source`, add the captions to the edits file `out`, and count them.

    Args:
        only_missing: Skip images that have any caption; otherwise only those with a caption by hand.
        device: None for the GPU if there is one, else the CPU.

    Raises:
        DatasetError: `dataset_dir` is not a prepared dataset, or an image in it is damaged.
        MissingModelError: The model cannot be loaded.
        OutOfMemoryError: The batch does not fit on the GPU.
        EditsError: `out` is not an edits file.
    """
    edits = read_edits(out) if out.exists() else Edits()
    captioned = {*edits.captions, *(edits.automatic if only_missing else ())}
    images = _images_to_caption(dataset_dir, only_missing, captioned)
    if not images:
        return 0
    # Not before there is something to do: they take seconds to load.
    import torch

    from trainer.captioning.captioners import load_captioner

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    captioner = load_captioner(source, device=device, detail=detail)
    written: dict[str, str] = {}
    saved_at = time.monotonic()
    try:
        for captions in _captions(captioner, dataset_dir, images, batch_size, progress):
            written |= captions
            if time.monotonic() - saved_at > _SAVE_EVERY_S:
                write_edits(out, _add_captions(edits, written, _public_name(source)))
                saved_at = time.monotonic()
    finally:
        if written:
            write_edits(out, _add_captions(edits, written, _public_name(source)))
    logger.info("%s: %d images captioned by %s", dataset_dir, len(written), source)
    return len(written)


def _images_to_caption(dataset_dir: Path, only_missing: bool, captioned: Collection[str]) -> list[report.Image]:
    """The kept images without those in `captioned` (pixel hashes)."""
    try:
        images = read_report(dataset_dir).images
    except (OSError, ValidationError) as error:
        message = _("{folder} is not a prepared dataset.", folder=dataset_dir)
        raise DatasetError(message, _("Make it with `python -m trainer prepare`.")) from error
    return [
        image
        for image in images
        if image.path is not None
        and image.pixels_sha256 not in captioned
        and not (only_missing and _has_caption(image))
    ]


def _has_caption(image: report.Image) -> bool:
    return image.caption_source not in (None, report.CAPTION_BY_RULE) and bool(image.caption.strip())


def _captions(
    captioner: Captioner, dataset_dir: Path, images: Sequence[report.Image], batch_size: int, progress: Progress
) -> Iterator[dict[str, str]]:
    """Yield the captions of each batch by pixel hash."""
    import torch

    progress("captioning", 0, len(images))
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pixels = [_open(dataset_dir / str(image.path)) for image in batch]
        try:
            captions = captioner.write(pixels)
        except torch.OutOfMemoryError as error:
            message = _(
                "{model} needs more GPU memory than there is for {n} images at a time.",
                model=captioner.name,
                n=len(batch),
            )
            raise OutOfMemoryError(message, _("Use a smaller batch, a smaller model, or the CPU.")) from error
        progress("captioning", start + len(batch), len(images))
        pairs = zip(batch, captions, strict=True)
        yield {str(image.pixels_sha256): caption for image, caption in pairs if caption}


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        message = _("The image {path} of the dataset is damaged or missing.", path=path)
        raise DatasetError(message, _("Prepare the dataset again.")) from error


def _public_name(source: str) -> str:
    """The hub name, or the name of the folder without its path, which is not shown in a chat."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() else source


def _add_captions(edits: Edits, written: dict[str, str], captioner: str) -> Edits:
    """The edits with these captions as automatic and not reviewed."""
    return edits.model_copy(
        update={
            "automatic": edits.automatic | written,
            "captioner": captioner,
            "reviewed": tuple(pixels for pixels in edits.reviewed if pixels not in written),
        }
    )
