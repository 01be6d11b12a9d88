"""Decodes and stores masks, and fits them to buckets.

A mask is white where the loss counts and black where it does not. `mask_names.py` finds its file; without one, an
image's transparency is its mask (kohya's `alpha_mask`).
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from trainer.dataset.buckets import crop_box
from trainer.dataset.images.decoding import DecodedImage, ImageError, decode_mask, reading
from trainer.dataset.input_files import Limits, same_name_key
from trainer.exchange.files import atomic_write
from trainer.protocol.bucket_shapes import Size
from trainer.protocol.text import _

#: Aspect ratios that differ by a larger factor are different shapes and not rounding.
_MAX_SHAPE_RATIO = 1.03
#: Channels of a gray pixel differ by less; JPEG adds noise at edges, so a few pixels may differ by more.
_GRAY, _COLORED_SHARE = 40, 0.02
#: A mask is black here and white there, soft edges apart; a drawing in black on white is mostly paper.
_DARK, _BRIGHT, _MIN_EXTREME_SHARE, _MAX_PAPER_SHARE = 40, 215, 0.9, 0.95


def make_mask(decoded: DecodedImage, data: bytes | None, limits: Limits) -> tuple[Image.Image | None, str]:
    """Return the mask of an image, 8-bit gray in its shape, and what is wrong with it as a clause.

    None means that the whole image counts. Runs in a decoder's process.

    Args:
        decoded: The image.
        data: Its mask file, which is preferred to the image's transparency.
        limits: For the size of the mask.
    """
    if data is None:
        mask = decoded.alpha
        if mask is None or mask.getextrema() == (255, 255):
            return None, ""
    else:
        try:
            mask = decode_mask(data, limits)
        except ImageError as error:
            return None, _("its mask cannot be used: {reason}; the whole image counts", reason=error.message)
    top = mask.getextrema()[1]
    if top == 1:
        # Written by a program that uses 0 and 1.
        mask = mask.point(lambda value: 255 * value)
    if top == 0:
        return None, _("its mask is entirely black and was ignored: the whole image counts")
    image_shape, mask_shape = decoded.width / decoded.height, mask.width / mask.height
    problem = ""
    if max(image_shape / mask_shape, mask_shape / image_shape) > _MAX_SHAPE_RATIO:
        size = f"{mask.width}x{mask.height}"
        problem = _("its mask has another shape ({size} px) and was stretched to the shape of the image", size=size)
    return _resized(mask, (decoded.width, decoded.height), limits.max_stored_pixels), problem


def is_gray(thumbnail: Image.Image) -> bool:
    """True without color, as masks are."""
    pixels = np.asarray(thumbnail.convert("RGB"), dtype=np.int16)
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    return float((spread >= _GRAY).mean()) <= _COLORED_SHARE


def is_black_and_white(thumbnail: Image.Image) -> bool:
    """True for areas of black and of white and hardly anything between, as in masks and hardly any photograph."""
    gray = np.asarray(thumbnail.convert("L"))
    dark, bright = float((gray <= _DARK).mean()), float((gray >= _BRIGHT).mean())
    return is_gray(thumbnail) and dark + bright >= _MIN_EXTREME_SHARE and dark > 0 and 0 < bright <= _MAX_PAPER_SHARE


def probable_masks(sources: Mapping[int, str], thumbnails: Mapping[int, Path]) -> Iterator[tuple[int, int]]:
    """Yield images that are probably masks, and an image of the same name in a folder beside theirs.

    All images of a folder must be black and white, and those of the same names in one other folder must not.

    Args:
        sources: The images by number.
        thumbnails: Their thumbnails.
    """
    by_name: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    folders: defaultdict[str, list[int]] = defaultdict(list)
    for number, source in sources.items():
        parent, folder, stem = _around(source)
        by_name[parent, stem][folder] = number
        folders[f"{parent}/{folder}"].append(number)

    def looks(number: int) -> bool:
        with Image.open(thumbnails[number]) as opened:
            return is_black_and_white(opened)

    def others(number: int) -> dict[str, int]:
        parent, folder, stem = _around(sources[number])
        return {f"{parent}/{name}": other for name, other in by_name[parent, stem].items() if name != folder}

    # The first image that does not look like a mask saves a look at all others.
    suspected = {
        folder: numbers for folder, numbers in folders.items() if all(map(others, numbers)) and all(map(looks, numbers))
    }
    for numbers in suspected.values():
        partners = [[other for folder, other in others(n).items() if folder not in suspected] for n in numbers]
        if all(partners) and not any(looks(other) for each in partners for other in each):
            yield from ((number, each[0]) for number, each in zip(numbers, partners, strict=True))


def _around(source: str) -> tuple[str, str, str]:
    """The folder around an image's folder, the image's folder, and the image's stem."""
    pure = PurePosixPath(source)
    return str(pure.parent.parent), pure.parent.name, same_name_key(pure.stem)


def _resized(mask: Image.Image, size: Size, max_pixels: int) -> Image.Image:
    share = min(1.0, (max_pixels / (size[0] * size[1])) ** 0.5)
    wanted = max(1, round(size[0] * share)), max(1, round(size[1] * share))
    return mask if mask.size == wanted else mask.resize(wanted, Image.Resampling.BILINEAR)


def store_mask(mask: Image.Image, folder: Path) -> str:
    """Write a mask under a name derived from its content, and return the name; equal masks share a file."""
    digest = hashlib.sha256(f"{mask.width}x{mask.height}:".encode() + mask.tobytes())
    name = f"{digest.hexdigest()[:32]}.png"
    buffer = io.BytesIO()
    mask.save(buffer, "PNG", compress_level=6)
    folder.mkdir(exist_ok=True)
    # Several decoders may write the same mask at once.
    with atomic_write(folder / name) as partial:
        partial.write_bytes(buffer.getvalue())
    return name


def open_mask(dataset_dir: Path, path: str) -> Image.Image:
    """Open a stored mask, 8-bit gray.

    Raises:
        UnreadableFilesError: The file is missing or damaged.
    """
    with reading(dataset_dir / path), Image.open(dataset_dir / path) as opened:
        return opened.convert("L")


def fit_mask(mask: Image.Image, bucket: Size, cells: Size) -> Image.Image:
    """The masked share of each of `cells` (width, height), 0 to 255, cropped like `buckets.fit` crops an image.

    By area in one pass: Lanczos would ring at hard edges.
    """
    return mask.resize(cells, Image.Resampling.BOX, box=crop_box(mask.size, bucket))
