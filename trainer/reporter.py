"""The trainer's voice: holds the job folder's lock and appends events to `events.jsonl`, each exactly once."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from trainer.console import Listener, say_nothing
from trainer.errors import JobFolderBusyError
from trainer.protocol.events import Event, parse_event
from trainer.protocol.process import PROCESS_FILE, identify

EVENTS_FILE = "events.jsonl"
LOCK_FILE = "lock"

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
    """

    def __init__(self, job_dir: Path, listener: Listener = say_nothing, *, is_main: bool = True) -> None:
        self.job_dir = job_dir
        self._listener = listener
        #: Of the processes that share a training one speaks; the others remember what was said, and are silent.
        self._is_main = is_main
        self._seq = 0
        self._said: set[tuple[Any, ...]] = set()
        self._history: list[Event] = []

    def __repr__(self) -> str:
        return f"<Reporter {self.job_dir} seq={self._seq}>"

    def __enter__(self) -> Self:
        if not self._is_main:
            self._remember((self.job_dir / EVENTS_FILE).read_bytes() if (self.job_dir / EVENTS_FILE).exists() else b"")
            return self
        self.job_dir.mkdir(parents=True, exist_ok=True)
        self._lock = (self.job_dir / LOCK_FILE).open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise JobFolderBusyError(self.job_dir) from None
        self._write_process_file()
        self._open_events()
        return self

    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._is_main:
            self._file.close()
            self._lock.close()

    @property
    def history(self) -> tuple[Event, ...]:
        """Everything said so far in this job folder, earlier runs included."""
        return tuple(self._history)

    def say(self, event_type: type[E], /, **fields: Any) -> None:
        """Append one event, durable before the call returns. One that was said already is not said again."""
        event = event_type(seq=self._seq + 1, time=time.time(), **fields)
        if (key := _key(event)) is not None:
            if key in self._said:
                return
            self._said.add(key)
        self._seq = event.seq
        self._history.append(event)
        if not self._is_main:
            return
        self._file.write(event.model_dump_json().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._listener(event)

    def _write_process_file(self) -> None:
        identity = identify(os.getpid())
        assert identity is not None, "this process runs"
        part = self.job_dir / f"{PROCESS_FILE}.part"
        part.write_text(identity.model_dump_json(), encoding="utf-8")
        part.replace(self.job_dir / PROCESS_FILE)

    def _open_events(self) -> None:
        path = self.job_dir / EVENTS_FILE
        path.touch()
        whole = path.read_bytes()
        # A process that was killed in mid-write leaves a torn last line: nobody has read it, so it goes.
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(path, end)
        self._remember(whole[:end])
        self._file = path.open("ab")

    def _remember(self, lines: bytes) -> None:
        for line in lines[: lines.rfind(b"\n") + 1].splitlines():
            event = parse_event(line)
            self._seq = event.seq
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
