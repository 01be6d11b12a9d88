"""Logging: one line for each state change, to stderr, with the job's number (`#42`) in each line about a job."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

#: Libraries that log each request or wake-up at INFO.
_VERBOSE_LIBRARIES = ("discord", "apscheduler", "aiosqlite", "asyncio", "aiohttp.access")
#: A line about a job begins with its number: `#42 queued`, `#42: process 7 started`.
_JOB = re.compile(r"#(\d{1,18})\b")


class LogLevel(StrEnum):
    """The lowest level that is logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class LogFormat(StrEnum):
    """The format of a line."""

    TEXT = "text"
    #: One JSON object a line, for programs that collect logs.
    JSON = "json"


#: Control characters, line ends too, and marks that turn the reading direction: `\\x1b` and the like in place of each.
_CONTROLS = {
    code: chr(code).encode("unicode_escape").decode()
    for code in (*range(32), *range(127, 160), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}


class TextLines(logging.Formatter):
    """Formats a record as one line, whatever names of strangers it holds; an exception follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's.
        return super().formatMessage(record).translate(_CONTROLS)


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, and the job and exception if there are any."""

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
    """Log records of `level` and above to `stream` (default: stderr), of verbose libraries only from WARNING on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form is LogFormat.JSON else TextLines(_FORMAT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in _VERBOSE_LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.getLogger().level, logging.WARNING))


def _job_of(record: logging.LogRecord, message: str) -> int | None:
    """The job that a record is about: from `extra={"job": 42}`, else the number that it begins with."""
    job = getattr(record, "job", None)
    if isinstance(job, int):
        return job
    found = _JOB.match(message)
    return int(found[1]) if found else None
