"""The bot is killed at each of its failpoints: each accepted job ends once, and each message is sent once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.bot_failpoints import JOB_POINTS
from tests.e2e.team import Team, assert_nothing_is_lost_or_doubled
from tests.trainer.fork_server import ForkServer

#: Here the bot is a process of its own and dies by SIGKILL, alone and together with the trainers that run by then. At
#: the other points it dies by an exception in this process, which takes a third of the time: what is left on the disk
#: is the same, since a transaction that is not committed is rolled back.
KILLED = ("launched", "handle_stored", "events_read", "ingest_open", "ingest_committed", "stop_signalled")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer("tests.e2e.team_bot:main") as server:
        yield server


@pytest.fixture
def team(tmp_path: Path, server: ForkServer) -> Iterator[Team]:
    made = Team(tmp_path, server)
    yield made
    if (made.data_dir / "jobs").exists():
        made.kill_trainers()


@pytest.mark.parametrize("point", [point for point in JOB_POINTS if point not in KILLED])
def test_a_bot_that_dies_at_a_point_loses_and_doubles_nothing(team: Team, point: str) -> None:
    team.crash_in_process(point)
    team.run_in_process()
    assert_nothing_is_lost_or_doubled(team)


@pytest.mark.parametrize("point", KILLED)
def test_a_bot_that_is_killed_at_a_point_loses_and_doubles_nothing(team: Team, point: str) -> None:
    assert team.run_bot(crash_at=point) == -signal.SIGKILL, team.log.read_text()[-3000:]
    assert team.run_bot() == 0, team.log.read_text()[-6000:]
    assert_nothing_is_lost_or_doubled(team)


@pytest.mark.parametrize("point", KILLED)
def test_bot_and_trainers_killed_together_lose_and_double_nothing(team: Team, point: str) -> None:
    assert team.run_bot(crash_at=f"{point}:2") == -signal.SIGKILL, team.log.read_text()[-3000:]
    team.kill_trainers()
    assert team.run_bot() == 0, team.log.read_text()[-6000:]
    assert_nothing_is_lost_or_doubled(team, trainers_lived=False)


def test_a_bot_that_is_killed_repeatedly_comes_to_the_same_end(team: Team) -> None:
    for time in ("ingest_committed:9", "post_sent:7", "handle_stored:2", "card_edited:3", "claim_open:1"):
        team.run_bot(crash_at=time)
    assert team.run_bot() == 0, team.log.read_text()[-6000:]
    assert_nothing_is_lost_or_doubled(team)
