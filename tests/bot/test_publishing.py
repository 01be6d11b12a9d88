"""Uploads to the hub: one by one, again after failures and restarts, and told in the job's thread."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bot.config import HubSettings
from bot.db import Database
from bot.publishing import MAX_TRIES, AlreadyPublishing, Publication, PublicationOutcome, Publisher
from bot.queue import JobStore
from tests.bot.conftest import Submit
from tests.bot.fakes import FakeClock

#: Does what the file `answer` beside it says, and writes down what it was given.
TRAINER = """
import json, os, pathlib, sys, time
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([sys.argv[1:], os.environ.get("HF_TOKEN"), os.environ.get("HF_HUB_OFFLINE")]) + chr(10))
status, out, err = json.loads((folder / "answer").read_text())
if status == "hang":
    time.sleep(600)
print(out)
print(err, file=sys.stderr)
sys.exit(status)
"""
DONE = json.dumps({"url": "https://huggingface.co/ana/fox-1", "is_private": True})


class Trainer:
    """The stand-in for `python -m trainer`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "trainer.py").write_text(TRAINER)

    def answers(self, status: int | str, out: str = "", err: str = "") -> None:
        (self.folder / "answer").write_text(json.dumps([status, out, err]))

    @property
    def calls(self) -> list[Any]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)


@pytest.fixture
def publisher(
    db: Database, store: JobStore, clock: FakeClock, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> Publisher:
    monkeypatch.setenv("DARKROOM_HUB_TOKEN", "hf_secret")
    command = (sys.executable, str(trainer.folder / "trainer.py"))
    return Publisher(
        db, store, settings=HubSettings(namespace="ana"), command=command, env={"HF_HUB_OFFLINE": "1"}, clock=clock
    )


async def ends(db: Database) -> list[tuple[int, Publication]]:
    """The threads and details of the notifications about uploads."""
    rows = await db.all("SELECT thread_of, notification FROM outbox WHERE notification LIKE '%published%' ORDER BY id")
    details = [json.loads(row["notification"]) for row in rows]
    return [
        (row["thread_of"], Publication.model_validate_json(each["detail"]))
        for row, each in zip(rows, details, strict=True)
    ]


async def test_a_model_is_uploaded_and_its_thread_is_told(
    db: Database, store: JobStore, submit: Submit, publisher: Publisher, trainer: Trainer
) -> None:
    job = await submit()
    assert await publisher.request(job, by=7) == f"ana/fox-{job.id}"
    with pytest.raises(AlreadyPublishing):
        await publisher.request(job, by=8)
    trainer.answers(0, DONE)
    await publisher.step()
    await publisher.step()

    assert trainer.calls == [
        [["publish", str(store.job_dir(job)), "--repository", f"ana/fox-{job.id}"], "hf_secret", "0"]
    ]
    ((thread_of, publication),) = await ends(db)
    assert thread_of == job.id
    assert publication.outcome is PublicationOutcome.DONE
    assert publication.published is not None
    assert publication.published.is_private
    # It may be uploaded again later.
    await publisher.request(job, by=7)


async def test_what_the_hub_refuses_is_not_tried_again(
    db: Database, submit: Submit, publisher: Publisher, trainer: Trainer, clock: FakeClock
) -> None:
    await publisher.request(await submit(), by=7)
    trainer.answers(3, err="The token may not write to ana/fox-1.")
    await publisher.step()
    clock.advance(10_000)
    await publisher.step()

    assert len(trainer.calls) == 1
    ((_thread, publication),) = await ends(db)
    assert publication.outcome is PublicationOutcome.REFUSED
    assert publication.reason == "The token may not write to ana/fox-1."


async def test_a_failure_is_tried_again_later_and_given_up_in_the_end(
    db: Database, submit: Submit, publisher: Publisher, trainer: Trainer, clock: FakeClock
) -> None:
    await publisher.request(await submit(), by=7)
    trainer.answers(4, err="Hugging Face cannot be reached (ConnectError).")
    await publisher.step()
    await publisher.step()
    assert len(trainer.calls) == 1, "not again at once"
    for _each in range(MAX_TRIES):
        clock.advance(1000)
        await publisher.step()

    assert len(trainer.calls) == MAX_TRIES
    ((_thread, publication),) = await ends(db)
    assert publication.outcome is PublicationOutcome.GIVEN_UP


async def test_the_next_bot_makes_the_upload_that_a_restart_cut_off(
    db: Database, submit: Submit, publisher: Publisher, trainer: Trainer
) -> None:
    await publisher.request(await submit(), by=7)
    trainer.answers("hang")
    running = asyncio.create_task(publisher.run())
    async with asyncio.timeout(60):
        while not trainer.calls:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await ends(db) == []
    trainer.answers(0, DONE)
    await publisher.step()

    assert len(trainer.calls) == 2
    assert [publication.outcome for _thread, publication in await ends(db)] == [PublicationOutcome.DONE]
