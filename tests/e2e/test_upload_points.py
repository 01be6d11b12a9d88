"""The bot is killed at each failpoint of an upload: its owner gets one draft and one post."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bot.bot_failpoints import FAILPOINT_VARIABLE, UPLOAD_POINTS
from bot.outbox import Notification
from tests.trainer.fork_server import ForkedProcess, ForkServer

DEADLINE_S = 120

#: Failpoints of the bot that gets the command, and of the next bot.
FIRST = (
    "upload_recorded",
    "upload_acknowledged",
    "upload_received",
    "upload_prepared",
    "upload_drafted",
    "upload_answered",
)
NEXT = ("upload_prepared", "upload_drafted", "upload_reported")
#: Of a bot whose upload comes by the page; the last one after the answer was stored.
PAGE = ("upload_piece", "upload_closed", "upload_received", "upload_prepared", "upload_reported")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class UploadBots:
    """A data folder, and the bots that use it one after another."""

    def __init__(self, folder: Path, server: ForkServer) -> None:
        self.server = server
        self.data_dir = folder / "data"
        self.log = folder / "bot.log"

    def start(self, command: str, *, crash_at: str = "", prepare_s: float = 0) -> ForkedProcess:
        environment = {FAILPOINT_VARIABLE: crash_at, "FAKE_PREPARE_S": str(prepare_s)}
        return self.server.start(str(self.data_dir), command, log=self.log, env=environment)

    def run(self, command: str, *, crash_at: str = "", prepare_s: float = 0) -> int:
        bot = self.start(command, crash_at=crash_at, prepare_s=prepare_s)
        try:
            return bot.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            bot.send_signal(signal.SIGUSR1)
            time.sleep(1)
            raise AssertionError(f"it does not end\n{self.log.read_text()[-12000:]}") from None
        finally:
            bot.kill()
            bot.wait()

    def wait_for_preparation(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not list(self.data_dir.glob("datasets/*/prepare.log")):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def rows(self, query: str) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(self.data_dir / "darkroom.db")) as db:
            db.row_factory = sqlite3.Row
            return db.execute(query).fetchall()

    def answers(self) -> list[str]:
        rows = self.rows("SELECT notification FROM outbox WHERE dedupe_key LIKE 'upload:%'")
        return [Notification.model_validate_json(row["notification"]).detail for row in rows]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer("tests.e2e.upload_bot:main") as server:
        yield server


@pytest.fixture
def bots(tmp_path: Path, server: ForkServer) -> UploadBots:
    return UploadBots(tmp_path, server)


def assert_it_is_answered(bots: UploadBots, *, arrived: bool = True) -> None:
    """The upload is answered once, however often a bot is started."""
    for _ in range(2):
        assert bots.run("look") == 0, bots.log.read_text()[-6000:]
        assert bots.rows("SELECT * FROM upload") == []
        (text,) = bots.answers()
        assert ("your request waits:" if arrived else "had arrived") in text
        assert len(bots.rows("SELECT * FROM draft")) == arrived
        assert bots.rows("SELECT * FROM job") == []
        assert len(bots.rows("SELECT * FROM dataset")) == arrived


def test_every_failpoint_is_tested() -> None:
    assert {*FIRST, *NEXT, *PAGE} == set(UPLOAD_POINTS)


@pytest.mark.parametrize("point", FIRST)
def test_the_next_bot_answers_after_a_kill(bots: UploadBots, point: str) -> None:
    assert bots.run("upload", crash_at=point) == -signal.SIGKILL, bots.log.read_text()[-6000:]
    assert_it_is_answered(bots, arrived=point not in {"upload_recorded", "upload_acknowledged"})


@pytest.mark.parametrize("point", NEXT)
def test_a_third_bot_answers_after_a_second_kill(bots: UploadBots, point: str) -> None:
    assert bots.run("upload", crash_at="upload_received") == -signal.SIGKILL, bots.log.read_text()[-6000:]
    assert bots.run("look", crash_at=point) == -signal.SIGKILL, bots.log.read_text()[-6000:]
    assert_it_is_answered(bots)


@pytest.mark.parametrize("point", PAGE)
def test_an_upload_by_page_is_answered_once_or_goes_on_after_a_kill(bots: UploadBots, point: str) -> None:
    assert bots.run("page", crash_at=point) == -signal.SIGKILL, bots.log.read_text()[-6000:]
    for _ in range(2):
        assert bots.run("look") == 0, bots.log.read_text()[-6000:]
        if point == "upload_piece":
            # Its owner goes on: what has arrived is there, and nothing was answered.
            assert [row["is_open"] for row in bots.rows("SELECT * FROM upload")] == [1]
            assert bots.answers() == []
            (file,) = (bots.data_dir / "uploads").glob("*/*")
            assert file.stat().st_size == 1000
            continue
        assert bots.rows("SELECT * FROM upload") == []
        assert bots.rows("SELECT * FROM upload_file") == []
        (text,) = bots.answers()
        assert "fox-pictures" in text
        assert len(bots.rows("SELECT * FROM dataset")) == 1
        (card,) = bots.rows("SELECT is_removed FROM card WHERE kind = 'upload'")
        assert card["is_removed"]


def test_a_preparation_that_outlives_its_bot_does_not_disturb_the_next(bots: UploadBots) -> None:
    bot = bots.start("upload", prepare_s=2)
    bots.wait_for_preparation()
    bot.kill()
    bot.wait()
    assert bots.run("look", prepare_s=2) == 0, bots.log.read_text()[-6000:]
    assert_it_is_answered(bots)


def test_a_bot_that_is_not_killed_leaves_no_upload(bots: UploadBots) -> None:
    assert bots.run("upload") == 0, bots.log.read_text()[-6000:]
    assert bots.rows("SELECT * FROM upload") == []
    assert bots.run("look") == 0
    assert bots.answers() == []
