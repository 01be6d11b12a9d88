"""The trainer as a child: it hears what its parent is told, and does not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1


class Child:
    """A process whose output goes into a file. SIGTERM and SIGINT are passed on to it from here on."""

    def __init__(self, argv: Sequence[str], *, environment: Mapping[str, str], log_file: Path) -> None:
        parent = os.getpid()
        libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

        def die_with_parent() -> None:
            # In the parent's process group as well: who kills that group (Ray, when a node is lost) ends both.
            if libc is not None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os.kill(os.getpid(), signal.SIGKILL)

        with log_file.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    @property
    def status(self) -> int | None:
        """Its exit status as a shell tells it, None while it runs."""
        status = self._process.poll()
        return status if status is None or status >= 0 else 128 - status

    def wait(self, seconds: float) -> bool:
        """Wait for its end, at most so long; whether it ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self, *, grace_s: float) -> None:
        """Tell it to stop, and kill it where it does not."""
        self._process.terminate()
        if not self.wait(grace_s):
            self._process.kill()
            self._process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._process.send_signal(number)
