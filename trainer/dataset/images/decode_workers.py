"""Pictures decoded on all cores, in processes that may run out of memory or crash without harm to the rest."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from PIL import Image
from pydantic import ConfigDict

from trainer.dataset.images.decoding import Picture, PictureError, decode
from trainer.dataset.images.features import feature_of
from trainer.dataset.images.mask_files import mask_of, store_mask
from trainer.dataset.images.perceptual_hash import BYTES_AS_BASE64, Look, look_of
from trainer.dataset.images.quality import Quality, measure
from trainer.dataset.limits import Limits
from trainer.errors import DecodersError
from trainer.protocol.report import FindingKind

THUMBNAIL_PX = 192


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to decode, and where its results go."""

    number: int
    data: bytes
    #: SHA-256 of `data`.
    file_sha256: str = ""
    #: Without an extension, which the content decides.
    picture_path: Path
    thumbnail_path: Path
    #: Folder that its mask goes to, if it has one.
    mask_folder: Path
    #: The mask file that came with it.
    mask: bytes | None = None
    #: SHA-256 of `mask`.
    mask_file_sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What is known of a picture that is stored now."""

    __pydantic_config__: ClassVar[ConfigDict] = BYTES_AS_BASE64
    #: SHA-256 of the file that was handed in.
    file_sha256: str = ""
    #: SHA-256 of the decoded pixels and their size.
    pixels_sha256: str
    #: File names of the stored picture and of its thumbnail, each in its folder.
    picture: str
    thumbnail: str
    #: Upright size as handed in, px.
    width: int
    height: int
    notes: tuple[str, ...]
    look: Look
    quality: Quality
    #: `features.feature_of` its thumbnail.
    feature: bytes
    #: SHA-256 of the mask file that came with it; file name of what was stored of it, or of the transparency.
    mask_file_sha256: str = ""
    mask: str | None = None
    #: What is wrong with the mask, in words.
    mask_problem: str = ""

    @property
    def came_as(self) -> tuple[str, str]:
        """The files that it was decoded from, by SHA-256: the picture and its mask."""
        return self.file_sha256, self.mask_file_sha256


Outcome = Decoded | PictureError
#: What an earlier preparation knows of the same file, put into the job's place; None if it must be decoded.
Known = Callable[[Job], Decoded | None]


def decode_all(
    jobs: Iterable[Job], limits: Limits, *, known: Known = lambda job: None, processes: int | None = None
) -> Iterator[tuple[int, Outcome]]:
    """Decode every job and yield its number and outcome, in the order of the jobs.

    `jobs` is drawn only as fast as pictures are decoded, so that few of them are in memory at once. What `known` has
    an answer for is not decoded.
    """
    count = processes or usable_cores()
    pool = _pool(count, limits)
    waiting: deque[tuple[Job, Future[Outcome]]] = deque()
    source = iter(jobs)
    try:
        while True:
            while len(waiting) < 2 * count and (job := next(source, None)) is not None:
                reused = known(job)
                waiting.append((job, _submit(pool, job, limits) if reused is None else _done(reused)))
            if not waiting:
                return
            job, future = waiting.popleft()
            try:
                yield job.number, future.result()
            except BrokenProcessPool:
                # One of those under way has killed its process, and all of them lost their result: find out which.
                pool.shutdown(wait=True, cancel_futures=True)
                suspects = [(job, future), *waiting]
                waiting.clear()
                for suspect, lost in suspects:
                    has_result = lost.done() and not lost.cancelled() and lost.exception() is None
                    yield suspect.number, lost.result() if has_result else _decode_alone(suspect, limits)
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


def _done(outcome: Outcome) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future


def _decode_alone(job: Job, limits: Limits) -> Outcome:
    with _pool(1, limits) as pool:
        try:
            return pool.submit(decode_one, job, limits).result()
        except BrokenProcessPool:
            _require_workers(limits)
            message = f"its decoder crashed, or took more than {limits.decode_cpu_s:g} s of processor time"
            return PictureError(FindingKind.CORRUPT, message)


def _require_workers(limits: Limits) -> None:
    """Make sure that it is the picture that kills decoders, and not this machine.

    Raises:
        DecodersError: they cannot even be started.
    """
    with _pool(1, limits) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise DecodersError(
                "The processes that decode pictures cannot be started on this machine.",
                f"Look above for why; the memory that one may have is {limits.worker_memory_bytes >> 20} MiB "
                "(--limit worker_memory_bytes=…).",
            ) from error


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
    # There are as many workers as cores: OpenCV's own threads would only get in each other's way.
    cv2.setNumThreads(1)


def decode_one(job: Job, limits: Limits) -> Outcome:
    """Decode one picture, store it and its thumbnail, and look at it. Runs in a worker."""
    signal.setitimer(signal.ITIMER_PROF, limits.decode_cpu_s)
    try:
        picture = decode(job.data, limits)
        stored = _store(picture, job.picture_path)
        pixels = np.asarray(picture.image)
        thumbnail = _thumbnail(picture.image)
        # As good as a PNG to every hash, at a fifth of its time.
        thumbnail.save(job.thumbnail_path, "JPEG", quality=92, subsampling=0)
        mask, mask_problem = mask_of(picture, job.mask, limits)
        height, width = pixels.shape[:2]
        digest = hashlib.sha256(f"{width}x{height}:".encode())
        digest.update(pixels.data)
        return Decoded(
            file_sha256=job.file_sha256,
            pixels_sha256=digest.hexdigest(),
            picture=stored.name,
            thumbnail=job.thumbnail_path.name,
            width=picture.width,
            height=picture.height,
            notes=picture.notes,
            look=look_of(thumbnail),
            quality=measure(pixels),
            feature=feature_of(thumbnail),
            mask_file_sha256=job.mask_file_sha256,
            mask=None if mask is None else store_mask(mask, job.mask_folder),
            mask_problem=mask_problem,
        )
    except PictureError as error:
        return error
    except MemoryError:
        return PictureError(FindingKind.TOO_MANY_PIXELS, "decoding it takes more memory than is allowed")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _store(picture: Picture, path: Path) -> Path:
    if picture.plain is not None:
        data, extension = picture.plain
        path = path.with_suffix(extension)
        path.write_bytes(data)
    elif picture.is_lossy:
        path = path.with_suffix(".jpg")
        picture.image.save(path, "JPEG", quality=95, subsampling=0)
    else:
        path = path.with_suffix(".png")
        # Level 1: half the time of the default for 10 % more bytes.
        picture.image.save(path, "PNG", compress_level=1)
    return path


def _thumbnail(image: Image.Image) -> Image.Image:
    share = THUMBNAIL_PX / max(image.size)
    if share >= 1:
        return image
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    # In whole steps first: a third of the time of Lanczos over every pixel.
    return image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
