"""Measures the detector of near duplicates: copies that it finds, groups it keeps together, and wrong groups.

    python -m bench.duplicates FOLDER [--groups 24] [--show PAGES]

Each folder below FOLDER is a dataset of different images of one kind (photographs, icons, …). Some of its images get
three copies each with random edits; the others are look-alikes that must stay alone. Results: docs/dataset-checks.md.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from trainer.dataset.images.decode_workers import THUMBNAIL_PX
from trainer.dataset.images.image_quality import reduced
from trainer.dataset.images.image_registration import ThumbnailComparer
from trainer.dataset.images.near_duplicates import UnionFind, near_pairs
from trainer.dataset.images.perceptual_hash import HashTable, image_hashes

Edit = Callable[[Image.Image, Random], Image.Image]

#: Copies of each image.
_COPIES = 3
#: Shares of training, validation and test.
_SPLIT = (0.7, 0.15, 0.15)
#: Side of an image on a page of wrong pairs, px.
_CELL_PX = 160


@dataclass(frozen=True, kw_only=True)
class _Member:
    """An image of a dataset: an original, or a copy of one."""

    source: Path
    #: Name of the edit; "" is the original.
    edit: str
    image: Image.Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--groups", type=int, default=24, help="images of each dataset that get copies")
    parser.add_argument("--images", type=int, default=200, help="images of each dataset, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=Path, help="a folder for pages of missed copies and wrong pairs")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    totals: dict[str, float] = dict.fromkeys(("groups", "whole", "wrong", "together"), 0)
    of_edits: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for dataset in sorted(path for path in args.folder.iterdir() if path.is_dir()):
        members = _dataset(dataset, args.groups, args.images, Random(args.seed))
        wrong, missed = _examine(members, totals, of_edits, dataset.name)
        if args.show is not None:
            _show(args.show / f"{dataset.name}-wrong.png", wrong)
            _show(args.show / f"{dataset.name}-missed.png", missed)
    for (kind, edit), found in sorted(of_edits.items()):
        _print(f"{kind:10} {edit:26} {sum(found):4} of {len(found):4}")
    _print(f"all: {totals['whole']} of {totals['groups']} groups whole, {totals['wrong']} wrong pairs")
    _print(f"groups in one split, on average: {totals['together'] / max(1, totals['groups']):.1%}")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _dataset(folder: Path, groups: int, most: int, rng: Random) -> list[_Member]:
    """Different images, and copies of the first ones."""
    paths = sorted(folder.iterdir())
    rng.shuffle(paths)
    edits = {**_EDITS, **(_PHOTO_EDITS if folder.name.startswith("photo") else {})}
    members = []
    for index, path in enumerate(paths[:most]):
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        members.append(_Member(source=path, edit="", image=image))
        if index < groups:
            chosen = rng.sample(sorted(edits), _COPIES)
            members += [_Member(source=path, edit=edit, image=edits[edit](image, rng)) for edit in chosen]
    return members


def _examine(
    members: Sequence[_Member],
    totals: dict[str, float],
    of_edits: defaultdict[tuple[str, str], list[bool]],
    name: str,
) -> tuple[list[tuple[_Member, _Member]], list[tuple[_Member, _Member]]]:
    """Count copies found and whole groups; return wrong pairs and missed copies."""
    sets, pairs = _grouped([member.image for member in members])
    wrong = [(members[a], members[b]) for a, b in pairs if members[a].source != members[b].source]
    originals = {member.source: index for index, member in enumerate(members) if not member.edit}
    missed, copied = [], set()
    for index, member in enumerate(members):
        if member.edit:
            original = originals[member.source]
            is_found = sets.find(index) == sets.find(original)
            of_edits["photograph" if name.startswith("photo") else "drawing", member.edit].append(is_found)
            copied.add(member.source)
            if not is_found:
                missed.append((members[original], member))
    broken = {original.source for original, _copy in missed}
    parts: defaultdict[Path, set[int]] = defaultdict(set)
    for index, member in enumerate(members):
        if member.source in copied:
            parts[member.source].add(sets.find(index))
    counted = {
        "groups": len(copied),
        "whole": len(copied - broken),
        "wrong": len(wrong),
        # Parts that are not found to belong together share a split by chance.
        "together": sum(sum(share ** len(found) for share in _SPLIT) for found in parts.values()),
    }
    for what, number in counted.items():
        totals[what] += number
    _print(f"{name}: {len(members)} images, {len(copied) - len(broken)} of {len(copied)} groups whole")
    for one, other in wrong:
        _print(f"  wrong: {one.source.name} {one.edit} – {other.source.name} {other.edit}")
    return wrong, missed


def _grouped(images: Sequence[Image.Image]) -> tuple[UnionFind, list[tuple[int, int]]]:
    """Groups of the images, and the pairs that made them, as a preparation finds them."""
    with tempfile.TemporaryDirectory() as folder:
        hashes, paths = {}, {}
        for index, image in enumerate(images):
            small = reduced(np.asarray(image), THUMBNAIL_PX / max(image.size))
            paths[index] = Path(folder) / f"{index}.jpg"
            Image.fromarray(small).save(paths[index], quality=92, subsampling=0)
            hashes[index] = image_hashes(Image.fromarray(small))
        pairs = [
            (one, other) for one, other, _ in near_pairs(HashTable(hashes.items()), ThumbnailComparer(paths).difference)
        ]
    sets = UnionFind(len(images))
    for one, other in pairs:
        sets.join(one, other)
    return sets, pairs


def _show(path: Path, pairs: Sequence[tuple[_Member, _Member]], columns: int = 4) -> None:
    """Write a page of pairs."""
    if not pairs:
        return
    rows = -(-len(pairs) // columns)
    page = Image.new("RGB", (columns * (2 * _CELL_PX + 12), rows * (_CELL_PX + 16)), "gray")
    draw = ImageDraw.Draw(page)
    for index, pair in enumerate(pairs):
        left, top = index % columns * (2 * _CELL_PX + 12), index // columns * (_CELL_PX + 16)
        for side, member in enumerate(pair):
            cell = ImageOps.contain(member.image, (_CELL_PX, _CELL_PX))
            page.paste(cell, (left + side * (_CELL_PX + 2), top + 14))
        draw.text((left, top), f"{pair[0].source.stem[:24]} {pair[1].edit}", "white")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def _cropped(least: float, most: float) -> Edit:
    """Cut off a share of width and of height, divided between both sides by chance."""

    def edit(image: Image.Image, rng: Random) -> Image.Image:
        across, down, x, y = rng.uniform(least, most), rng.uniform(least, most), rng.random(), rng.random()
        return _cut(image, across * x, down * y, across * (1 - x), down * (1 - y))

    return edit


_COLORS = ("white", "black", "navy", "beige", "darkred", "silver", "#6a5acd")


def _bordered(least: float, most: float) -> Edit:
    def edit(image: Image.Image, rng: Random) -> Image.Image:
        return ImageOps.expand(image, round(rng.uniform(least, most) * min(image.size)), rng.choice(_COLORS))

    return edit


def _double_border(image: Image.Image, rng: Random) -> Image.Image:
    return _bordered(0.03, 0.08)(_bordered(0.02, 0.05)(image, rng), rng)


def _padded_square(image: Image.Image, rng: Random) -> Image.Image:
    side = round(max(image.size) * rng.uniform(1.0, 1.15))
    square = Image.new("RGB", (side, side), rng.choice(_COLORS))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _turned(image: Image.Image, rng: Random) -> Image.Image:
    return image.transpose(
        rng.choice((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270))
    )


def _gray(image: Image.Image, rng: Random) -> Image.Image:
    return image.convert("L").convert("RGB")


def _exposed(image: Image.Image, rng: Random) -> Image.Image:
    image = ImageEnhance.Brightness(image).enhance(rng.choice((rng.uniform(0.6, 0.85), rng.uniform(1.1, 1.25))))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.75, 1.2))


def _saved_again(image: Image.Image, rng: Random) -> Image.Image:
    scale = min(1.0, max(rng.uniform(0.4, 0.9), 128 / min(image.size)))
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _jpeg(small, rng.randint(30, 80))


def _watermarked(image: Image.Image, rng: Random) -> Image.Image:
    """Half-transparent text across the middle."""
    layer = image.copy()
    text = rng.choice(("SAMPLE", "© Ann Example", "preview", "stock-example"))
    font = ImageFont.load_default(max(9, image.width / len(text) * rng.uniform(1.0, 1.6)))
    place = image.width / 2, image.height * rng.uniform(0.35, 0.65)
    ImageDraw.Draw(layer).text(
        place, text, rng.choice(("white", "black")), font, "mm", stroke_width=1, stroke_fill="gray"
    )
    return Image.blend(image, layer, rng.uniform(0.3, 0.55))


def _tiled_mark(image: Image.Image, rng: Random) -> Image.Image:
    """Half-transparent text all over."""
    layer = image.copy()
    draw, step = ImageDraw.Draw(layer), max(24, image.width // 4)
    font = ImageFont.load_default(max(9, step / 4))
    for row, y in enumerate(range(0, image.height, step // 2)):
        for x in range(-step // 2 * (row % 2), image.width, step):
            draw.text((x, y), "stock", "white", font, stroke_width=1, stroke_fill="gray")
    return Image.blend(image, layer, rng.uniform(0.3, 0.5))


def _signed(image: Image.Image, rng: Random) -> Image.Image:
    """Small opaque text in a corner."""
    copy = image.copy()
    font = ImageFont.load_default(max(9, image.width / 22))
    place = rng.choice(((0.03, 0.97, "ls"), (0.97, 0.97, "rs"), (0.97, 0.06, "rs")))
    at = place[0] * image.width, place[1] * image.height
    ImageDraw.Draw(copy).text(at, "@ann_example", "white", font, place[2], stroke_width=1, stroke_fill="black")
    return copy


def _next_frame(image: Image.Image, rng: Random) -> Image.Image:
    """The camera moved a little, and so did something in the picture; other grain and exposure."""
    frame = image.rotate(rng.uniform(-1.2, 1.2), Image.Resampling.BICUBIC)
    frame = _cut(frame, *(rng.uniform(0.015, 0.04) for _ in range(4))).resize(image.size, Image.Resampling.BICUBIC)
    side = min(frame.size) // 6
    x, y = (rng.randint(side, length - 2 * side) for length in frame.size)
    frame.paste(frame.crop((x, y, x + side, y + side)), (x + side // 3, y + side // 5))
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(3, 7), (*frame.size[::-1], 3))
    noisy = Image.fromarray(np.clip(np.asarray(frame) + grain, 0, 255).astype(np.uint8))
    return ImageEnhance.Brightness(noisy).enhance(rng.uniform(0.92, 1.08))


def _after(first: Edit, second: Edit) -> Edit:
    return lambda image, rng: second(first(image, rng), rng)


_EDITS: Mapping[str, Edit] = {
    "gray": _gray,
    "border of 3 to 8 %": _bordered(0.03, 0.08),
    "border of 8 to 15 %": _bordered(0.08, 0.15),
    "two borders": _double_border,
    "padded to a square": _padded_square,
    "turned": _turned,
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "crop of 4 to 9 %": _cropped(0.04, 0.09),
    "crop of 10 to 15 %": _cropped(0.1, 0.15),
    "crop of 16 to 25 %": _cropped(0.16, 0.25),
    "other exposure": _exposed,
    "saved again": _saved_again,
    "watermark": _watermarked,
    "tiled watermark": _tiled_mark,
    "signed": _signed,
    "gray, turned": _after(_gray, _turned),
    "cropped, saved again": _after(_cropped(0.05, 0.12), _saved_again),
    "mirrored, border": _after(lambda image, rng: ImageOps.mirror(image), _bordered(0.04, 0.1)),
}
_PHOTO_EDITS: Mapping[str, Edit] = {"next frame": _next_frame}

if __name__ == "__main__":
    main()
