"""The trainer's sign of life: a thread that touches a file, so a process that is stopped or swapped out gives none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from trainer.protocol.attempt import HEARTBEAT_FILE, HEARTBEAT_S

log = logging.getLogger(__name__)


class Heartbeat:
    """Touches the heartbeat file of a job folder from `start` to `stop`, as long as the folder is ours."""

    def __init__(self, job_dir: Path, is_ours: Callable[[], bool], *, interval_s: float = HEARTBEAT_S) -> None:
        self._path = job_dir / HEARTBEAT_FILE
        self._is_ours = is_ours
        self._interval_s = interval_s
        self._must_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """The first beat comes at once."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        self._must_stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._must_stop.wait(self._interval_s) and self._beat():
            pass

    def _beat(self) -> bool:
        """Whether there is to be another."""
        try:
            # After another attempt took the folder over, ours would hide that the other one is dead.
            if not self._is_ours():
                return False
            self._path.touch()
        except OSError as error:
            log.warning("no sign of life could be given: %s", error)
        return True
