"""How the bot logs: one line a state change, to stderr, the job's number (`#42`) in each line about a job."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

#: Libraries that tell each request or wake-up at INFO.
_TALKATIVE = ("discord", "apscheduler", "aiosqlite", "asyncio")


def setup_logging(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send every record of `level` and above to `stream` (stderr), libraries from WARNING on."""
    logging.basicConfig(level=level, format=_FORMAT, stream=stream or sys.stderr, force=True)
    logging.captureWarnings(capture=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
