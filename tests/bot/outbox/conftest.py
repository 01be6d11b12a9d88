"""A sender over a scripted Discord."""

from __future__ import annotations

import pytest

from bot.outbox import Outbox, Sender
from tests.bot.fakes import FakeClock
from tests.bot.outbox.scripted_post import ScriptedPost, make_sender


@pytest.fixture
def post() -> ScriptedPost:
    return ScriptedPost()


@pytest.fixture
def sender(outbox: Outbox, post: ScriptedPost, clock: FakeClock) -> Sender:
    return make_sender(outbox, post, clock)
