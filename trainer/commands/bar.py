"""The progress bar of the commands that go through a dataset."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Bar:
    """Shows one bar a phase on stderr; nothing where that is no terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.desc != phase:
            self.__exit__()
            self._bar = tqdm(desc=phase, file=sys.stderr, disable=None, unit="picture", dynamic_ncols=True)
            # tqdm adds a colon to what it is given.
            self._bar.desc = phase
        self._bar.total = total
        self._bar.update(done - self._bar.n)
