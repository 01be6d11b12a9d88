"""The real bot and the real trainer, killed with SIGKILL: nothing is lost, nothing is sent twice, the job ends once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.conftest import draw_images
from tests.trainer.fork_server import QUICK_CHARTS_VARIABLE, ForkedProcess, ForkServer
from tests.trainer.random_base import make_random_base
from trainer.exchange.process import ProcessIdentity, read_process_file

DEADLINE_S = 240

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Stage:
    """A data folder, and the bots that work on it."""

    def __init__(self, tmp_path: Path, server: ForkServer, trainer: tuple[str, ...]) -> None:
        self.server = server
        self.trainer_command = trainer
        self.data_dir = tmp_path / "data"
        self.images = tmp_path / "images.zip"
        self.base = make_random_base(tmp_path / "base")
        self.log = tmp_path / "bot.log"
        draw_images(tmp_path / "images")
        shutil.make_archive(str(self.images.with_suffix("")), "zip", tmp_path / "images")

    def start_bot(self) -> ForkedProcess:
        folders = map(str, (self.data_dir, self.images, self.base))
        return self.server.start(*folders, *self.trainer_command, log=self.log, env={QUICK_CHARTS_VARIABLE: "1"})

    def posts(self) -> list[str]:
        path = self.data_dir.with_suffix(".discord")
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line)["text"] for line in lines]

    def epochs_posted(self) -> list[int]:
        return [int(found[1]) for post in self.posts() if (found := re.search(r"\*\*Epoch (\d+) of 4\*\*", post))]

    def trainer(self) -> ProcessIdentity:
        identity = read_process_file(self.data_dir / "jobs" / "1")
        assert identity is not None
        return identity

    def wait_for_epoch(self, epoch: int, bot: ForkedProcess) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while epoch not in self.epochs_posted():
            assert bot.poll() is None, self.log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, self.log.read_text(encoding="utf-8")
            time.sleep(0.05)


@pytest.fixture(scope="module")
def bot_server() -> Iterator[ForkServer]:
    with ForkServer("tests.e2e.bare_bot:main") as server:
        yield server


@pytest.fixture
def stage(tmp_path: Path, bot_server: ForkServer, fork_server: ForkServer) -> Stage:
    return Stage(tmp_path, bot_server, fork_server.command)


def test_after_kills_of_bot_and_trainer_the_job_ends_once_and_no_message_is_missing_or_doubled(stage: Stage) -> None:
    bot = stage.start_bot()
    stage.wait_for_epoch(1, bot)
    trainer = stage.trainer()
    bot.send_signal(signal.SIGKILL)
    bot.wait()
    time.sleep(1)
    assert trainer.is_alive()

    # The next bot finds its training again.
    bot = stage.start_bot()
    stage.wait_for_epoch(2, bot)
    assert stage.trainer() == trainer
    os.kill(trainer.pid, signal.SIGKILL)

    # A killed trainer is reported, and the job continues from its checkpoint.
    assert bot.wait(DEADLINE_S) == 0, stage.log.read_text(encoding="utf-8")
    assert stage.epochs_posted() == [1, 2, 3, 4]
    assert sum("is done" in post for post in stage.posts()) == 1
    (lost,) = [post for post in stage.posts() if "ended unexpectedly" in post]
    assert "It continues from the checkpoint of epoch" in lost
    assert "(attempt 2 of 3)" in lost
