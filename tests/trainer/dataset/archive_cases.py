"""Archives to be made, and what is read from each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.trainer.dataset.image_files import (
    png,
)
from trainer.protocol.report import RefusalKind

CAT, DOG = "a red cat on a mat", "a brown dog running"
CAPTIONS = {"cat": CAT, "dog": DOG}


@dataclass(frozen=True, kw_only=True)
class Archive:
    """What is read from one archive."""

    #: Caption by the path of each image.
    images: Mapping[str, str] = field(default_factory=dict)
    #: By the path of each member that is told as not used.
    refused: Mapping[str, RefusalKind] = field(default_factory=dict)
    #: Why the whole archive is refused.
    whole: RefusalKind | None = None
    #: Images that are told as damaged or unsupported.
    dropped: frozenset[str] = frozenset()


Build = Callable[[Path], Archive]


def register_in(cases: dict[str, Build]) -> Callable[[str], Callable[[Build], Build]]:
    """Return a decorator that adds the maker of an archive to the cases, under its file name."""

    def archive(name: str) -> Callable[[Build], Build]:
        def register(build: Build) -> Build:
            assert name not in cases
            cases[name] = build
            return build

        return register

    return archive


@cache
def image(seed: int) -> bytes:
    return png(seed, 96, 72)


def members(*paths: str, texts: bool = True) -> dict[str, bytes]:
    """Images at the paths, which end with `cat.png` or `dog.png`, and the captions beside them."""
    files: dict[str, bytes] = {}
    for seed, path in enumerate(paths):
        stem, _dot, _ending = path.rpartition(".")
        files[path] = image(seed)
        if texts:
            files[f"{stem}.txt"] = CAPTIONS[stem[-3:]].encode()
    return files


def both(folder: str = "") -> dict[str, str]:
    return {f"{folder}cat.png": CAT, f"{folder}dog.png": DOG}
