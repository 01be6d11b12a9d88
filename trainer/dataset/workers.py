"""Pictures decoded on all cores, in processes that may run out of memory or crash without harm to the rest."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.dataset.limits import Limits
from trainer.dataset.looks import Look, look_of
from trainer.dataset.picture import PictureError, decode
from trainer.protocol.report import FindingKind

THUMBNAIL_PX = 192


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to decode, and where its results go."""

    number: int
    data: bytes
    picture_path: Path
    thumbnail_path: Path


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What is known of a picture whose pixels now lie in `Job.picture_path`."""

    #: SHA-256 of the stored pixels and their size.
    pixels_sha256: str
    #: Upright size as handed in, px.
    width: int
    height: int
    notes: tuple[str, ...]
    look: Look


Outcome = Decoded | PictureError


def decode_all(jobs: Iterable[Job], limits: Limits, *, processes: int | None = None) -> Iterator[tuple[int, Outcome]]:
    """Decode every job and yield its number and outcome, in the order of the jobs.

    `jobs` is drawn only as fast as pictures are decoded, so that few of them are in memory at once.
    """
    count = processes or usable_cores()
    pool = _pool(count, limits)
    waiting: deque[tuple[Job, Future[Outcome]]] = deque()
    source = iter(jobs)
    try:
        while True:
            while len(waiting) < 2 * count and (job := next(source, None)) is not None:
                waiting.append((job, _submit(pool, job, limits)))
            if not waiting:
                return
            job, future = waiting.popleft()
            try:
                yield job.number, future.result()
            except BrokenProcessPool:
                # One of those under way has killed its process, and all of them lost their result: find out which.
                pool.shutdown(wait=True, cancel_futures=True)
                suspects = [job, *(other for other, _ in waiting)]
                waiting.clear()
                for suspect in suspects:
                    yield suspect.number, _decode_alone(suspect, limits)
                pool = _pool(count, limits)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _submit(pool: ProcessPoolExecutor, job: Job, limits: Limits) -> Future[Outcome]:
    try:
        return pool.submit(decode_one, job, limits)
    except BrokenProcessPool as error:
        failed: Future[Outcome] = Future()
        failed.set_exception(error)
        return failed


def _decode_alone(job: Job, limits: Limits) -> Outcome:
    with _pool(1, limits) as pool:
        try:
            return pool.submit(decode_one, job, limits).result()
        except BrokenProcessPool:
            message = f"its decoder crashed, or took more than {limits.decode_cpu_s:g} s of processor time"
            return PictureError(FindingKind.CORRUPT, message)


def _pool(processes: int, limits: Limits) -> ProcessPoolExecutor:
    # A fork of this process would carry along whatever it has loaded, and deadlock on its threads;
    # a fork of a server that has loaded only this module costs 10 ms.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_confine, initargs=(limits,))


def _confine(limits: Limits) -> None:
    """Bound what a decoder can do to this machine; runs first in each worker."""
    resource.setrlimit(resource.RLIMIT_AS, (limits.worker_memory_bytes, limits.worker_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Ctrl-C is for the parent, which then shuts the pool down in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A decoder in C returns to no Python handler: the default action ends the process.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def decode_one(job: Job, limits: Limits) -> Outcome:
    """Decode one picture, store it and its thumbnail, and look at it. Runs in a worker."""
    signal.setitimer(signal.ITIMER_PROF, limits.decode_cpu_s)
    try:
        picture = decode(job.data, limits)
        image = picture.image
        # Level 1: half the time of the default for 10 % more bytes.
        image.save(job.picture_path, "PNG", compress_level=1)
        thumbnail = _thumbnail(image)
        thumbnail.save(job.thumbnail_path, "PNG", compress_level=1)
        size = f"{image.width}x{image.height}:".encode()
        return Decoded(
            pixels_sha256=hashlib.sha256(size + image.tobytes()).hexdigest(),
            width=picture.width,
            height=picture.height,
            notes=picture.notes,
            look=look_of(thumbnail),
        )
    except PictureError as error:
        return error
    except MemoryError:
        return PictureError(FindingKind.TOO_MANY_PIXELS, "decoding it takes more memory than is allowed")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _thumbnail(image: Image.Image) -> Image.Image:
    share = THUMBNAIL_PX / max(image.size)
    if share >= 1:
        return image
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
