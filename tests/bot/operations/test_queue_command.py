"""`python -m bot queue` shows the queue beside a running bot, and pauses and resumes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bot.__main__ import main
from bot.config import Config
from bot.db import Database
from bot.db.errors import DatabaseUnreadable
from bot.operations.queue_command import COMMAND_LINE, pause_queue, queue_json, queue_text, read_queue, resume_queue
from bot.queue import Dispatcher, JobStore, PauseKind, Priority, State, StopIntent
from tests.bot.conftest import Submit, claim, set_slots
from tests.bot.fakes import FakeRunner
from tests.golden import check_golden

GOLDEN = Path(__file__).parent / "golden"


async def test_the_queue_is_read_beside_a_running_bot(config: Config, store: JobStore, submit: Submit) -> None:
    await submit(name="fox")
    await submit(name="owl", owner=2)
    await submit(name="elk", owner=3)
    await submit(name="hare", owner=4)
    await claim(store, 2)
    await store.bump(3, Priority.HIGH, by=9)
    await store.request_stop(4, by=4, intent=StopIntent.PAUSE)
    check_golden(GOLDEN / "queue.txt", queue_text(await read_queue(config)))


async def test_programs_get_json(config: Config, store: JobStore, submit: Submit) -> None:
    await submit()
    await submit(owner=2)
    await claim(store, 1)
    shown = json.loads(json.dumps(queue_json(await read_queue(config))))
    assert [job["id"] for job in shown["running"]] == [1]
    assert [job["id"] for job in shown["waiting"]] == [2]
    assert shown["slots"][0]["job_id"] == 1
    assert shown["running"][0]["slots"] == ["place 1"]


async def test_reading_changes_nothing(config: Config, db: Database, submit: Submit) -> None:
    await submit()
    before = [tuple(row) for row in await db.all("SELECT * FROM job")]
    await read_queue(config)
    assert [tuple(row) for row in await db.all("SELECT * FROM job")] == before


async def test_a_pause_from_the_command_line_is_noticed_by_a_running_bot(
    config: Config, store: JobStore, submit: Submit
) -> None:
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner)
    await submit()
    await pause_queue(config, PauseKind.PAUSE, "driver update")
    await dispatcher.step()
    assert not runner.trainings
    pause = (await read_queue(config)).queue_pause
    assert pause is not None
    assert (pause.kind, pause.by, pause.why) == (PauseKind.PAUSE, COMMAND_LINE, "driver update")
    await resume_queue(config)
    assert (await read_queue(config)).queue_pause is None
    await dispatcher.step()
    assert len(runner.trainings) == 1


async def test_a_drain_stops_running_jobs(config: Config, store: JobStore, submit: Submit) -> None:
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner)
    await submit()
    await dispatcher.step()
    await pause_queue(config, PauseKind.DRAIN, "")
    await dispatcher.step()
    assert (await store.get(1)).state is State.STOPPING


async def test_a_pause_creates_no_database(config: Config, data_dir: Path) -> None:
    with pytest.raises(DatabaseUnreadable):
        await pause_queue(config, PauseKind.PAUSE, "")
    assert not data_dir.exists()  # noqa: ASYNC240


async def test_removed_slots_are_marked(config: Config, store: JobStore, submit: Submit) -> None:
    await submit()
    await claim(store, 2)
    await set_slots(store, 0)
    check_golden(GOLDEN / "queue_without_slots.txt", queue_text(await read_queue(config)))


def test_every_error_is_one_sentence_and_exit_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["queue"], ["queue", "--pause", "why"], ["backup"], ["restore", "nope.db"]):
        assert main(arguments) == 2
        shown = capsys.readouterr().err
        assert "there is no such file" in shown
        assert "Traceback" not in shown
    with pytest.raises(SystemExit):
        main(["queue", "--pause", "a", "--resume"])
