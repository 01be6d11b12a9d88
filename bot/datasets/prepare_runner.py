"""Runs `trainer prepare` on untrusted files and `trainer caption` on prepared ones, in limited child processes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError

from bot.config import CaptionSettings, PrepareSettings
from bot.datasets.dataset import Dataset
from bot.datasets.dataset_files import publish_prepared, remove, touch
from bot.errors import DatasetRefused, PrepareFailed
from bot.runners.child_process import run_and_capture
from trainer.exchange.dataset_dir import read_edits, read_progress, read_report, write_edits
from trainer.protocol.edits import Edits, EditsError
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.progress import PreparePhase, PrepareProgress
from trainer.protocol.report import DatasetReport
from trainer.protocol.text import _

log = logging.getLogger(__name__)

_TAIL_BYTES = 4096
_MAX_REASON_CHARS = 600
#: Reports kept in memory. Prepared folders never change, and the cards and reviews of one dataset follow each other.
_CACHED_REPORTS = 4
#: What an archive may inflate to, as a multiple of the largest upload, and at least: images are compressed already.
_INFLATION, _MIN_ARCHIVE_BYTES = 4, 256 * 2**20


#: How often a preparation is asked how far it has come: Discord takes five edits of a message in five seconds.
PROGRESS_EVERY_S = 2.0

#: Called with each progress of a preparation.
ProgressListener: TypeAlias = Callable[[PrepareProgress], Awaitable[None]]

_listener: ContextVar[ProgressListener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def progress_reported(listener: ProgressListener) -> Iterator[None]:
    """Call `listener` with the progress of the preparations in this context, one call at a time."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Turns:
    """Places for costly work, in turns between people: one at a time for each, however much they ask for."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        #: What waits, by person; the first of those who hold no place is next.
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        self._holders: set[int] = set()

    @asynccontextmanager
    async def of(self, person: int) -> AsyncIterator[None]:
        """Wait until it is this person's turn, and run the body; one at a time for each person."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(person, []).append(turn)
        self._admit()
        try:
            listener = _listener.get()
            if listener is not None and not turn.done():
                await listener(PrepareProgress(phase=PreparePhase.WAITING, done=0, total=0))
            await turn
            yield
        finally:
            # Cancelled while it waited, and not by the body: it never had a place.
            if turn.done() and not turn.cancelled():
                self._holders.remove(person)
                self._free += 1
                self._admit()
            turn.cancel()

    def _admit(self) -> None:
        for person in [each for each in self._waiting if each not in self._holders]:
            if not self._free:
                return
            turns = [turn for turn in self._waiting.pop(person) if not turn.cancelled()]
            if not turns:
                continue
            if turns[1:]:
                # Behind everyone who waits by now.
                self._waiting[person] = turns[1:]
            self._holders.add(person)
            self._free -= 1
            turns[0].set_result(None)


class PrepareRunner:
    """Prepares each revision once, into a folder that appears whole or not at all."""

    def __init__(
        self,
        *,
        command: Sequence[str],
        env: Mapping[str, str],
        download_env: Mapping[str, str],
        settings: PrepareSettings,
        max_upload_bytes: int,
        cpu_slots: int,
    ) -> None:
        self._command = tuple(command)
        #: Of the confined processes that open images, and of the one that downloads a captioning model.
        self._env, self._download_env = dict(env), dict(download_env)
        self._settings = settings
        #: What an archive may inflate to, on the disk too, if the configuration has no limit.
        self._max_archive_bytes = max(_MIN_ARCHIVE_BYTES, _INFLATION * max_upload_bytes)
        #: Preparations at the same time; they never wait for a training. A captioning model may take half an hour.
        self._turns, self._caption_turns = Turns(cpu_slots), Turns(1)
        #: One preparation per content at a time; the second caller finds the result of the first.
        self._locks: dict[str, asyncio.Lock] = {}
        self._read_report = lru_cache(maxsize=_CACHED_REPORTS)(read_report)

    async def report(self, folder: Path) -> DatasetReport:
        """Read the report of a prepared folder.

        Raises:
            FileNotFoundError: The folder is not prepared.
            ValidationError: The report is damaged or of another version.
        """
        return await asyncio.to_thread(self._read_report, folder)

    async def prepare(
        self,
        source: Path,
        folder: Path,
        *,
        title: str,
        owner_id: int,
        edits: Edits | None = None,
        earlier: Path | None = None,
    ) -> DatasetReport:
        """Prepare a revision unless `folder` holds it already, and return its report.

        Args:
            source: The uploaded files.
            folder: Where the revision goes.
            title: Names the files in error messages.
            owner_id: Whose turn it is: people take turns.
            edits: Decisions to apply.
            earlier: A prepared folder whose decoded images and splits are taken over.

        Raises:
            DatasetRefused: The dataset cannot be trained on, or could not be prepared.
        """
        async with self._locks.setdefault(folder.parent.name, asyncio.Lock()):
            report = await self._report_if_prepared(folder)
            if report is None:
                async with self._turns.of(owner_id):
                    await self._make(source, folder, title, edits, earlier)
                report = await self._report_if_prepared(folder)
            if report is None:
                raise PrepareFailed(name=title, why=_("the trainer's report cannot be read."))
            # It may have been unused until now: keep the sweep away.
            await asyncio.to_thread(touch, folder, folder.parent)
            return report

    async def write_captions(self, dataset: Dataset, settings: CaptionSettings) -> Edits:
        """Let a model write captions for a dataset's images, and return its edits with them.

        Raises:
            DatasetRefused: The model cannot be used, or took too long.
        """
        content = dataset.folder.parent
        file = content / f"captions-{secrets.token_hex(4)}.json"
        await asyncio.to_thread(write_edits, file, dataset.edits)
        arguments = ["caption", str(dataset.folder), "--model", settings.model, "--edits", str(file)]
        run = partial(self.run, title=dataset.name, log_file=content / "captions.log", timeout_s=settings.timeout_s)
        try:
            if not await asyncio.to_thread(_is_folder, settings.model):
                # The process with the network and the hub's token opens no image; the one that opens them has neither.
                await run([*arguments, "--download-only"], is_confined=False)
            # No memory limit: it opens images that the bot's own trainer decoded, and models take what they take.
            async with self._caption_turns.of(dataset.owner_id):
                await run(arguments)
            return await asyncio.to_thread(read_edits, file)
        except EditsError as error:
            raise PrepareFailed(name=dataset.name, why=_("the written captions cannot be read.")) from error
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)

    async def _report_if_prepared(self, folder: Path) -> DatasetReport | None:
        """The report of a folder; None if it is missing, damaged, or of another version."""
        try:
            return await self.report(folder)
        except (FileNotFoundError, ValidationError):
            return None

    async def _make(self, source: Path, folder: Path, title: str, edits: Edits | None, earlier: Path | None) -> None:
        """Fill `folder`, by rename."""
        # A unique name: a preparation that outlived a killed bot may still write to the one before.
        part, file = folder.with_suffix(f".{secrets.token_hex(4)}.part"), folder.with_suffix(".edits.json")
        await asyncio.to_thread(lambda: remove(folder, *folder.parent.glob("*.part")))
        arguments = ["prepare", str(source), "--out", str(part)]
        if edits is not None:
            await asyncio.to_thread(write_edits, file, edits)
            arguments += ["--edits", str(file)]
        if earlier is not None and await self._report_if_prepared(earlier):
            arguments += ["--earlier", str(earlier)]
        # Last: uploads are never read as Arrow or Parquet, whatever the settings say.
        fixed = {"allow_arrow": False, "memory_bytes": self._settings.memory_bytes}
        limits = {"max_archive_bytes": self._max_archive_bytes, **self._settings.limits, **fixed}
        for name, value in limits.items():
            arguments += ["--limit", f"{name}={str(value).lower()}"]
        try:
            await self.run(
                arguments,
                title,
                folder.parent / "prepare.log",
                timeout_s=self._settings.timeout_s,
                memory_mib=self._settings.memory_mib,
                file_bytes=int(limits["max_archive_bytes"]),
            )
            await asyncio.to_thread(publish_prepared, part, folder)
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)
        log.info("%s prepared: %s", title, folder)

    async def run(
        self,
        arguments: Sequence[str],
        title: str,
        log_file: Path,
        *,
        timeout_s: float,
        memory_mib: int | None = None,
        file_bytes: int | None = None,
        is_confined: bool = True,
    ) -> None:
        """Run a trainer command.

        Raises:
            DatasetRefused: It refused; the message is the last line that it wrote to stderr.
            PrepareFailed: It took too long, or died.
        """
        try:
            async with _progress_reported(log_file) as more:
                child = await run_and_capture(
                    [*self._command, *arguments, *more],
                    self._env if is_confined else self._download_env,
                    timeout_s=timeout_s,
                    memory_bytes=None if memory_mib is None else memory_mib * 2**20,
                    file_bytes=file_bytes,
                    log_path=log_file,
                    is_confined=is_confined,
                )
        except TimeoutError as error:
            raise PrepareFailed(name=title, why=_("it took longer than {limit} s.", limit=f"{timeout_s:g}")) from error
        if child.status == EXIT_REFUSED:
            reason = await asyncio.to_thread(_last_line, log_file)
            raise DatasetRefused(reason or _("{title} was refused without a reason.", title=title))
        if child.status != 0:
            log.warning("preparing %s ended with status %s; see %s", title, child.status, log_file)
            raise PrepareFailed(name=title, why=_exit_words(child.status, log_file, memory_mib))


@asynccontextmanager
async def _progress_reported(log_file: Path) -> AsyncIterator[Sequence[str]]:
    """Report the progress of the command that runs in the body to the listener; yield the arguments that ask for it."""
    listener = _listener.get()
    if listener is None:
        yield ()
        return
    file = log_file.with_name(f"progress-{secrets.token_hex(4)}.json")
    is_over = threading.Event()
    task = asyncio.create_task(_report_progress(file, listener, is_over))
    try:
        yield ("--progress", str(file))
    finally:
        is_over.set()
        # To its end, not cancelled: a request that is on its way must not arrive after the answer.
        await task
        await asyncio.to_thread(file.unlink, missing_ok=True)


async def _report_progress(file: Path, listener: ProgressListener, is_over: threading.Event) -> None:
    last = None
    while not await asyncio.to_thread(is_over.wait, PROGRESS_EVERY_S):
        progress = await asyncio.to_thread(read_progress, file)
        if progress is not None and progress != last:
            await listener(progress)
            last = progress


def _is_folder(model: str) -> bool:
    return Path(model).expanduser().is_dir()


def _exit_words(status: int, log_file: Path, memory_mib: int | None) -> str:
    """Why a process failed, as far as its status says."""
    if memory_mib is None:
        cause = _("a bug; see {log}", log=log_file.name)
    else:
        cause = _("out of memory at {limit} MiB, or a bug; see {log}", limit=memory_mib, log=log_file.name)
    if status < 0:
        return _("the process was ended by signal {number} ({cause}).", number=-status, cause=cause)
    return _("the process failed with status {number} ({cause}).", number=status, cause=cause)


def _last_line(log_file: Path) -> str:
    with log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip()[:_MAX_REASON_CHARS] for line in reversed(lines) if line.strip()), "")
