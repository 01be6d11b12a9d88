"""The trainer's sign of life, passed on to the object store by a thread of its own.

A checkpoint may take longer to send than a silence may last, and the last of it is sent when the trainer has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from trainer.protocol.attempt import HEARTBEAT_FILE, HEARTBEAT_S
from trainer.protocol.objects import Objects
from trainer.protocol.store import JobPlace

log = logging.getLogger(__name__)


class Beating:
    """Within it, each new sign of life is in the store moments later; after the trainer's end it is our own."""

    def __init__(
        self,
        objects: Objects,
        place: JobPlace,
        job_dir: Path,
        has_ended: Callable[[], bool],
        *,
        interval_s: float = HEARTBEAT_S,
    ) -> None:
        self._objects = objects
        self._place = place
        self._heartbeat = job_dir / HEARTBEAT_FILE
        self._has_ended = has_ended
        self._interval_s = interval_s
        self._sent: float | None = None
        self._must_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beating", daemon=True)

    def __enter__(self) -> Beating:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # Not joined: a store that hangs must not keep the node.
        self._must_stop.set()
        if kind is None:
            self._try()

    def pass_on(self) -> None:
        """Send the newest sign, if it was not sent.

        Raises:
            OSError: the store cannot be written to.
        """
        beat = self._newest()
        if beat is not None and beat != self._sent:
            self._objects.write(self._place.beat, repr(beat).encode())
            self._sent = beat

    def _newest(self) -> float | None:
        if self._has_ended():
            return time.time()
        try:
            return self._heartbeat.stat().st_mtime
        except FileNotFoundError:
            return None

    def _run(self) -> None:
        while not self._must_stop.wait(self._interval_s):
            self._try()

    def _try(self) -> None:
        try:
            self.pass_on()
        except OSError as error:
            log.warning("no sign of life could be passed on: %s", error)
