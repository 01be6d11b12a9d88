"""The bot killed at each named point of an upload's life: its owner is answered, by one request and one post."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from bot.crashing import CRASH_VARIABLE, UPLOAD_POINTS
from bot.outbox import Notice
from tests.e2e.team import ROOT

UPLOAD_BOT = Path(__file__).with_name("upload_bot.py")
DEADLINE_S = 90

#: Where the bot that was spoken to, and where the next one may be killed.
FIRST = ("upload_noted", "upload_received", "upload_examined", "upload_kept", "upload_answered")
NEXT = ("upload_examined", "upload_kept", "upload_told")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Place:
    """A data folder, and the bots that work on it one after another."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.log = folder / "bot.log"

    def start(self, what: str, *, crash_at: str = "", prepare_s: float = 0) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), CRASH_VARIABLE: crash_at, "FAKE_PREPARE_S": str(prepare_s),
        }  # fmt: skip
        with self.log.open("ab") as log:
            argv = [sys.executable, str(UPLOAD_BOT), str(self.data_dir), what]
            return subprocess.Popen(argv, stdout=log, stderr=log, env=environment)

    def run(self, what: str, *, crash_at: str = "", prepare_s: float = 0) -> int:
        bot = self.start(what, crash_at=crash_at, prepare_s=prepare_s)
        try:
            return bot.wait(DEADLINE_S)
        finally:
            bot.kill()
            bot.wait()

    def wait_for_an_examination(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not list(self.data_dir.glob("datasets/*/prepare.log")):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def rows(self, query: str) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(self.data_dir / "darkroom.db")) as db:
            db.row_factory = sqlite3.Row
            return db.execute(query).fetchall()

    def told(self) -> list[str]:
        rows = self.rows("SELECT notice FROM outbox WHERE dedupe_key LIKE 'upload:%'")
        return [Notice.model_validate_json(row["notice"]).detail for row in rows]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def assert_it_is_answered(place: Place, *, arrived: bool = True) -> None:
    """Once, whatever more bots come."""
    for _ in range(2):
        assert place.run("look") == 0, place.log.read_text()[-6000:]
        assert place.rows("SELECT * FROM upload") == []
        (said,) = place.told()
        assert ("your request waits:" if arrived else "had arrived") in said
        drafts = place.rows("SELECT job.interaction_id, state FROM job")
        assert [row["state"] for row in drafts] == ["draft"] * arrived
        assert len(place.rows("SELECT * FROM dataset")) == arrived


def test_each_point_is_walked() -> None:
    assert {*FIRST, *NEXT} == set(UPLOAD_POINTS)


@pytest.mark.parametrize("point", FIRST)
def test_a_bot_that_is_killed_leaves_the_answer_to_the_next(place: Place, point: str) -> None:
    assert place.run("hand_in", crash_at=point) == -signal.SIGKILL, place.log.read_text()[-6000:]
    assert_it_is_answered(place, arrived=point != "upload_noted")


@pytest.mark.parametrize("point", NEXT)
def test_a_next_bot_that_is_killed_too_leaves_it_to_the_one_after(place: Place, point: str) -> None:
    assert place.run("hand_in", crash_at="upload_received") == -signal.SIGKILL, place.log.read_text()[-6000:]
    assert place.run("look", crash_at=point) == -signal.SIGKILL, place.log.read_text()[-6000:]
    assert_it_is_answered(place)


def test_an_examination_that_outlives_its_bot_does_not_disturb_the_next(place: Place) -> None:
    bot = place.start("hand_in", prepare_s=2)
    place.wait_for_an_examination()
    bot.kill()
    bot.wait()
    assert place.run("look", prepare_s=2) == 0, place.log.read_text()[-6000:]
    assert_it_is_answered(place)


def test_a_bot_that_is_not_killed_leaves_nothing_to_say(place: Place) -> None:
    assert place.run("hand_in") == 0, place.log.read_text()[-6000:]
    assert place.rows("SELECT * FROM upload") == []
    assert place.run("look") == 0
    assert place.told() == []
