"""Finds the mask file of each image, decodes and stores masks, and fits them to buckets.

A mask is white where the loss counts and black where it does not. It lies beside its image (`cat.mask.png`, or
OneTrainer's `cat-masklabel.png`), or under the image's name in a folder `masks` (kohya's `conditioning_data_dir`).
Without a mask file, an image's transparency is its mask (kohya's `alpha_mask`).
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from trainer.dataset.buckets import Size, crop_box
from trainer.dataset.images.decoding import DecodedImage, ImageError, decode_mask, unreadable_file
from trainer.dataset.input_files import Limits, SourceEntry, has_image_name, same_name_key, stem_key
from trainer.exchange.files import atomic_write
from trainer.protocol.text import _

#: Endings of a mask's stem, in order of precedence; files with such names are never images.
_ENDINGS = (".mask", "-masklabel")
#: Folders of masks, if images of the same names exist outside of them, or in a sibling folder with one of these names.
_MASK_FOLDERS = ("masks", "mask")
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos")
#: Aspect ratios that differ by a larger factor are different shapes and not rounding.
_MAX_SHAPE_RATIO = 1.03


class MaskIndex:
    """The mask files among the input files, recognized by name alone, and the image of each."""

    def __init__(self, entries: Iterable[SourceEntry]) -> None:
        #: Mask by the source of its image.
        self.by_image: dict[str, SourceEntry] = {}
        #: Sources of all masks; none of them is an image.
        self.sources: set[str] = set()
        #: Masks that no image uses, by source, and the reason.
        self.unused: dict[str, str] = {}

        images: defaultdict[tuple[int, str], list[SourceEntry]] = defaultdict(list)
        candidates: list[tuple[SourceEntry, _MaskName]] = []
        for entry in entries:
            if entry.row_labels is None and has_image_name(entry.path):
                if (name := _mask_name(entry.path)) is not None:
                    candidates.append((entry, name))
                else:
                    # An image whose name has two extensions is found under both.
                    for key in {stem_key(entry.path), same_name_key(entry.path)}:
                        images[entry.scope, key].append(entry)
        masks = [(entry, name, name.find(entry.scope, images)) for entry, name in candidates]
        # A class can be called "masks": a folder of that name in which no file has a partner holds images.
        folders = {(entry.scope, name.folder) for entry, name, partners in masks if partners}
        for entry, name, partners in sorted(masks, key=lambda mask: mask[1].precedence):
            if name.folder is None or (entry.scope, name.folder) in folders:
                self._add(entry, partners)

    def _add(self, mask: SourceEntry, images: Sequence[SourceEntry]) -> None:
        self.sources.add(mask.source)
        used_by = [image for image in images if self.by_image.setdefault(image.source, mask) is mask]
        if not images:
            self.unused[mask.source] = _("it is a mask, but no image has its name")
        elif not used_by:
            reason = _("it is a mask, but {image} has another mask, which is preferred", image=images[0].source)
            self.unused[mask.source] = reason


@dataclass(frozen=True, kw_only=True)
class _MaskName:
    """What the path of a mask tells about its image."""

    #: Possible names of the image, the first existing one counts.
    image_keys: tuple[str, ...]
    #: Key of the folder that makes the file a mask; None if its own name does.
    folder: str | None
    precedence: int

    def find(self, scope: int, images: dict[tuple[int, str], list[SourceEntry]]) -> Sequence[SourceEntry]:
        return next((images[scope, key] for key in self.image_keys if (scope, key) in images), ())


def _mask_name(path: str) -> _MaskName | None:
    """Parse the path of a possible mask; None if the file can only be an image."""
    pure = PurePosixPath(path)
    for precedence, ending in enumerate(_ENDINGS):
        if pure.stem.lower().endswith(ending) and len(pure.stem) > len(ending):
            image = pure.with_name(pure.stem[: -len(ending)])
            return _MaskName(image_keys=(same_name_key(str(image)),), folder=None, precedence=precedence)
    parts = pure.parent.parts
    for depth in reversed(range(len(parts))):
        if parts[depth].lower() in _MASK_FOLDERS:
            siblings: list[tuple[str, ...]] = [(), *((name,) for name in _IMAGE_FOLDERS)]
            images = [PurePosixPath(*parts[:depth], *folder, *parts[depth + 1 :], pure.stem) for folder in siblings]
            return _MaskName(
                image_keys=tuple(same_name_key(str(image)) for image in images),
                folder=same_name_key("/".join(parts[: depth + 1])),
                precedence=len(_ENDINGS),
            )
    return None


def mask_paths_beside(image: Path) -> Iterable[Path]:
    """Where the mask of a loose image can be."""
    return (image.with_name(f"{image.stem}{ending}.png") for ending in _ENDINGS)


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
        DatasetError: The file is missing or damaged.
    """
    try:
        with Image.open(dataset_dir / path) as opened:
            return opened.convert("L")
    except OSError as error:
        raise unreadable_file(path, error) from error


def fit_mask(mask: Image.Image, bucket: Size, cells: Size) -> Image.Image:
    """The masked share of each of `cells` (width, height), 0 to 255, cropped like `buckets.fit` crops an image.

    By area in one pass: Lanczos would ring at hard edges.
    """
    return mask.resize(cells, Image.Resampling.BOX, box=crop_box(mask.size, bucket))
