"""`python -m bot queue` reads what a bot is working on, and its switch is seen by the bot."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bot.__main__ import main
from bot.config import Config
from bot.db import Database
from bot.errors import DatabaseUnreadable
from bot.operations.queue import as_json, as_text, halt_queue, read_line, resume_queue
from bot.queue import Dispatcher, HaltKind, JobStore, Priority, State, StopIntent
from tests.bot.conftest import Submit, claim, set_slots
from tests.bot.fakes import FakeRunner

NOW = datetime(2027, 1, 15, tzinfo=UTC)


async def test_the_line_is_read_beside_a_running_bot(config: Config, store: JobStore, submit: Submit) -> None:
    await submit(name="fox")
    await submit(name="owl", owner=2)
    await submit(name="elk", owner=3)
    await submit(name="hare", owner=4)
    await claim(store, 2)
    await store.bump(3, Priority.HIGH, by=9)
    await store.request_stop(4, by=4, intent=StopIntent.PAUSE)
    assert as_text(await read_line(config), NOW).splitlines() == [
        "Queue: running",
        "Slots: 1 of 2 free",
        "  place 1: #1 fox · preparing · owner 1",
        "  place 2: free",
        "Waiting: 2",
        "    1. #3 elk · queued · owner 3 · high priority",
        "    2. #2 owl · queued · owner 2",
        "Paused: 1",
        "  #4 hare · paused · owner 4",
    ]


async def test_programs_get_the_same_as_json(config: Config, store: JobStore, submit: Submit) -> None:
    await submit()
    await submit(owner=2)
    await claim(store, 1)
    told = json.loads(json.dumps(as_json(await read_line(config))))
    assert [job["id"] for job in told["running"]] == [1]
    assert [job["id"] for job in told["waiting"]] == [2]
    assert told["slots"][0]["job_id"] == 1
    assert told["running"][0]["slots"] == ["place 1"]


async def test_reading_changes_nothing(config: Config, db: Database, submit: Submit) -> None:
    await submit()
    before = [tuple(row) for row in await db.all("SELECT * FROM job")]
    await read_line(config)
    assert [tuple(row) for row in await db.all("SELECT * FROM job")] == before


async def test_the_switch_of_the_command_line_is_seen_by_a_running_bot(
    config: Config, store: JobStore, submit: Submit
) -> None:
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner)
    await submit()
    await halt_queue(config, HaltKind.PAUSE, "driver update")
    await dispatcher.step()
    assert not runner.trainings
    assert "paused since" in (text := as_text(await read_line(config), NOW))
    assert text.splitlines()[0].endswith("by the command line: driver update")
    assert await resume_queue(config) == "The queue runs again."
    assert await resume_queue(config) == "The queue ran already."
    await dispatcher.step()
    assert len(runner.trainings) == 1


async def test_a_drain_stops_what_runs(config: Config, store: JobStore, submit: Submit) -> None:
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner)
    await submit()
    await dispatcher.step()
    await halt_queue(config, HaltKind.DRAIN, "")
    await dispatcher.step()
    assert (await store.get(1)).state is State.STOPPING


async def test_the_switch_makes_no_database(config: Config, data_dir: Path) -> None:
    with pytest.raises(DatabaseUnreadable):
        await halt_queue(config, HaltKind.PAUSE, "")
    assert not data_dir.exists()  # noqa: ASYNC240


async def test_slots_that_are_gone_are_shown_as_such(config: Config, store: JobStore, submit: Submit) -> None:
    await submit()
    await claim(store, 2)
    await set_slots(store, 0)
    text = as_text(await read_line(config), NOW)
    assert "Slots: 0 of 1 free\n  place 1 (gone or switched off): #1" in text


def test_everything_wrong_is_one_sentence_and_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["queue"], ["queue", "--pause", "why"], ["backup"], ["restore", "nope.db"]):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert "there is no such file" in told
        assert "Traceback" not in told
    with pytest.raises(SystemExit):
        main(["queue", "--pause", "a", "--resume"])
