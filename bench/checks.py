"""Measures the dataset checks: how many planted defects they find, and their false alarms.

    python -m bench.checks FOLDER

FOLDER holds zips of images (`photos_demo.zip`, `stamps_demo.zip`). Results: docs/dataset-checks.md.
`bench.duplicates` measures near duplicates.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from recipes.tiny.demo_dataset import momo_files
from tests.trainer.dataset import defective_images
from trainer.dataset.images.decoding import ImageError, decode
from trainer.dataset.images.image_features import diverse, find_outliers, image_feature, isolated
from trainer.dataset.images.image_quality import measure_quality, quality_findings
from trainer.dataset.input_files import Limits
from trainer.protocol.report import FindingKind

Images = Mapping[str, Image.Image]
Change = Callable[[Image.Image], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    cv2.setNumThreads(1)
    sets = {path.stem: _unzipped(path) for path in sorted(folder.glob("*.zip"))}
    for name, images in sets.items():
        _print(f"{name}: {len(images)} images")
        _print(f"  findings without a planted defect: {_all_findings(images)}")
        for defect, (change, kind) in _DEFECTS.items():
            caught = sum(_is_found(change(_at_512(image)), kind) for image in _with_content(images).values())
            _print(f"  {defect:24} {kind.value:12} {caught:3} of {len(_with_content(images))}")
    drawn = [_jpeg(image) if is_jpeg else image for image, is_jpeg in product(_screens(), (False, True))]
    _print(f"screens, drawn: {sum(_is_found(image, FindingKind.SCREENSHOT) for image in drawn)} of {len(drawn)}")
    _outliers(sets)
    _times(next(iter(sets.values())))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _unzipped(path: Path) -> Images:
    with zipfile.ZipFile(path) as archive:
        return _decoded({name: archive.read(name) for name in archive.namelist()})


def _decoded(files: Mapping[str, bytes]) -> Images:
    images: dict[str, Image.Image] = {}
    for name, data in files.items():
        if name.endswith((".png", ".jpg")):
            try:
                images[name] = decode(data, Limits()).image
            except ImageError:
                continue
    return images


def _with_content(images: Images) -> Images:
    return {name: image for name, image in images.items() if not _is_found(image, FindingKind.BLANK)}


def _all_findings(images: Images) -> str:
    found = (
        (name, finding)
        for name, image in images.items()
        for finding in quality_findings(measure_quality(np.asarray(image)))
    )
    return ", ".join(f"{finding.kind.value} {finding.measure} of {name}" for name, finding in found) or "nothing"


def _is_found(image: Image.Image, kind: FindingKind) -> bool:
    return kind in [finding.kind for finding in quality_findings(measure_quality(np.asarray(image)))]


def _at_512(image: Image.Image) -> Image.Image:
    scale = min(1.0, 512 / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return Image.open(buffer).convert("RGB")


def _blurred(sigma_px: float) -> Change:
    return lambda image: _jpeg(defective_images.blurred(image, sigma_px))


def _moved(length_px: int) -> Change:
    return lambda image: _jpeg(defective_images.moved(image, length_px))


def _levels(gain: float, offset: float) -> Change:
    return lambda image: defective_images.levels(image, gain, offset)


_DEFECTS: Mapping[str, tuple[Change, FindingKind]] = {
    **{f"blur, sigma {sigma} px": (_blurred(sigma), FindingKind.BLUR) for sigma in (1.0, 1.5, 2.0, 3.0)},
    **{f"moved by {length} px": (_moved(length), FindingKind.BLUR) for length in (7, 11, 17)},
    "sharp in the middle only": (lambda image: _jpeg(defective_images.portrait(image)), FindingKind.BLUR),
    "a seventh of the light": (_levels(0.14, 0), FindingKind.TOO_DARK),
    "half of the light": (_levels(0.5, 0), FindingKind.TOO_DARK),
    "washed out to 200-251": (_levels(0.2, 200), FindingKind.WASHED_OUT),
    "contrast of a twelfth": (_levels(0.08, 118), FindingKind.WASHED_OUT),
    "one color": (lambda image: Image.new("RGB", image.size, (90, 120, 40)), FindingKind.BLANK),
}


def _screens() -> list[Image.Image]:
    sizes = ((800, 600, 14), (1920, 1080, 16), (750, 1334, 22))
    pages = [
        defective_images.page(seed, *size, is_dark=dark)
        for seed, (size, dark) in enumerate(product(sizes, (False, True)))
    ]
    return pages + [
        defective_images.file_manager(seed, *size[:2], is_dark=bool(seed % 2)) for seed, size in enumerate(sizes)
    ]


def _features(images: Images) -> list[bytes]:
    thumbnails = [image.copy() for image in images.values()]
    for thumbnail in thumbnails:
        thumbnail.thumbnail((192, 192), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return [image_feature(thumbnail) for thumbnail in thumbnails]


def _outliers(sets: Mapping[str, Images]) -> None:
    character = _features(_decoded(momo_files()))
    features = {name: _features(_with_content(images)) for name, images in sets.items()}
    for name, alike in {**features, "one character": character}.items():
        _print(f"outliers in {name} ({len(alike)}): {len(find_outliers(dict(enumerate(alike)), {}))}")
    mixed = [feature for each in features.values() for feature in each]
    _print(f"outliers in all of them mixed ({len(mixed)}): {len(find_outliers(dict(enumerate(mixed)), {}))}")
    for name, planted in features.items():
        caught = other = 0
        for start in range(0, len(planted) - 2, 3):
            found = find_outliers(dict(enumerate([*planted[start : start + 3], *character])), {})
            caught, other = caught + sum(number < 3 for number in found), other + sum(number >= 3 for number in found)
        count = len(planted) // 3 * 3
        _print(f"three of {name} at a time among one character: {caught} of {count} found, {other} false")


def _times(images: Images) -> None:
    photograph = max(_with_content(images).values(), key=lambda image: len(image.getcolors(2**24) or ()))
    subjects = {
        "photograph 512x768": photograph.resize((512, 768)),
        "photograph 2048x2048": photograph.resize((2048, 2048)),
        "drawing 512x768": defective_images.poster().resize((512, 768)),
        "screen 1920x1080": defective_images.page(0, 1920, 1080, 16),
    }
    for name, image in subjects.items():
        _print(f"{name}: {_milliseconds(lambda image=image: measure_quality(np.asarray(image))):.1f} ms")  # type: ignore[misc]
    thumbnail = photograph.resize((192, 144))
    _print(f"feature: {_milliseconds(lambda: image_feature(thumbnail)):.1f} ms")
    rows = np.random.default_rng(0).normal(0, 0.3, (20_000, 251)).astype("<f2")
    features = {number: row.tobytes() for number, row in enumerate(rows)}
    for name, run in (
        ("outliers", lambda: find_outliers(features, {})),
        ("isolated", lambda: isolated(features, {})),
        ("diverse", lambda: diverse(features)),
    ):
        started = time.perf_counter()
        run()
        _print(f"{name} of 20,000: {time.perf_counter() - started:.1f} s")


def _milliseconds(work: Callable[[], object], rounds: int = 30) -> float:
    """Return the CPU time of the fastest round, which other processes disturb least."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times) * 1e3


if __name__ == "__main__":
    main()
