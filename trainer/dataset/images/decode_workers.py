"""Decodes images on all cores, in processes that may run out of memory or crash without harm to the other images."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import cv2
import numpy as np
import xxhash
from simplejpeg import encode_jpeg

from trainer.dataset.dataset_folder import IMAGES, MASKS, THUMBNAILS
from trainer.dataset.images.damage import Pixels
from trainer.dataset.images.decode_server import server_context
from trainer.dataset.images.decoding import DecodedImage, ImageError, decode, memory_to_decode, out_of_memory
from trainer.dataset.images.image_features import image_feature
from trainer.dataset.images.image_quality import measure_quality, reduced
from trainer.dataset.images.image_record import ImagePixels
from trainer.dataset.images.mask_files import make_mask, store_mask
from trainer.dataset.images.perceptual_hash import image_hashes
from trainer.dataset.input_files import MIB, Limits
from trainer.dataset.memory import SharedMemoryBudget, keep_freed_memory, private_memory_limited
from trainer.errors import DecodersError
from trainer.protocol.report import FindingKind
from trainer.protocol.text import _

#: Longest side of a thumbnail, px.
THUMBNAIL_PX = 192
#: A decoder beside its image: its share of the libraries, and the measures of an image in stored size.
_WORKER_BYTES = 160 * MIB
#: Files that are read ahead, together; each is in the memory of both processes.
_READ_AHEAD_BYTES = 128 * MIB
#: Small files are sent to a decoder several at a time, until they have so many bytes. Of 0.38 Mpx that takes 0.16 ms an
#: image of this process, by fours 0.26; by sixteens it would be 0.13, but decoders would wait for the last one.
_BATCH, _BATCH_BYTES = 8, 2**20


@dataclass(frozen=True, kw_only=True)
class DecodeTask:
    """One image to decode, and where its files go."""

    number: int
    data: bytes
    #: SHA-256 of `data`.
    file_sha256: str = ""
    #: Content of its mask file.
    mask: bytes | None = None
    #: SHA-256 of `mask`.
    mask_file_sha256: str = ""
    #: The dataset folder; its folders for images and thumbnails exist, the one for masks is created when needed.
    root: Path

    @property
    def input_key(self) -> tuple[str, str]:
        """See `ImagePixels.input_key`."""
        return self.file_sha256, self.mask_file_sha256

    @property
    def image_path(self) -> Path:
        """Without an extension, which depends on the content."""
        return self.root / IMAGES / f"{self.number:04}"

    @property
    def thumbnail_path(self) -> Path:
        return self.root / THUMBNAILS / f"{self.number:04}.jpg"


DecodeResult = ImagePixels | ImageError
#: Returns the cached result of the same input, with its files linked to where the task wants them, or None.
CacheLookup = Callable[[DecodeTask], ImagePixels | None]
_Pending = tuple[Sequence[DecodeTask], Future[list[DecodeResult]]]


def decode_all(
    tasks: Iterable[DecodeTask],
    limits: Limits,
    *,
    cached: CacheLookup = lambda task: None,
    processes: int | None = None,
) -> Iterator[tuple[int, DecodeResult]]:
    """Decode every task and yield its number and result, in order.

    Tasks are taken only as fast as images are decoded, so that few of them are in memory at once.

    Raises:
        DecodersError: The decoders cannot run on this machine.
    """
    count = processes or _processes_for(limits)
    pool, marks = _pool(count, limits)
    pending: deque[_Pending] = deque()
    batches = _batches(tasks, cached)
    try:
        while True:
            while _has_room(pending, count) and (following := next(batches, None)) is not None:
                batch, reused = following
                pending.append((batch, _submit(pool, batch, limits) if reused is None else _completed(reused)))
            if not pending:
                return
            done, future = pending.popleft()
            try:
                yield from zip((task.number for task in done), future.result(), strict=True)
            except BrokenProcessPool:
                over_time = _close_broken(pool, marks)
                yield from _recover([(done, future), *pending], limits, over_time)
                pending.clear()
                pool, marks = _pool(count, limits)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(
    tasks: Iterable[DecodeTask], cached: CacheLookup
) -> Iterator[tuple[list[DecodeTask], list[DecodeResult] | None]]:
    """Yield the tasks in order, those that are sent to a decoder together, and the others with their cached result."""
    batch: list[DecodeTask] = []
    for task in tasks:
        reused = cached(task)
        if reused is None:
            batch.append(task)
        if batch and (reused is not None or len(batch) == _BATCH or _bytes(batch) >= _BATCH_BYTES):
            yield batch, None
            batch = []
        if reused is not None:
            yield [task], [reused]
    if batch:
        yield batch, None


def _bytes(tasks: Iterable[DecodeTask]) -> int:
    return sum(len(task.data) + len(task.mask or b"") for task in tasks)


def _has_room(pending: Sequence[_Pending], count: int) -> bool:
    return len(pending) < 2 * count and sum(_bytes(batch) for batch, _future in pending) < _READ_AHEAD_BYTES


def _recover(
    pending: Sequence[_Pending], limits: Limits, over_time: Collection[int]
) -> Iterator[tuple[int, DecodeResult]]:
    """Finish the tasks of a broken pool: one of them killed its process, and all unfinished batches lost their results.

    Those in `over_time` had their time.
    """
    for batch, lost in pending:
        if lost.done() and not lost.cancelled() and lost.exception() is None:
            yield from zip((task.number for task in batch), lost.result(), strict=True)
        else:
            for task in batch:
                yield task.number, _crashed(limits) if task.number in over_time else _decode_alone(task, limits)


def _close_broken(pool: ProcessPoolExecutor, marks: TaskMarks) -> list[int]:
    """Close a pool of which a worker has died; return the tasks at which workers were killed for their CPU time."""
    # The pool does not report how its workers ended.
    workers = dict(pool._processes)
    pool.shutdown(wait=True, cancel_futures=True)
    numbers = marks.numbers()
    return [numbers[pid] for pid, worker in workers.items() if pid in numbers and worker.exitcode == -signal.SIGPROF]


class TaskMarks:
    """The task that each decoder is at, which their parent reads when one was killed; in memory that all share."""

    def __init__(self, context: ForkServerContext, processes: int) -> None:
        #: A process and its task.
        self._rows = context.RawArray("q", 2 * processes)
        self._used = context.Value("i", 0)
        self._row = 0

    def register(self) -> None:
        """Take a row for this process."""
        with self._used:
            self._row = 2 * self._used.value
            self._used.value += 1
        self._rows[self._row] = os.getpid()

    def begin(self, number: int) -> None:
        """Note the task that this process is at; 0 for none."""
        self._rows[self._row + 1] = number

    def numbers(self) -> dict[int, int]:
        """The last task of each process, by its id."""
        return dict(zip(self._rows[::2], self._rows[1::2], strict=True))


def _processes_for(limits: Limits) -> int:
    """One decoder a core, but at most half of their memory without an image."""
    return max(1, min(usable_cores(), limits.decoders_bytes // 2 // _WORKER_BYTES))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _submit(pool: ProcessPoolExecutor, batch: Sequence[DecodeTask], limits: Limits) -> Future[list[DecodeResult]]:
    try:
        return pool.submit(_decode_batch, decode_one, batch, limits)
    except BrokenProcessPool as error:
        failed: Future[list[DecodeResult]] = Future()
        failed.set_exception(error)
        return failed


def _completed(results: list[DecodeResult]) -> Future[list[DecodeResult]]:
    future: Future[list[DecodeResult]] = Future()
    future.set_result(results)
    return future


def _decode_alone(task: DecodeTask, limits: Limits) -> DecodeResult:
    with _pool(1, limits)[0] as pool:
        try:
            return pool.submit(decode_one, task, limits).result()
        except BrokenProcessPool:
            _require_workers(limits)
            return _crashed(limits)


def _crashed(limits: Limits) -> ImageError:
    message = _("its decoder crashed, or took more than {n:g} s of CPU time", n=limits.decode_cpu_s)
    return ImageError(FindingKind.CORRUPT, message)


def _require_workers(limits: Limits) -> None:
    """Check that decoders can run at all, so that the image is at fault and not this machine.

    Raises:
        DecodersError: They cannot be started.
    """
    with _pool(1, limits)[0] as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise DecodersError(
                _("The processes that decode images cannot be started on this machine."),
                _(
                    "The log above says why; together they may use {n} MiB of memory (--limit memory_bytes=…).",
                    n=limits.decoders_bytes >> 20,
                ),
            ) from error


def _pool(processes: int, limits: Limits) -> tuple[ProcessPoolExecutor, TaskMarks]:
    context = server_context()
    memory = SharedMemoryBudget(context, limits.decoders_bytes - processes * _WORKER_BYTES)
    marks = TaskMarks(context, processes)
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_confine, initargs=(memory, marks)), marks


#: Of this worker; set by `_confine`.
_memory: SharedMemoryBudget | None = None
_marks: TaskMarks | None = None


def _confine(memory: SharedMemoryBudget, marks: TaskMarks) -> None:
    """Set the limits and the signal handling of a decoder; runs first in each worker."""
    global _memory, _marks
    _memory, _marks = memory, marks
    marks.register()
    _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    # The main process has a lower limit for itself.
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Ctrl-C goes to the parent, which shuts the pool down in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A decoder in C never returns to a Python handler: the default action ends the process.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    # There is a worker for each core: OpenCV's own threads would compete with them.
    cv2.setNumThreads(1)
    keep_freed_memory()
    # What was imported stays: it is not looked through again and again.
    gc.freeze()


def _decode_batch(
    decoder: Callable[[DecodeTask, Limits], DecodeResult], batch: Sequence[DecodeTask], limits: Limits
) -> list[DecodeResult]:
    return [decoder(task, limits) for task in batch]


def decode_one(task: DecodeTask, limits: Limits) -> DecodeResult:
    """Decode, measure and store one image with its thumbnail and mask. Runs in a worker."""
    _mark(task.number)
    signal.setitimer(signal.ITIMER_PROF, limits.decode_cpu_s)
    try:
        if _memory is None:
            return _decode_and_store(task, limits)
        with _memory.taken(_memory_needed(task, limits), own=_WORKER_BYTES):
            return _decode_and_store(task, limits)
    except ImageError as error:
        return error
    except MemoryError:
        return out_of_memory()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _mark(0)


def _mark(number: int) -> None:
    if _marks is not None:
        _marks.begin(number)


def _memory_needed(task: DecodeTask, limits: Limits) -> int:
    files = len(task.data) + len(task.mask or b"")
    with private_memory_limited(_WORKER_BYTES):
        needed = memory_to_decode(task.data, limits)
        # A bad mask is not the image's fault; it is reported when it is decoded.
        with suppress(ImageError):
            needed = max(needed, memory_to_decode(task.mask, limits) if task.mask else 0)
    return needed + files


def _decode_and_store(task: DecodeTask, limits: Limits) -> ImagePixels:
    decoded = decode(task.data, limits)
    data, extension = stored_file(decoded)
    stored = task.image_path.with_suffix(extension)
    stored.write_bytes(data)
    height, width = decoded.pixels.shape[:2]
    small = np.ascontiguousarray(reduced(decoded.pixels, THUMBNAIL_PX / max(width, height)))
    # Hashes of a JPEG are as good as those of a PNG, in a fifth of the time.
    task.thumbnail_path.write_bytes(encode_jpeg(small, quality=92, colorsubsampling="444"))
    mask, mask_problem = make_mask(decoded, task.mask, limits)
    return ImagePixels(
        file_sha256=task.file_sha256,
        pixels_sha256=_pixels_sha256(decoded.pixels),
        image=stored.name,
        thumbnail=task.thumbnail_path.name,
        width=decoded.width,
        height=decoded.height,
        captured_at=decoded.captured_at,
        notes=decoded.notes,
        hashes=image_hashes(small),
        quality=measure_quality(decoded.pixels),
        feature=image_feature(small),
        mask_file_sha256=task.mask_file_sha256,
        mask=None if mask is None else store_mask(mask, task.root / MASKS),
        mask_problem=mask_problem,
    )


def stored_file(decoded: DecodedImage) -> tuple[bytes, str]:
    """The content of the file to store, and its extension."""
    if decoded.stripped is not None:
        return decoded.stripped
    buffer = io.BytesIO()
    if decoded.is_lossy:
        decoded.image.save(buffer, "JPEG", quality=95, subsampling=0)
        return buffer.getvalue(), ".jpg"
    # Level 1 takes half the time of the default for 10 % more bytes.
    decoded.image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), ".png"


def _pixels_sha256(pixels: Pixels) -> str:
    """Identify pixels: XXH3 of all of them in a thirtieth of the time of SHA-256, and SHA-256 of each 16th row.

    XXH3 alone is no cryptographic hash; images made to collide would have to look the same too.
    """
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{width}x{height}:".encode())
    digest.update(xxhash.xxh3_128(pixels.data).digest())
    # Rows lie together in memory; each 4th pixel of each 4th row took five times as long.
    digest.update(np.ascontiguousarray(pixels[::16]).data)
    return digest.hexdigest()
