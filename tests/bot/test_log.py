"""Log lines as text for people, and as JSON for programs."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime
from typing import Any

import pytest

from bot.log import LogFormat, setup_logging

pytestmark = pytest.mark.usefixtures("restored_logging")


def logged(form: LogFormat, level: int | str = "INFO") -> tuple[io.StringIO, logging.Logger]:
    stream = io.StringIO()
    setup_logging(level, stream, form=form)
    return stream, logging.getLogger("bot.queue.store.job_store")


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_object_with_the_number_of_its_job() -> None:
    stream, log = logged(LogFormat.JSON)
    log.info("#%d queued (%s)", 42, "fuchs “ü”")
    log.info("slots: %s", "GPU 0, #7 is none of a job")
    log.info("copied", extra={"job": 9})
    queued, slots, copied = lines(stream)
    assert queued["job"] == 42
    assert queued["message"] == "#42 queued (fuchs “ü”)"
    assert (queued["level"], queued["logger"]) == ("INFO", "bot.queue.store.job_store")
    assert datetime.fromisoformat(queued["time"]).utcoffset() is not None
    assert "job" not in slots
    assert copied["job"] == 9


def test_an_exception_stays_within_its_line() -> None:
    stream, log = logged(LogFormat.JSON)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("#7 could not be looked after")
    (line,) = lines(stream)
    assert line["job"] == 7
    assert line["exception"].endswith("ValueError: two\nlines")


def test_text_lines_are_plain_and_libraries_are_quiet() -> None:
    stream, log = logged(LogFormat.TEXT)
    log.debug("not shown")
    log.info("#1 queued")
    logging.getLogger("discord.gateway").info("hello")
    logging.getLogger("discord.gateway").warning("lost")
    shown = stream.getvalue().splitlines()
    assert [line.split(": ", 1)[1] for line in shown] == ["#1 queued", "lost"]


def test_the_level_comes_from_the_config() -> None:
    stream, log = logged(LogFormat.JSON, "WARNING")
    log.info("no")
    log.warning("yes")
    assert [line["message"] for line in lines(stream)] == ["yes"]


def test_names_of_strangers_forge_no_line_and_color_no_terminal() -> None:
    stream, log = logged(LogFormat.TEXT)
    log.info("upload %s: received", "fox.zip\n2026-01-01 INFO bot: #1 queued\r\x1b[31m\u202e")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("upload fox.zip\\n2026-01-01 INFO bot: #1 queued\\r\\x1b[31m\\u202e: received")
