"""How the bot logs: one line a state change, to stderr, the job's number (`#42`) in each line about a job."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

#: Libraries that tell each request or wake-up at INFO.
_TALKATIVE = ("discord", "apscheduler", "aiosqlite", "asyncio", "aiohttp.access")
#: The job that a line is about stands at its beginning: `#42 queued`, `#42: process 7 started`.
_JOB = re.compile(r"#(\d{1,18})\b")


class LogLevel(StrEnum):
    """The least that is worth a line."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class LogFormat(StrEnum):
    """What a line looks like."""

    TEXT = "text"
    #: One JSON object a line, for programs that collect logs.
    JSON = "json"


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, logger, message, and the job and the exception where there are."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        if (job := _job_of(record, message)) is not None:
            line["job"] = job
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def setup_logging(
    level: int | str = logging.INFO, stream: TextIO | None = None, *, form: LogFormat = LogFormat.TEXT
) -> None:
    """Send every record of `level` and above to `stream` (stderr), libraries from WARNING on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form is LogFormat.JSON else logging.Formatter(_FORMAT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.getLogger().level, logging.WARNING))


def _job_of(record: logging.LogRecord, message: str) -> int | None:
    """The job that a record is about: of `extra={"job": 42}`, else the number that it begins with."""
    told = getattr(record, "job", None)
    if isinstance(told, int):
        return told
    found = _JOB.match(message)
    return int(found[1]) if found else None
