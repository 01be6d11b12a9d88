"""What is missing before a first run: one line each, ✓ fine, ! worth knowing, ✗ must be mended, with what to do."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp
import discord

from bot.config import Config, load_config, read_token
from bot.db import DATABASE_FILE
from bot.errors import ConfigError, DarkroomError
from bot.health import examine_health
from bot.runners.asking import ask_devices
from bot.ui.permissions import invite_url, missing_permissions

DISCORD_API = "https://discord.com/api/v10"
_TIMEOUT_S = 10
#: Loading torch from a slow disk takes a minute.
_TRAINER_S = 120
_MIB, _GIB = 1024**2, 1024**3
#: A LoRA job of a large base writes a few GiB of checkpoints and caches.
_ENOUGH_DISK_BYTES, _LEAST_DISK_BYTES = 10 * _GIB, 1 * _GIB
#: Discord's snowflakes and our nonces assume clocks that roughly agree.
_CLOCK_SKEW_S = 30


class Mark(StrEnum):
    FINE = "✓"
    NOTE = "!"
    WRONG = "✗"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    mark: Mark
    text: str
    #: What to do about it.
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.mark} {self.text}" + (f"\n    → {self.advice}" if self.advice else "")


def fine(text: str) -> Finding:
    return Finding(mark=Mark.FINE, text=text)


def note(text: str, advice: str = "") -> Finding:
    return Finding(mark=Mark.NOTE, text=text, advice=advice)


def wrong(text: str, advice: str) -> Finding:
    return Finding(mark=Mark.WRONG, text=text, advice=advice)


async def examine(
    config_path: Path, *, environ: Mapping[str, str] = os.environ, api: str = DISCORD_API
) -> AsyncIterator[Finding]:
    """Everything that a first run needs, looked at in the order in which a person would mend it."""
    yield check_python(sys.version_info[:2])
    is_there = config_path.exists()  # noqa: ASYNC240 - nothing else runs here.
    try:
        config = load_config(config_path) if is_there else Config()
    except ConfigError as error:
        for problem in error.problems:
            yield wrong(f"{config_path}: {problem}", "Compare with config.example.toml.")
        config = Config()
    else:
        yield _config_finding(config_path, is_there=is_there)
    for finding in check_data_folder(config.storage.data_dir):
        yield finding
    async for finding in check_database(config):
        yield finding
    for finding in check_models(config, environ):
        yield finding
    async for finding in check_trainer(config, environ):
        yield finding
    for finding in check_operators(config, config.discord.guild_ids):
        yield finding
    async for finding in check_discord(config, environ, api):
        yield finding


def check_python(version: tuple[int, ...]) -> Finding:
    words = f"Python {version[0]}.{version[1]}"
    return fine(words) if version >= (3, 11) else wrong(words, "Darkroom needs Python 3.11 or newer.")


def check_data_folder(data_dir: Path) -> Iterator[Finding]:
    """Can it be written, and is there room?"""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=data_dir):
            pass
        free = shutil.disk_usage(data_dir).free
    except OSError as error:
        yield wrong(f"data folder {data_dir}: {error.strerror}", "Set another storage.data_dir, or its rights.")
        return
    words = f"data folder {data_dir.resolve()}: writable, {free / _GIB:.0f} GiB free"
    if free < _LEAST_DISK_BYTES:
        yield wrong(words, "Make room: checkpoints of one job need a GiB and more.")
    elif free < _ENOUGH_DISK_BYTES:
        yield note(words, "A few jobs of a large base model will fill it.")
    else:
        yield fine(words)


async def check_database(config: Config) -> AsyncIterator[Finding]:
    """How the database is, if there is one; a bot may be working on it."""
    path = config.storage.data_dir / DATABASE_FILE
    if not path.exists():
        yield fine(f"no database yet: the first start makes {path}")
        return
    try:
        health = await examine_health(path)
    except DarkroomError as error:
        yield wrong(str(error), "See docs/operations.md.")
        return
    jobs = ", ".join(f"{count} {state}" for state, count in health.jobs.items()) or "no jobs yet"
    words = f"database {path}: schema {health.schema}, {health.database_bytes / _MIB:.1f} MiB, {jobs}"
    yield fine(f"{words}; sound") if health.integrity == "ok" else note(words)
    for problem in health.problems:
        yield note(problem) if health.integrity == "ok" else wrong(problem, "See docs/operations.md.")


def check_models(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Is each base model here, or where would it come from?"""
    for label, source in config.models.sources.items():
        yield _model_finding(f"model {label} ({source})", source, environ)


def _model_finding(words: str, source: str, environ: Mapping[str, str]) -> Finding:
    if source == "tiny":
        package = importlib.util.find_spec("trainer")
        folders = package.submodule_search_locations or [] if package else []
        if any((Path(folder) / "models" / "tiny" / "model_index.json").is_file() for folder in folders):
            return fine(f"{words}: ships with Darkroom")
        return wrong(f"{words}: its weights are missing", "Reinstall Darkroom, or rebuild them (recipes/tiny).")
    path = Path(source).expanduser()
    if path.is_file() or (path / "model_index.json").is_file():
        return fine(f"{words}: found")
    if path.is_dir():
        return wrong(f"{words}: the folder has no model_index.json", "Name a folder in diffusers layout.")
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or path.suffix:
        return wrong(f"{words}: there is no such file or folder", "Correct models.sources in the config.")
    if (_hub_cache(environ) / f"models--{source.replace('/', '--')}").is_dir():
        return fine(f"{words}: in the Hugging Face cache")
    return note(f"{words}: not in the Hugging Face cache", "It will be downloaded at its first use (some GiB).")


def _hub_cache(environ: Mapping[str, str]) -> Path:
    home = Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(environ.get("HF_HUB_CACHE") or home / "hub")


async def check_trainer(config: Config, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Does the trainer start, and what would it compute on? Asked in processes of its own Python."""
    command = " ".join(config.trainer.command)
    environment = config.trainer_environment(environ)
    status, output = await _run((*config.trainer.command, "--help"), environment)
    if status == 0:
        yield fine(f"trainer starts ({command})")
    else:
        last = output.strip().splitlines()[-1] if output.strip() else f"exit status {status}"
        yield wrong(f"trainer does not start: {last}", f"Run `{command} --help`; `make setup` installs what it needs.")
        return
    devices = await ask_devices(config.trainer.command, environment, timeout_s=_TRAINER_S)
    gpus = [f"{gpu.name}, {gpu.memory_bytes / _GIB:.0f} GiB" for gpu in devices.gpus]
    if not gpus:
        why = f": {devices.problem}" if devices.problem else ""
        advice = "Trainings run on the CPU: fine for `tiny`, far too slow for real models."
        yield note(f"no GPU that torch can use{why}", advice)
        return
    yield fine(f"GPU: {'; '.join(gpus)}")
    if devices.problem:
        yield note(devices.problem)
    if config.queue.slots > len(gpus):
        yield note(
            f"queue.slots is {config.queue.slots}, more than the {len(gpus)} GPU", "They would share its memory."
        )


async def _run(command: tuple[str, ...], environment: Mapping[str, str]) -> tuple[int, str]:
    """(exit status, output) of a child; 124 if it took too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, env=dict(environment), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        return 127, str(error)
    try:
        async with asyncio.timeout(_TRAINER_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return 124, "it took longer than two minutes"
    return process.returncode or 0, output.decode(errors="replace")


def check_operators(config: Config, guild_ids: Collection[int]) -> Iterator[Finding]:
    """Does anybody in Discord switch a machine that works for several servers?"""
    if len(set(guild_ids)) > 1 and not config.discord.operator_ids:
        yield note(
            "the bot works in several servers and discord.operator_ids lists nobody",
            "/admin pause, drain, resume, slots and storage are refused; `python -m bot queue` works.",
        )


async def check_discord(config: Config, environ: Mapping[str, str], api: str) -> AsyncIterator[Finding]:
    """Is the token there and good, and what may the bot do in each server?"""
    try:
        token = read_token(config, environ)
    except ConfigError as error:
        yield wrong(
            f"Discord token: {error.problems[0]}",
            "Get one at https://discord.com/developers/applications → Bot → Reset Token. `make demo` needs none.",
        )
        return
    headers = {"Authorization": f"Bot {token}"}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, trust_env=True) as session:
            async for finding in _ask_discord(session, config, api):
                yield finding
    except (aiohttp.ClientError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        yield wrong(f"Discord cannot be reached ({why})", "Check this machine's network and proxy (HTTPS_PROXY).")


async def _ask_discord(session: aiohttp.ClientSession, config: Config, api: str) -> AsyncIterator[Finding]:
    async with session.get(f"{api}/users/@me") as response:
        if response.status == 401:
            yield wrong("Discord refuses the token", f"Reset it, and put the new one into {config.discord.token_env}.")
            return
        response.raise_for_status()
        me: dict[str, Any] = await response.json()
        served_at = response.headers.get("Date")
    yield fine(f"Discord accepts the token: the bot is {me['username']}")
    yield fine("privileged intents: none needed, nothing to switch on")
    if served_at and abs(parsedate_to_datetime(served_at).timestamp() - time.time()) > _CLOCK_SKEW_S:
        yield note("this machine's clock differs from Discord's", "Switch on time synchronisation (NTP).")
    async with session.get(f"{api}/users/@me/guilds") as response:
        response.raise_for_status()
        guilds: list[dict[str, Any]] = await response.json()
    if not guilds:
        yield wrong("the bot is in no server", f"Invite it: {invite_url(int(me['id']))}")
    if not config.discord.guild_ids:
        for finding in check_operators(config, {int(guild["id"]) for guild in guilds}):
            yield finding
    for guild in guilds:
        yield _guild_finding(guild, int(me["id"]))
    for missing in set(config.discord.guild_ids) - {int(guild["id"]) for guild in guilds}:
        yield wrong(f"the bot is not in the server {missing} (discord.guild_ids)", "Invite it, or correct the config.")


def _guild_finding(guild: Mapping[str, Any], application_id: int) -> Finding:
    has = discord.Permissions(int(guild["permissions"]))
    missing = missing_permissions(has)
    words = f"server “{guild['name']}”"
    if not missing:
        return fine(f"{words}: all permissions")
    return wrong(
        f"{words}: missing {', '.join(missing)}", f"Grant them, or invite it anew: {invite_url(application_id)}"
    )


def _config_finding(path: Path, *, is_there: bool) -> Finding:
    if is_there:
        return fine(f"{path} is understood")
    return note(f"there is no {path}: the defaults are used", "Copy config.example.toml to change them.")
