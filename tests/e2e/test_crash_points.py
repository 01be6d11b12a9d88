"""The bot killed at each of its named points, alone and with its trainers: each accepted job ends once, told once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.crashing import JOB_POINTS
from tests.e2e.team import Team, assert_nothing_is_lost_or_doubled

#: Points after which trainers run, so that killing them too is another story.
WITH_TRAINERS = ("launched", "handle_stored", "events_read", "ingest_open", "ingest_committed", "stop_signalled")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    made = Team(tmp_path)
    yield made
    if (made.data_dir / "jobs").exists():
        made.kill_trainers()


@pytest.mark.parametrize("point", JOB_POINTS)
def test_a_bot_that_is_killed_at_a_point_loses_and_doubles_nothing(team: Team, point: str) -> None:
    assert team.run_bot(crash_at=point) == -signal.SIGKILL, team.log.read_text()[-3000:]
    assert team.run_bot() == 0, team.log.read_text()[-6000:]
    assert_nothing_is_lost_or_doubled(team)


@pytest.mark.parametrize("point", WITH_TRAINERS)
def test_bot_and_trainers_killed_together_lose_and_double_nothing(team: Team, point: str) -> None:
    assert team.run_bot(crash_at=f"{point}:2") == -signal.SIGKILL, team.log.read_text()[-3000:]
    team.kill_trainers()
    assert team.run_bot() == 0, team.log.read_text()[-6000:]
    assert_nothing_is_lost_or_doubled(team, trainers_lived=False)


def test_a_bot_that_is_killed_over_and_over_comes_to_the_same_end(team: Team) -> None:
    for time in ("ingest_committed:9", "post_sent:7", "handle_stored:2", "card_edited:3", "claim_open:1"):
        team.run_bot(crash_at=time)
    assert team.run_bot() == 0, team.log.read_text()[-6000:]
    assert_nothing_is_lost_or_doubled(team)
