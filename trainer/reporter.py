"""Locks a job folder, keeps its heartbeat, and appends events to `events.jsonl`, each exactly once."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from trainer.console import Listener, ignore_event
from trainer.errors import FencedError, JobFolderBusyError
from trainer.exchange.attempt import HEARTBEAT_FILE, HEARTBEAT_S, read_attempt
from trainer.exchange.event_file import EVENTS_FILE, parse_line
from trainer.exchange.process import write_process_file
from trainer.protocol.events import MAX_LINE_BYTES, Event, KeepAlive, TerminalEvent
from trainer.trainer_failpoints import failpoint

log = logging.getLogger(__name__)

LOCK_FILE = "lock"
#: Interval of keep-alive events. The bot kills a trainer that emits nothing for an hour (`queue.hang_timeout_s`).
KEEP_ALIVE_S = 60.0

E = TypeVar("E", bound=Event)

#: Fields that identify an event of a type; a resumed run does not emit the same event again.
_IDENTITY = {
    "base_validated": (),
    "sampled": ("epoch",),
    "epoch_ended": ("epoch",),
    "stopped_early": ("epoch",),
    "tested": ("epoch",),
    "warned": ("kind", "message"),
    "stage_began": ("stage", "first_epoch"),
    "validated": ("step",),
    "exported": ("path", "sha256"),
    "image_drawn": ("cell",),
}


class Reporter:
    """Writes the events of one job folder; use it as a context manager.

    Raises:
        JobFolderBusyError: On entering, another process holds the folder.
        FencedError: On entering, the folder belongs to another attempt.
    """

    def __init__(
        self, job_dir: Path, listener: Listener = ignore_event, *, is_main: bool = True, attempt: int = 0
    ) -> None:
        self.job_dir = job_dir
        #: Part of each event; 0 is a run from the command line, which is never fenced.
        self.attempt = attempt
        self._listener = listener
        #: Of the processes that share a training one writes; the others only track what was emitted.
        self._is_main = is_main
        self._seq = 0
        self._emitted_at = time.monotonic()
        self._emitted: set[tuple[Any, ...]] = set()
        self._history: list[Event] = []

    def __repr__(self) -> str:
        return f"<Reporter {self.job_dir} seq={self._seq}>"

    def __enter__(self) -> Self:
        found = scan(self.job_dir / EVENTS_FILE)
        if self._is_main:
            self.job_dir.mkdir(parents=True, exist_ok=True)
            self._lock = (self.job_dir / LOCK_FILE).open("a")
            try:
                found = self._acquire()
            except BaseException:
                self._lock.close()
                raise
        if found.invalid_lines and self._is_main:
            log.warning("skipping %d lines of %s that are not events", found.invalid_lines, EVENTS_FILE)
        for event in found.events:
            self._record(event)
        return self

    def _acquire(self) -> Scan:
        """Acquire the lock, start the heartbeat, and return the events logged so far."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobFolderBusyError(self.job_dir) from None
        failpoint("lock_held")
        # An attempt may be late: started, and superseded before it got the lock.
        self.check_fence()
        write_process_file(self.job_dir)
        path = self.job_dir / EVENTS_FILE
        found = scan(path)
        self._file = EventFile(path, found)
        self._heartbeat = Heartbeat(self.job_dir, self._is_valid)
        self._heartbeat.start()
        return found

    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._is_main:
            self._heartbeat.stop()
            self._file.close()
            self._lock.close()

    @property
    def history(self) -> tuple[Event, ...]:
        """All events of this job folder so far, those of earlier runs included."""
        return tuple(self._history)

    def emit(self, event_type: type[E], /, **fields: Any) -> None:
        """Append one event, durable before the call returns; skip an event that was emitted before.

        Raises:
            FencedError: The job belongs to another attempt; nothing was written.
            OSError: The event cannot be written (a full disk); it counts as not emitted.
        """
        event = event_type(seq=self._seq + 1, time=time.time(), attempt=self.attempt, **fields)
        if _key(event) in self._emitted:
            return
        if self._is_main:
            self.check_fence()
            self._write(event)
        self._record(event)
        self._emitted_at = time.monotonic()
        if self._is_main:
            self._listener(event)

    def keep_alive(self) -> None:
        """Emit `KeepAlive` if nothing was emitted for a minute; call it between the pieces of long work.

        Call it from the working thread only: another thread would hide that the work hangs.

        Raises:
            FencedError, OSError: As `emit`.
        """
        if time.monotonic() - self._emitted_at >= KEEP_ALIVE_S:
            self.emit(KeepAlive)

    def check_fence(self) -> None:
        """Check that this attempt has not been superseded.

        Raises:
            FencedError: The job belongs to another attempt.
        """
        if not self._is_valid():
            raise FencedError(self.job_dir, ours=self.attempt, valid=read_attempt(self.job_dir))

    def _is_valid(self) -> bool:
        return self.attempt in {0, read_attempt(self.job_dir)}

    def _write(self, event: Event) -> None:
        is_terminal = isinstance(event, TerminalEvent)
        if is_terminal:
            failpoint("before_terminal_event")
        self._file.append(event.model_dump_json().encode() + b"\n")
        failpoint("event_written")
        if is_terminal:
            failpoint("after_terminal_event")

    def _record(self, event: Event) -> None:
        self._seq = max(self._seq, event.seq)
        self._history.append(event)
        if (key := _key(event)) is not None:
            self._emitted.add(key)


def _key(event: Event) -> tuple[Any, ...] | None:
    fields = _IDENTITY.get(event.type)
    return None if fields is None else (event.type, *(getattr(event, field) for field in fields))


class Heartbeat:
    """A thread that touches the heartbeat file; a process that is stopped or swapped out leaves it untouched."""

    def __init__(self, job_dir: Path, is_valid: Callable[[], bool], *, interval_s: float = HEARTBEAT_S) -> None:
        self._path = job_dir / HEARTBEAT_FILE
        #: Whether the job folder still belongs to this attempt.
        self._is_valid = is_valid
        self._interval_s = interval_s
        self._must_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Write the first heartbeat and start the thread."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        self._must_stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._must_stop.wait(self._interval_s) and self._beat():
            pass

    def _beat(self) -> bool:
        """Touch the file; return False once the folder belongs to another attempt, whose death it would hide."""
        try:
            if not self._is_valid():
                return False
            self._path.touch()
        except OSError as error:
            log.warning("the heartbeat could not be written: %s", error)
        return True


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Content of an event file."""

    events: tuple[Event, ...] = ()
    #: Lines that are not events of this version.
    invalid_lines: int = 0
    #: Bytes up to and including the last line break.
    complete_bytes: int = 0
    all_bytes: int = 0


def scan(path: Path) -> Scan:
    """Read an event file in bounded memory; empty if there is no file."""
    if not path.exists():
        return Scan()
    events: list[Event] = []
    invalid_lines = complete_bytes = all_bytes = 0
    is_inside = False
    with path.open("rb") as file:
        while part := file.readline(MAX_LINE_BYTES):
            all_bytes += len(part)
            # The end of a line that was too long is not a line of its own.
            was_inside, is_inside = is_inside, not part.endswith(b"\n")
            if is_inside:
                continue
            complete_bytes = all_bytes
            event = None if was_inside else parse_line(part)
            if event is not None:
                events.append(event)
            elif was_inside or part.strip():
                invalid_lines += 1
    return Scan(events=tuple(events), invalid_lines=invalid_lines, complete_bytes=complete_bytes, all_bytes=all_bytes)


class EventFile:
    """An event file open for appending. A line is durable when `append` returns, or leaves no trace."""

    def __init__(self, path: Path, found: Scan) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        torn = found.all_bytes - found.complete_bytes
        if torn > MAX_LINE_BYTES:
            # Too long to be a torn event. The bot has skipped it, so its bytes must stay where they are.
            os.write(self._descriptor, b"\n")
        elif torn:
            # A process that was killed in mid-write leaves a torn last line, which no reader has consumed.
            os.ftruncate(self._descriptor, found.complete_bytes)

    def append(self, line: bytes) -> None:
        """Write one line.

        Raises:
            OSError: The disk is full or does not work.
        """
        before = os.fstat(self._descriptor).st_size
        failpoint("event_half_written", lambda: os.write(self._descriptor, line[: len(line) // 2]))
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, before)
            raise

    def close(self) -> None:
        os.close(self._descriptor)
