"""Which files are masks of which pictures, what a mask says, and how it follows a picture into its bucket.

A mask is white where the loss counts and black where it does not. It lies beside its picture (`cat.mask.png`,
OneTrainer's `cat-masklabel.png`) or, under the picture's name, in a folder `masks` (what kohya calls
`conditioning_data_dir`); without one, a picture's transparency is its mask (kohya's `alpha_mask`).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from trainer.dataset.buckets import Size, crop_box
from trainer.dataset.entry import Entry
from trainer.dataset.images.decoding import Picture, PictureError, decode_mask
from trainer.dataset.kinds import has_image_name
from trainer.dataset.limits import Limits
from trainer.dataset.names import same_name_key, stem_key
from trainer.errors import DatasetError

#: Ends of a mask's stem; files so named are never pictures. The first that a picture has is taken.
_ENDINGS = (".mask", "-masklabel")
#: Folders of masks, if there are pictures of the same names outside of them,
_FOLDERS = ("masks", "mask")
#: or in a folder beside them that is called so.
_PICTURE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos")
#: Widths over heights this far apart are two shapes, and not rounding.
_OTHER_SHAPE = 1.03


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The masks among the files that were handed in."""

    #: By the source of its picture.
    of_picture: Mapping[str, Entry] = field(default_factory=dict)
    #: Sources of all masks; none of them is a picture.
    sources: frozenset[str] = frozenset()
    #: Those that no picture uses, by source, and why.
    unused: Mapping[str, str] = field(default_factory=dict)


def find_masks(entries: Sequence[Entry]) -> Masks:
    """The masks among `entries`, told by their names alone."""
    named = [entry for entry in entries if entry.told is None and has_image_name(entry.path)]
    places = {entry.source: _place(entry.path) for entry in named}
    pictures = [entry for entry in named if places[entry.source] is None]
    by_name: dict[tuple[int, str], list[Entry]] = {}
    for entry in pictures:
        # A picture whose name has an extension twice belongs under both.
        for key in {stem_key(entry.path), same_name_key(entry.path)}:
            by_name.setdefault((entry.scope, key), []).append(entry)
    wanted = [(entry, place) for entry in named if (place := places[entry.source]) is not None]
    served = {
        entry.source: next((held for key in place.pictures if (held := by_name.get((entry.scope, key)))), [])
        for entry, place in wanted
    }
    # A class may be called "masks": a folder of that name without partners holds pictures.
    partnered = {(entry.scope, place.folder) for entry, place in wanted if place.folder and served[entry.source]}
    masks = [(e, p) for e, p in wanted if p.folder is None or (e.scope, p.folder) in partnered]
    of_picture: dict[str, Entry] = {}
    for entry, _ in sorted(masks, key=lambda mask: mask[1].rank):
        for picture in served[entry.source]:
            of_picture.setdefault(picture.source, entry)
    used = {entry.source for entry in of_picture.values()}
    return Masks(
        of_picture=of_picture,
        sources=frozenset(entry.source for entry, _ in masks),
        unused={entry.source: _why_unused(served[entry.source]) for entry, _ in masks if entry.source not in used},
    )


def _why_unused(pictures: Sequence[Entry]) -> str:
    if pictures:
        return f"it is a mask, but {pictures[0].source} has another one, which goes first"
    return "it is a mask, but no picture has its name"


def mask_files_of(picture: Path) -> Iterable[Path]:
    """What may lie beside a loose picture as its mask."""
    return (picture.with_name(f"{picture.stem}{ending}.png") for ending in _ENDINGS)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a mask's path says of its picture."""

    #: Keys of the picture's path without its extension, or of all of it; the first that there is.
    pictures: tuple[str, ...]
    #: Key of the folder that makes it a mask; None where its own name does.
    folder: str | None
    rank: int


def _place(path: str) -> _Place | None:
    """Whose mask a file of this path would be; None if it can only be a picture."""
    pure = PurePosixPath(path)
    for rank, ending in enumerate(_ENDINGS):
        if pure.stem.lower().endswith(ending) and len(pure.stem) > len(ending):
            picture = pure.with_name(pure.stem[: -len(ending)])
            return _Place(pictures=(same_name_key(str(picture)),), folder=None, rank=rank)
    parts = pure.parent.parts
    for depth in reversed(range(len(parts))):
        if parts[depth].lower() in _FOLDERS:
            folder = same_name_key("/".join(parts[: depth + 1]))
            tails = [(), *((name,) for name in _PICTURE_FOLDERS)]
            pictures = [PurePosixPath(*parts[:depth], *tail, *parts[depth + 1 :], pure.stem) for tail in tails]
            keys = tuple(same_name_key(str(picture)) for picture in pictures)
            return _Place(pictures=keys, folder=folder, rank=len(_ENDINGS))
    return None


def mask_of(picture: Picture, data: bytes | None, limits: Limits) -> tuple[Image.Image | None, str]:
    """The mask of a decoded picture, 8-bit grey in its shape, and what is wrong with it in words.

    `data` is a mask file, which goes before the picture's transparency. None stands for a mask that is white all over
    for want of one. Runs in a decoder's process.
    """
    if data is None:
        mask = picture.alpha
        if mask is None or mask.getextrema() == (255, 255):
            return None, ""
    else:
        try:
            mask = decode_mask(data, limits)
        except PictureError as error:
            return None, f"its mask cannot be used: {error.message}; all of the picture counts"
    top = mask.getextrema()[1]
    if top == 1:
        # Written by a program that counts 0 and 1.
        mask = mask.point(lambda value: 255 * value)
    if top == 0:
        return None, "its mask is black all over and was left out: all of the picture counts"
    shape, own = picture.width / picture.height, mask.width / mask.height
    problem = ""
    if max(shape / own, own / shape) > _OTHER_SHAPE:
        problem = f"its mask has another shape ({mask.width}x{mask.height} px) and was stretched to the picture's"
    return _in_shape(mask, (picture.width, picture.height), limits.max_stored_pixels), problem


def _in_shape(mask: Image.Image, size: Size, max_pixels: int) -> Image.Image:
    share = min(1.0, (max_pixels / (size[0] * size[1])) ** 0.5)
    wanted = max(1, round(size[0] * share)), max(1, round(size[1] * share))
    return mask if mask.size == wanted else mask.resize(wanted, Image.Resampling.BILINEAR)


def store_mask(mask: Image.Image, folder: Path) -> str:
    """Write a mask under a name that says what is in it; returns the name.

    Pictures that share a mask share its file: whoever writes it writes the same.
    """
    digest = hashlib.sha256(f"{mask.width}x{mask.height}:".encode() + mask.tobytes())
    name = f"{digest.hexdigest()[:32]}.png"
    buffer = io.BytesIO()
    mask.save(buffer, "PNG", compress_level=6)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(buffer.getvalue())
    return name


def open_mask(dataset_dir: Path, path: str) -> Image.Image:
    """A stored mask, whole, 8-bit grey.

    Raises:
        DatasetError: it is gone or damaged.
    """
    try:
        with Image.open(dataset_dir / path) as opened:
            return opened.convert("L")
    except OSError as error:
        raise DatasetError(f"{path} of the dataset cannot be read ({error}).", "Prepare the dataset again.") from error


def fit_mask(mask: Image.Image, bucket: Size, cells: Size) -> Image.Image:
    """The share of each of `cells` (width, height) that is masked, 0 to 255, cropped as `buckets.fit` crops a picture.

    By area, in one pass: Lanczos would make white ripples beside a hard edge.
    """
    return mask.resize(cells, Image.Resampling.BOX, box=crop_box(mask.size, bucket))
