"""The trainer's voice: holds the job folder's lock and appends events to `events.jsonl`, each exactly once."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from trainer.console import Listener, say_nothing
from trainer.crashing import crash_point
from trainer.errors import FencedError, JobFolderBusyError
from trainer.event_file import EVENTS_FILE, EventFile, Scan, scan
from trainer.heartbeat import Heartbeat
from trainer.protocol.attempt import read_attempt
from trainer.protocol.events import Event, LastWord, Working, parse_event
from trainer.protocol.process import PROCESS_FILE, identify

log = logging.getLogger(__name__)

LOCK_FILE = "lock"
#: So often long work says that it goes on. The bot ends what says nothing for an hour (`queue.hang_timeout_s`).
SPEAK_EVERY_S = 60.0

E = TypeVar("E", bound=Event)

#: Fields that tell one event of a type from another; a resumed run does not say the same one again.
_IDENTITY = {
    "base_validated": (),
    "sampled": ("epoch",),
    "epoch_ended": ("epoch",),
    "stopped_early": (),
    "tested": (),
    "warned": ("kind", "message"),
    "stage_began": ("stage", "first_epoch"),
    "validated": ("step",),
}


class Reporter:
    """Writes the events of one job folder; use as a context manager.

    Raises:
        JobFolderBusyError: on entering, another process holds the folder.
        FencedError: on entering, the folder belongs to another attempt.
    """

    def __init__(
        self, job_dir: Path, listener: Listener = say_nothing, *, is_main: bool = True, attempt: int = 0
    ) -> None:
        self.job_dir = job_dir
        #: Stands in each event; 0 was numbered by nobody, and is never fenced.
        self.attempt = attempt
        self._listener = listener
        #: Of the processes that share a training one speaks; the others remember what was said, and are silent.
        self._is_main = is_main
        self._seq = 0
        self._spoke_at = time.monotonic()
        self._said: set[tuple[Any, ...]] = set()
        self._history: list[Event] = []

    def __repr__(self) -> str:
        return f"<Reporter {self.job_dir} seq={self._seq}>"

    def __enter__(self) -> Self:
        found = scan(self.job_dir / EVENTS_FILE)
        if self._is_main:
            self.job_dir.mkdir(parents=True, exist_ok=True)
            self._lock = (self.job_dir / LOCK_FILE).open("a")
            try:
                found = self._take_folder()
            except BaseException:
                self._lock.close()
                raise
        self._remember(found)
        return self

    def _take_folder(self) -> Scan:
        """Hold it and leave a sign of life; what was said in it so far."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobFolderBusyError(self.job_dir) from None
        crash_point("lock_held")
        # An attempt that was late: started, and cut off before it held the folder.
        self.check_fence()
        self._write_process_file()
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
        """Everything said so far in this job folder, earlier runs included."""
        return tuple(self._history)

    def say(self, event_type: type[E], /, **fields: Any) -> None:
        """Append one event, durable before the call returns. One that was said already is not said again.

        Raises:
            FencedError: the job belongs to another attempt; nothing was written.
            OSError: it cannot be written (a full disk); it counts as never said.
        """
        event = event_type(seq=self._seq + 1, time=time.time(), attempt=self.attempt, **fields)
        if _key(event) in self._said:
            return
        if self._is_main:
            self.check_fence()
            self._write(event)
        self._note(event)
        self._spoke_at = time.monotonic()
        if self._is_main:
            self._listener(event)

    def say_working(self) -> None:
        """Say that long work goes on, if nothing was said for a minute; to be called between its pieces.

        Only from the thread that works: from another it would hide that this one hangs.

        Raises:
            FencedError, OSError: as `say`.
        """
        if time.monotonic() - self._spoke_at >= SPEAK_EVERY_S:
            self.say(Working)

    def check_fence(self) -> None:
        """Look whether what this process writes still counts.

        Raises:
            FencedError: the job belongs to another attempt.
        """
        if not self._is_valid():
            raise FencedError(self.job_dir, ours=self.attempt, valid=read_attempt(self.job_dir))

    def _is_valid(self) -> bool:
        return self.attempt in {0, read_attempt(self.job_dir)}

    def _write(self, event: Event) -> None:
        is_last = isinstance(event, LastWord)
        if is_last:
            crash_point("before_last_word")
        self._file.append(event.model_dump_json().encode() + b"\n")
        crash_point("event_written")
        if is_last:
            crash_point("after_last_word")

    def _write_process_file(self) -> None:
        identity = identify(os.getpid())
        assert identity is not None, "this process runs"
        part = self.job_dir / f"{PROCESS_FILE}.part"
        part.write_text(identity.model_dump_json(), encoding="utf-8")
        part.replace(self.job_dir / PROCESS_FILE)

    def _remember(self, found: Scan) -> None:
        if found.garbage and self._is_main:
            log.warning("%d lines of %s are no events of this version: passed over", found.garbage, EVENTS_FILE)
        for event in found.events:
            self._note(event)

    def _note(self, event: Event) -> None:
        self._seq = max(self._seq, event.seq)
        self._history.append(event)
        if (key := _key(event)) is not None:
            self._said.add(key)


def read_events(job_dir: Path) -> tuple[Event, ...]:
    """Everything said so far in a job folder, by whoever runs it; nothing where nothing was.

    Raises:
        pydantic.ValidationError: a line is not an event of this version.
    """
    path = job_dir / EVENTS_FILE
    whole = path.read_bytes() if path.exists() else b""
    return tuple(parse_event(line) for line in whole[: whole.rfind(b"\n") + 1].splitlines())


def _key(event: Event) -> tuple[Any, ...] | None:
    fields = _IDENTITY.get(event.type)
    return None if fields is None else (event.type, *(getattr(event, field) for field in fields))
