"""`python -m bot doctor`: checks what a first run needs, and the health of an existing database.

One line each, in the order in which to fix things: ✓ fine, ! worth knowing, ✗ must be fixed, each with what to do.
"""

from __future__ import annotations

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
from pydantic import ValidationError

from bot.config import Config
from bot.config_file import load_config, read_token
from bot.db import DATABASE_FILE
from bot.errors import ConfigError, DarkroomError
from bot.health import read_health
from bot.predictions import usual_memory
from bot.runners.child_process import run_and_capture
from bot.runners.confinement import IS_LINUX, Barrier, confined
from bot.runners.local import query_devices
from bot.ui.admin_pages import problem_text
from bot.ui.discord_text import invite_url, missing_permissions
from bot.ui.job_card import state_name
from bot.ui.model_pages import HUB_NAME, model_words
from trainer.exchange.base_files import base_facts
from trainer.protocol.devices import Outcome, SelfTestReport
from trainer.protocol.settings import Base
from trainer.protocol.text import _, duration, listed, size

DISCORD_API = "https://discord.com/api/v10"
_TIMEOUT_S = 10
#: Loading torch from a slow disk takes a minute.
_TRAINER_S = 120
#: A minute or two on a quiet machine.
_SELF_TEST_S = 1800
_GIB = 1024**3
#: A LoRA job of a large base writes a few GiB of checkpoints and caches.
_ENOUGH_DISK_BYTES, _LEAST_DISK_BYTES = 10 * _GIB, 1 * _GIB
#: Discord's snowflakes and our nonces assume clocks that roughly agree.
_CLOCK_SKEW_S = 30
_UNAUTHORIZED = 401


class Mark(StrEnum):
    """The result of a check."""

    FINE = "✓"
    NOTE = "!"
    WRONG = "✗"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One check."""

    mark: Mark
    text: str
    #: What to do.
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.mark} {self.text}" + (f"\n    → {self.advice}" if self.advice else "")


def _fine(text: str) -> CheckResult:
    return CheckResult(mark=Mark.FINE, text=text)


def _note(text: str, advice: str = "") -> CheckResult:
    return CheckResult(mark=Mark.NOTE, text=text, advice=advice)


def _wrong(text: str, advice: str) -> CheckResult:
    return CheckResult(mark=Mark.WRONG, text=text, advice=advice)


async def examine(
    config_path: Path, *, environ: Mapping[str, str] = os.environ, api: str = DISCORD_API
) -> AsyncIterator[CheckResult]:
    """Run every check, in the order in which to fix what they find."""
    yield check_python(sys.version_info[:2])
    config, results = _check_config(config_path)
    for result in results:
        yield result
    for result in check_data_folder(config.storage.data_dir):
        yield result
    async for result in check_database(config):
        yield result
    for result in check_models(config, environ):
        yield result
    async for result in check_trainer(config, environ):
        yield result
    yield await check_confinement()
    for result in check_operators(config, config.discord.guild_ids):
        yield result
    for result in check_pages(config):
        yield result
    async for result in check_discord(config, environ, api):
        yield result
    yield _note(_("the trainer tries now what it may use on this machine: a minute or two"))
    yield await check_self_test(config, environ)


def check_python(version: tuple[int, ...]) -> CheckResult:
    """Check the Python version."""
    text = f"Python {version[0]}.{version[1]}"
    return _fine(text) if version >= (3, 11) else _wrong(text, _("Darkroom needs Python 3.11 or newer."))


def _check_config(path: Path) -> tuple[Config, list[CheckResult]]:
    if not path.exists():
        text = _("there is no {path}: the defaults apply", path=path)
        return Config(), [_note(text, _("Copy config.example.toml to change them."))]
    try:
        return load_config(path), [_fine(_("{path} is valid", path=path))]
    except ConfigError as error:
        advice = _("Compare it with config.example.toml.")
        return Config(), [_wrong(f"{path}: {problem}", advice) for problem in error.problems]


def check_pages(config: Config) -> Iterator[CheckResult]:
    """Say where the web pages are, if there are any."""
    url = config.web.public_url
    if not config.web.is_on:
        return
    if url.startswith("https:"):
        yield _fine(_("web pages: {url}", url=url))
    else:
        text = _("web pages: {url}, without encryption; others in the network can read the links and use them", url=url)
        yield _note(text, _("Put a reverse proxy or a tunnel with HTTPS before them: docs/web.md."))


def check_data_folder(data_dir: Path) -> Iterator[CheckResult]:
    """Check that the data folder is writable and has free space."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=data_dir):
            pass
        free = shutil.disk_usage(data_dir).free
    except OSError as error:
        text = _("data folder {folder}: {why}", folder=data_dir, why=error.strerror)
        yield _wrong(text, _("Set another storage.data_dir, or fix its permissions."))
        return
    if data_dir.stat().st_mode & 0o077:
        text = _("data folder {folder}: other users of this machine may look into it", folder=data_dir.resolve())
        yield _note(text, _("`chmod 700` it, unless they are meant to."))
    text = _("data folder {folder}: writable, {free} free", folder=data_dir.resolve(), free=size(free))
    if free < _LEAST_DISK_BYTES:
        yield _wrong(text, _("Free some space: checkpoints of one job need a GiB and more."))
    elif free < _ENOUGH_DISK_BYTES:
        yield _note(text, _("A few jobs of a large base model will fill it."))
    else:
        yield _fine(text)


async def check_database(config: Config) -> AsyncIterator[CheckResult]:
    """Check the database's health, if there is one; a bot may be using it."""
    path = config.storage.data_dir / DATABASE_FILE
    if not path.exists():
        yield _fine(_("no database yet: the first start creates {path}", path=path))
        return
    advice = _("See docs/operations.md.")
    try:
        health = await read_health(path)
    except DarkroomError as error:
        yield _wrong(str(error), advice)
        return
    counts = (_("{n} {state}", n=f"{n:,}", state=state_name(state)) for state, n in health.jobs.items())
    jobs = listed(counts) or _("no jobs yet")
    is_intact = health.integrity == "ok"
    text = _(
        "database {path}: schema {schema}, {size}, {jobs}",
        path=path,
        schema=health.schema,
        size=size(health.database_bytes),
        jobs=jobs,
    )
    yield _fine(_("{text}; intact", text=text)) if is_intact else _note(text)
    for problem in health.problems:
        sentence = problem_text(problem, health)
        yield _note(sentence) if is_intact else _wrong(sentence, advice)


def check_models(config: Config, environ: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check whether each base model is present, or would be downloaded."""
    for label, source in config.models.sources.items():
        text = _("model {label} ({source})", label=label, source=source)
        yield _check_model(text, source, environ, usual_memory(config, label, environ))
    for label, vae in config.models.vaes.items():
        path = Path(vae).expanduser()
        if not path.exists() and (path.suffix or not HUB_NAME.fullmatch(vae)):
            text = _("model {label}: its VAE {vae} is not there", label=label, vae=vae)
            yield _wrong(text, _("Correct models.vaes in the config."))
    if config.models.default_label is None:
        advice = _("Add one: python -m bot models add LABEL SOURCE. Until then only the toy model can be trained.")
        yield _note(_("there is no real base model"), advice)


def _check_model(text: str, source: str, environ: Mapping[str, str], lora_bytes: int | None) -> CheckResult:
    if source == "tiny":
        package = importlib.util.find_spec("trainer")
        folders = package.submodule_search_locations or [] if package else []
        if any((Path(folder) / "models" / "tiny" / "model_index.json").is_file() for folder in folders):
            return _fine(_("{model}: ships with Darkroom", model=text))
        advice = _("Reinstall Darkroom, or rebuild them (recipes/tiny).")
        return _wrong(_("{model}: its weights are missing", model=text), advice)
    path = Path(source).expanduser()
    if path.is_file() or (path / "model_index.json").is_file():
        facts = base_facts(Base(source=source), environ)
        if facts is not None and facts.family:
            return _fine(_("{model}: {facts}", model=text, facts=model_words(source, facts, lora_bytes)))
        advice = _("Stable Diffusion 1.x, 2.x, XL and 3 can be trained, as .safetensors or as a folder.")
        return _wrong(_("{model}: not a model that can be trained", model=text), advice)
    if path.is_dir():
        advice = _("Set a folder in diffusers layout.")
        return _wrong(_("{model}: the folder has no model_index.json", model=text), advice)
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or path.suffix:
        advice = _("Correct models.sources in the config.")
        return _wrong(_("{model}: there is no such file or folder", model=text), advice)
    if (_hub_cache(environ) / f"models--{source.replace('/', '--')}").is_dir():
        return _fine(_("{model}: in the Hugging Face cache", model=text))
    advice = _("It will be downloaded at its first use (some GiB).")
    return _note(_("{model}: not in the Hugging Face cache", model=text), advice)


def _hub_cache(environ: Mapping[str, str]) -> Path:
    home = Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(environ.get("HF_HUB_CACHE") or home / "hub")


async def check_trainer(config: Config, environ: Mapping[str, str]) -> AsyncIterator[CheckResult]:
    """Check that the trainer starts, and which GPUs it finds, in processes of its own Python."""
    command = " ".join(config.trainer.command)
    environment = config.trainer_environment(environ)
    if (why := await _why_not_started(config.trainer.command, environment)) is not None:
        advice = _("Run `{command} --help`; `make setup` installs what it needs.", command=command)
        yield _wrong(_("trainer does not start: {why}", why=why), advice)
        return
    yield _fine(_("trainer starts ({command})", command=command))
    devices = await query_devices(config.trainer.command, environment, timeout_s=_TRAINER_S)
    if not devices.gpus:
        why = f": {devices.problem}" if devices.problem else ""
        advice = _("Trainings run on the CPU: fine for `tiny`, far too slow for real models.")
        yield _note(_("no GPU that torch can use{why}", why=why), advice)
        return
    yield _fine(_("GPU: {gpus}", gpus="; ".join(f"{gpu.name}, {size(gpu.memory_bytes)}" for gpu in devices.gpus)))
    if devices.problem:
        yield _note(devices.problem)
    if config.queue.slots > len(devices.gpus):
        text = _("queue.slots is {slots}, but there are {gpus} GPUs", slots=config.queue.slots, gpus=len(devices.gpus))
        yield _note(text, _("Trainings would share their memory."))


async def check_self_test(config: Config, environ: Mapping[str, str]) -> CheckResult:
    """Let the trainer try what a training may use on this machine."""
    again = _("`python -m trainer selftest` prints each check.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "selftest.json"
        command = (*config.trainer.command, "selftest", "--quick", "--json", str(file))
        try:
            child = await run_and_capture(command, config.trainer_environment(environ), timeout_s=_SELF_TEST_S)
        except TimeoutError:
            return _wrong(_("the trainer's self-test takes longer than {limit}", limit=duration(_SELF_TEST_S)), again)
        except OSError as error:
            return _wrong(_("the trainer's self-test does not start: {why}", why=error), again)
        try:
            report = SelfTestReport.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            why = child.last_error_line or _("exit status {status}", status=child.status)
            return _wrong(_("the trainer's self-test failed: {why}", why=why), again)
    failed = [f"{result.name} ({result.note})" for result in report.results if result.outcome is Outcome.FAILED]
    if failed:
        return _wrong(_("trained on {device}, wrong: {checks}", device=report.device, checks="; ".join(failed)), again)
    passed = sum(result.outcome is Outcome.PASSED for result in report.results)
    return _fine(_("self-test: {n} kinds of training are right on {device}", n=passed, device=report.device))


async def check_confinement() -> CheckResult:
    """Check what this kernel keeps from the processes that open uploads, in such a process."""
    child = await run_and_capture(confined(()), {}, timeout_s=_TIMEOUT_S) if IS_LINUX else None
    barriers = set() if child is None else set(child.stdout.decode().split())
    if barriers == {*Barrier}:
        return _fine(_("what opens uploads has no network and sees no other process"))
    advice = _(
        "It needs Linux 5.19 with seccomp and Landlock; until then run the bot as a user of its own (SECURITY.md)."
    )
    if Barrier.NETWORK in barriers:
        return _note(_("what opens uploads has no network, but could read other processes of this user"), advice)
    return _note(_("this kernel does not keep the network from what opens uploads"), advice)


async def _why_not_started(command: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    """Run `command --help`; None if it succeeds."""
    try:
        child = await run_and_capture((*command, "--help"), environment, timeout_s=_TRAINER_S)
    except TimeoutError:
        return _("it took longer than {seconds} s", seconds=_TRAINER_S)
    except OSError as error:
        return str(error)
    if child.status == 0:
        return None
    return child.last_error_line or _("exit status {status}", status=child.status)


def check_operators(config: Config, guild_ids: Collection[int]) -> Iterator[CheckResult]:
    """Check that someone in Discord may operate a machine that serves several servers."""
    if len(set(guild_ids)) > 1 and not config.discord.operator_ids:
        yield _note(
            _("the bot serves several servers and discord.operator_ids is empty"),
            _("/admin pause, drain, resume, slots and storage are refused; `python -m bot queue` works."),
        )


async def check_discord(config: Config, environ: Mapping[str, str], api: str) -> AsyncIterator[CheckResult]:
    """Check the token, and the bot's permissions in each server."""
    try:
        token = read_token(config, environ)
    except ConfigError as error:
        yield _wrong(
            _("Discord token: {problem}", problem=error.problems[0]),
            _(
                "Get one at https://discord.com/developers/applications → Bot → Reset Token. `make demo` needs none.",
            ),
        )
        return
    headers = {"Authorization": f"Bot {token}"}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, trust_env=True) as session:
            async for result in _query_discord(session, config, api):
                yield result
    except (aiohttp.ClientError, TimeoutError) as error:
        text = _("Discord cannot be reached ({why})", why=str(error) or type(error).__name__)
        yield _wrong(text, _("Check this machine's network and proxy (HTTPS_PROXY)."))


async def _query_discord(session: aiohttp.ClientSession, config: Config, api: str) -> AsyncIterator[CheckResult]:
    async with session.get(f"{api}/users/@me") as response:
        if response.status == _UNAUTHORIZED:
            advice = _("Reset it, and set {variable} to the new one.", variable=config.discord.token_env)
            yield _wrong(_("Discord refuses the token"), advice)
            return
        response.raise_for_status()
        me: dict[str, Any] = await response.json()
        date = response.headers.get("Date")
    yield _fine(_("Discord accepts the token: the bot is {name}", name=me["username"]))
    yield _fine(_("privileged intents: none needed, nothing to enable"))
    if date and abs(parsedate_to_datetime(date).timestamp() - time.time()) > _CLOCK_SKEW_S:
        yield _note(_("this machine's clock differs from Discord's"), _("Enable time synchronization (NTP)."))
    async with session.get(f"{api}/users/@me/guilds") as response:
        response.raise_for_status()
        guilds: list[dict[str, Any]] = await response.json()
    for result in _check_guilds(guilds, config, int(me["id"])):
        yield result


def _check_guilds(guilds: Collection[Mapping[str, Any]], config: Config, application_id: int) -> Iterator[CheckResult]:
    guild_ids = {int(guild["id"]) for guild in guilds}
    invite = invite_url(application_id)
    if not guilds:
        yield _wrong(_("the bot is in no server"), _("Invite it: {url}", url=invite))
    if not config.discord.guild_ids:
        yield from check_operators(config, guild_ids)
    for guild in guilds:
        missing = missing_permissions(discord.Permissions(int(guild["permissions"])))
        if not missing:
            yield _fine(_("server “{name}”: all permissions", name=guild["name"]))
            continue
        text = _("server “{name}”: missing {permissions}", name=guild["name"], permissions=", ".join(missing))
        yield _wrong(text, _("Grant them, or invite it again: {url}", url=invite))
    for guild_id in set(config.discord.guild_ids) - guild_ids:
        text = _("the bot is not in the server {server} (discord.guild_ids)", server=guild_id)
        yield _wrong(text, _("Invite it, or correct the config."))
