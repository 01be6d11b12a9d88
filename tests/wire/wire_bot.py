"""The real bot as a child process, on a data folder of its own, connected to a `WireDiscord`."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import psutil

from tests.trainer.fork_server import ForkedProcess, ForkServer
from tests.wire.wire_discord import WireDiscord

_ROOT = Path(__file__).parents[2]
_LAUNCHER = Path(__file__).with_name("run_bot.py")
#: Has the whole command line of the trainer and trains nothing.
SIMPLE_TRAINER = _ROOT / "tests/bot/cogs/simple_trainer.py"
_ONLINE_S = 60.0

Settings = dict[str, dict[str, Any]]


class WireBot:
    """One data folder, and the bot that runs on it; `start` it again after `stop` or `kill`.

    `settings` are tables of config.toml (`{"cards": {"edit_interval_s": 5.0}}`), `env` the bot's environment. What is
    for the simple trainer there reaches it: `FAKE_STEP_S` is its pace (0.02 s a step, 4 steps an epoch).

    With a `server` (of `forked_bot.py`), the bot is a fork of it and not a fresh process; `trainer` is a command, and
    `launcher` one that takes what `run_bot.py` takes.
    """

    def __init__(
        self,
        discord: WireDiscord,
        folder: Path,
        settings: Settings | None = None,
        *,
        env: dict[str, str] | None = None,
        trainer: Sequence[str] = (sys.executable, str(SIMPLE_TRAINER)),
        launcher: Sequence[str] = (sys.executable, str(_LAUNCHER)),
        server: ForkServer | None = None,
    ) -> None:
        self.discord = discord
        self.folder = folder
        self.data_dir = folder / "data"
        self.log_file = folder / "bot.log"
        self.config_file = folder / "config.toml"
        self.env = env or {}
        self.process: asyncio.subprocess.Process | _Fork | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._trainer = trainer
        self._launcher = launcher
        self._server = server
        self._trainer_script = folder / "trainer"
        self.configure(settings or {})

    def configure(self, settings: Settings) -> None:
        """Write config.toml: quick for tests, and `settings` over it."""
        tables: Settings = {
            "discord": {},
            "storage": {"data_dir": str(self.data_dir)},
            "trainer": {"python": str(self._trainer_script), "warm": False},
            "queue": {"poll_s": 0.05, "retry_pause_s": 0.0},
            "cards": {"edit_interval_s": 1.0, "epoch_interval_s": 5.0},
            # A full disk of the test machine must not stop the queue.
            "health": {"min_free_gib": 0.0, "gpu_check_minutes": 0},
            "limits": {"max_jobs_per_user": 100},
            "models": {"default": "tiny"},
        }
        for table, values in settings.items():
            tables.setdefault(table, {}).update(values)
        lines = []
        for table, values in tables.items():
            lines += [f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
        self.config_file.write_text("\n".join(lines) + "\n")

    async def __aenter__(self) -> Self:
        await self.start()
        await self.until_online()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self, *arguments: str) -> None:
        """Start `python -m bot run` (or another command), without waiting until it is online."""
        command = [*(arguments or ("run",)), "--config", str(self.config_file)]
        self._write_trainer_script()
        environment = self._environment()
        if self._server is not None:
            self.process = _Fork(self._server.start(self.discord.url, *command, log=self.log_file, env=environment))
            return
        with self.log_file.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._launcher, self.discord.url, *command, stdout=log, stderr=log, env=environment
            )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "DARKROOM_TOKEN": self.discord.token, "PYTHONUNBUFFERED": "1", **self.env}

    def _write_trainer_script(self) -> None:
        # The bot's environment does not reach a trainer.
        pace = "".join(f"export {name}={value}\n" for name, value in self.env.items() if name.startswith("FAKE_"))
        script = f'#!/bin/sh\n{pace}shift 2\nexec {shlex.join(self._trainer)} "$@"\n'
        self._trainer_script.write_text(script)
        self._trainer_script.chmod(0o755)

    async def run(self, *arguments: str, seconds: float = 60) -> tuple[int, str]:
        """Run another command (`sync`) beside the bot; return its exit status and output."""
        command = [self.discord.url, *arguments, "--config", str(self.config_file)]
        if self._server is not None:
            log = self.folder / "command.log"
            log.unlink(missing_ok=True)
            fork = _Fork(self._server.start(*command, log=log, env=self._environment()))
            return await asyncio.wait_for(fork.wait(), seconds), log.read_text()
        process = await asyncio.create_subprocess_exec(
            *self._launcher, *command, env=self._environment(),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), seconds)
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def until_online(self, seconds: float = _ONLINE_S) -> None:
        """Wait until it is connected and has logged so."""
        before = len(self.discord.gateway.identified_at)

        def is_online() -> bool:
            assert self.process is not None
            if self.process.returncode is not None:
                raise AssertionError(f"the bot ended with {self.process.returncode}\n{self.log[-4000:]}")
            return self.discord.gateway.is_connected and self.log.count("connected as ") > self._greetings

        try:
            await self.discord.until(is_online, seconds, what="the bot is not online")
        except AssertionError as error:
            raise AssertionError(f"{error}\n(identified {before} times)\n{self.log[-4000:]}") from None
        self._greetings = self.log.count("connected as ")

    _greetings = 0

    async def ended(self, seconds: float = 60) -> int:
        """Wait for its end; return the exit status (-15: killed by SIGTERM)."""
        assert self.process is not None
        try:
            return await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            raise AssertionError(f"the bot did not end\n{self.log[-4000:]}") from None

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; return the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return await self.ended()

    async def kill(self) -> None:
        """Kill it by SIGKILL; its trainers go on."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def close(self) -> None:
        """Kill it and every trainer on its data folder."""
        if self.process is not None:
            await self.kill()
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.data_dir) in word for word in process.info["cmdline"] or ()):
                try:
                    process.kill()
                    process.wait(10)
                except psutil.NoSuchProcess:
                    continue

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    @property
    def log(self) -> str:
        """Everything it wrote to standard output and error, over all its starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Read its database."""
        with closing(sqlite3.connect(f"file:{self.data_dir / 'darkroom.db'}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            return db.execute(query, values).fetchall()


class _Fork:
    """A fork, with as much of `asyncio.subprocess.Process` as is used here."""

    def __init__(self, process: ForkedProcess) -> None:
        self._process = process
        self.pid, self.send_signal, self.kill = process.pid, process.send_signal, process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    async def wait(self) -> int:
        while (code := self._process.poll()) is None:  # noqa: ASYNC110 - it sets no event.
            await asyncio.sleep(0.01)
        return code


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)
