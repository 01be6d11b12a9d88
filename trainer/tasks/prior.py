"""Class pictures for prior preservation (DreamBooth, Ruiz et al. 2022, arXiv:2208.12242): the base model draws what the
subject is one of, once for a base and a prompt, and trains on it too, so that it does not forget."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from PIL import Image as PILImage

from trainer.dataset.seeds import derive_seed
from trainer.dataset.split.mixing import Source
from trainer.protocol.mix import MixRole
from trainer.protocol.report import Counts, DatasetReport, Image, Split
from trainer.protocol.settings import Prior

#: Draws a picture for each (prompt, seed); a picture depends on its own prompt and seed alone.
Draw: TypeAlias = Callable[[Sequence[tuple[str, int]]], Sequence[PILImage.Image]]

#: Pictures that are drawn at once, and at most lost by a kill.
_TOGETHER = 4
_PICTURES = "images"


def prior_source(
    prior: Prior,
    *,
    folder: Path,
    fingerprint: str,
    resolution: int,
    draw: Draw,
    between_pictures: Callable[[int, int], None] = lambda done, total: None,
) -> Source:
    """The class pictures as a regularization dataset; those that lie in `folder` already are not drawn again.

    `fingerprint` is of all weights that pictures depend on, the denoiser's too; `resolution` the side of a picture, px.
    `between_pictures` is told done and total before each few pictures, and may raise to stop: what is drawn stays. More
    pictures than last time only draw what is missing, and fewer take the first. Two jobs may share a `folder`.
    """
    own = folder / prior_name(prior, fingerprint=fingerprint, resolution=resolution)
    (own / _PICTURES).mkdir(parents=True, exist_ok=True)
    names = [f"{_PICTURES}/{number:04d}.png" for number in range(1, prior.images + 1)]
    images = [_read(own, name, prior) for name in names]
    missing = [place for place, image in enumerate(images) if image is None]
    for start in range(0, len(missing), _TOGETHER):
        between_pictures(prior.images - len(missing) + start, prior.images)
        places = missing[start : start + _TOGETHER]
        pictures = draw([(prior.class_prompt, derive_seed("prior", prior.seed, place)) for place in places])
        for place, picture in zip(places, pictures, strict=True):
            _write(picture.convert("RGB"), own / names[place])
            images[place] = _read(own, names[place], prior)
    report = _report(prior, [image for image in images if image is not None], resolution)
    return Source(folder=own, report=report, role=MixRole.REGULARIZATION, weight=prior.weight)


def prior_name(prior: Prior, *, fingerprint: str, resolution: int) -> str:
    """The folder's name, which people read in the table of an epoch: the prompt, and a hash of all else that the
    pictures depend on. Not of their number."""
    key = [fingerprint, prior.class_prompt, prior.steps, prior.guidance, prior.seed, resolution]
    words = re.sub(r"[^a-z0-9]+", "-", prior.class_prompt.lower())[:40].strip("-")
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    return f"{words or 'class'}-{digest}"


def _write(picture: PILImage.Image, path: Path) -> None:
    """By rename, so that a file that is there is whole; under a name of its own, so that two jobs may draw the same."""
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        picture.save(file, format="PNG")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _read(folder: Path, name: str, prior: Prior) -> Image | None:
    """A picture that was drawn before; None if there is none, or it is damaged."""
    try:
        with PILImage.open(folder / name) as opened:
            picture = opened.convert("RGB")
    except OSError:
        return None
    return Image(
        source=name,
        status="kept",
        split=Split.TRAIN,
        caption=prior.class_prompt,
        # As the preparation of a dataset hashes it, so that equal pictures are found.
        pixels_sha256=hashlib.sha256(f"{picture.width}x{picture.height}:".encode() + picture.tobytes()).hexdigest(),
        width=picture.width,
        height=picture.height,
        path=name,
    )


def _report(prior: Prior, images: Sequence[Image], resolution: int) -> DatasetReport:
    number = len(images)
    content = [(image.pixels_sha256, image.caption) for image in images]
    return DatasetReport(
        digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        counts=Counts(
            images=number, kept=number, dropped=0, refused=0, train=number, validation=0, test=0, captioned=number
        ),
        summary=f"{number} pictures of “{prior.class_prompt}”, drawn by the base model.",
        images=tuple(images),
        resolution=resolution,
    )
