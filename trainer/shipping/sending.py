"""What a trainer writes into its job folder, sent to the object store while it writes, in an order that loses nothing.

A file is there before the event that names it, the events before a checkpoint are there before that checkpoint, and all
checkpoints before the last word. So whatever moment the machine dies in, the next attempt finds a checkpoint and all
events that came before it.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from trainer.errors import FencedError
from trainer.event_file import EVENTS_FILE
from trainer.protocol.attempt import ATTEMPT_FILE, HEARTBEAT_FILE, Attempt
from trainer.protocol.events import LastWord, parse_event
from trainer.protocol.log_file import read_tail
from trainer.protocol.objects import Objects
from trainer.protocol.order import LOG_FILE
from trainer.protocol.process import PROCESS_FILE
from trainer.protocol.store import JobPlace
from trainer.shipping.fetching import Fetched

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
#: What is sent in another way, or means something on this machine only.
_OWN_WAY = {CHECKPOINTS, EVENTS_FILE, ATTEMPT_FILE, HEARTBEAT_FILE, PROCESS_FILE, LOG_FILE, "spec.json", "lock"}
#: Between two sendings of the log, whose end is one object. So much of it is lost with the machine.
LOG_INTERVAL_S = 10.0


class Sender:
    """Sends what is new in a job folder; each call of `send` is one round. It remembers what is there already."""

    def __init__(
        self,
        objects: Objects,
        place: JobPlace,
        fetched: Fetched,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = objects
        self._place = place
        self._job_dir = fetched.job_dir
        self._files = dict(self._look_at_files())
        self._events_sent = (self._job_dir / EVENTS_FILE).stat().st_size
        #: Checkpoint's name → the object that holds it, and when that checkpoint was written.
        self._checkpoints = {
            name: (held_in, _written_at(self._folder(name))) for name, held_in in fetched.checkpoints.items()
        }
        self._monotonic = monotonic
        self._log_bytes = self._size_of_log()
        self._log_sent_at = monotonic()

    def send(self, *, is_last: bool = False) -> None:
        """Send all that is new; the log now and then, and with the last round.

        Raises:
            FencedError: the job belongs to another attempt; nothing was sent.
            OSError: the store cannot be written to; what was not sent is sent the next time.
        """
        self._check_fence()
        # Before the events are read: what was said before these checkpoints were written is among them.
        complete = self._complete_checkpoints()
        said, last_word = self._new_lines()
        self._send_files()
        self._send_events(said)
        self._send_checkpoints(complete)
        if is_last or self._monotonic() - self._log_sent_at >= LOG_INTERVAL_S:
            self._send_log()
        self._send_events(last_word)

    def _check_fence(self) -> None:
        content = self._objects.read(self._place.fence)
        valid = 0 if content is None else Attempt.model_validate_json(content).attempt
        if valid != self._place.attempt:
            raise FencedError(self._job_dir, ours=self._place.attempt, valid=valid)

    def _new_lines(self) -> tuple[bytes, bytes]:
        """Whole lines that were not sent: the last word by itself."""
        with (self._job_dir / EVENTS_FILE).open("rb") as file:
            file.seek(self._events_sent)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        start_of_last = whole.rfind(b"\n", 0, -1) + 1
        return (whole[:start_of_last], whole[start_of_last:]) if _is_last_word(whole[start_of_last:]) else (whole, b"")

    def _send_events(self, lines: bytes) -> None:
        if lines:
            self._objects.write(self._place.events_from(self._events_sent), lines)
            self._events_sent += len(lines)

    def _send_files(self) -> None:
        for name, seen in self._look_at_files():
            if self._files.get(name) == seen:
                continue
            try:
                self._objects.upload(self._job_dir / name, f"{self._place.files}/{name}")
            except FileNotFoundError:
                # Written anew or taken away in this moment: the next round sees what became of it.
                continue
            self._files[name] = seen

    def _send_log(self) -> None:
        self._log_sent_at = self._monotonic()
        size = self._size_of_log()
        if size != self._log_bytes:
            self._objects.write(self._place.log, read_tail(self._job_dir / LOG_FILE))
            self._log_bytes = size

    def _size_of_log(self) -> int:
        try:
            return (self._job_dir / LOG_FILE).stat().st_size
        except FileNotFoundError:
            return 0

    def _look_at_files(self) -> list[tuple[str, tuple[int, int]]]:
        """Files for people, with size and time of their last change."""
        found: list[tuple[str, tuple[int, int]]] = []
        for top in self._job_dir.iterdir():
            if top.name in _OWN_WAY:
                continue
            for path in (top, *top.rglob("*")) if top.is_dir() else (top,):
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue
                if path.is_file() and not path.name.endswith(".part"):
                    found.append((path.relative_to(self._job_dir).as_posix(), (stat.st_size, stat.st_mtime_ns)))
        return found

    def _folder(self, name: str) -> Path:
        return self._job_dir / CHECKPOINTS / name

    def _complete_checkpoints(self) -> list[str]:
        """Oldest first; one that is being written has a suffix."""
        folder = self._job_dir / CHECKPOINTS
        return sorted(path.name for path in folder.iterdir() if not path.suffix) if folder.is_dir() else []

    def _send_checkpoints(self, complete: list[str]) -> None:
        for name in complete:
            written_at = _written_at(self._folder(name))
            if written_at is None or self._checkpoints.get(name, ("", None))[1] == written_at:
                continue
            held_in = f"{self._place.checkpoints}/{name}.tar"
            # Links keep its files while the trainer may take the checkpoint away.
            with_links = self._job_dir.parent / "outgoing"
            try:
                _link(self._folder(name), with_links)
                self._objects.pack(with_links, held_in)
            except FileNotFoundError:
                continue
            finally:
                shutil.rmtree(with_links, ignore_errors=True)
            self._checkpoints[name] = (held_in, written_at)
            log.info("%s is in the store", held_in)
        # Only now: until a newer one was there, the older ones were needed.
        for name in set(self._checkpoints) - set(self._complete_checkpoints()):
            self._objects.delete(self._checkpoints.pop(name)[0])


def _written_at(folder: Path) -> int | None:
    """When a checkpoint was written, None if it is gone by now."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _link(folder: Path, goal: Path) -> None:
    shutil.rmtree(goal, ignore_errors=True)
    shutil.copytree(folder, goal, copy_function=os.link)


def _is_last_word(line: bytes) -> bool:
    try:
        return isinstance(parse_event(line), LastWord)
    except ValidationError:
        return False
