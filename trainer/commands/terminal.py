"""What commands print: a progress bar, refusals, and nothing from the libraries."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from trainer.console import Progress
from trainer.exchange.dataset_dir import write_progress
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.progress import PreparePhase, PrepareProgress
from trainer.protocol.text import _

#: Between two lines of a progress file.
_PROGRESS_EVERY_S = 0.3


def quieten_libraries() -> None:
    """Turn off the libraries' own output; call it before they are imported, which is when they read it."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def refuse(sentence: str) -> int:
    """Print a sentence on one line of stderr and return the exit status of a refusal."""
    sys.stderr.write(" ".join(sentence.split()) + "\n")
    return EXIT_REFUSED


def not_prepared(folder: Path) -> str:
    """Return the sentence about a folder that is not a prepared dataset."""
    return _("{folder} is not a prepared dataset. Make it with `python -m trainer prepare`.", folder=folder)


class ProgressBar:
    """Shows one bar for each phase on stderr, if that is a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.desc != phase:
            self.__exit__()
            self._bar = tqdm(desc=phase, file=sys.stderr, disable=None, unit="image", dynamic_ncols=True)
            # tqdm adds a colon to the description that it is given.
            self._bar.desc = phase
        self._bar.total = total
        self._bar.update(done - self._bar.n)


class ProgressFile:
    """Writes the progress to a file for another process, a few times a second, and passes it on."""

    def __init__(self, path: Path | None, shown: Progress) -> None:
        self._path = path
        self._shown = shown
        self._phase = ""
        self._next_at = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._shown(phase, done, total)
        if self._path is None or (phase == self._phase and time.monotonic() < self._next_at):
            return
        self._phase, self._next_at = phase, time.monotonic() + _PROGRESS_EVERY_S
        # It is only shown: a full disk must not end the work here.
        with contextlib.suppress(OSError):
            write_progress(self._path, PrepareProgress(phase=PreparePhase(phase), done=done, total=total))
