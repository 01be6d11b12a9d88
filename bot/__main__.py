"""`python -m bot`: run the bot, operate it, sync its commands with Discord, or watch a demo.

python -m bot run
python -m bot doctor
python -m bot queue [--json | --pause WHY | --drain WHY | --resume]
python -m bot backup [--to FILE]
python -m bot restore FILE
python -m bot sync [--dry-run | --force]
python -m bot models [check | add LABEL SOURCE]
python -m bot demo
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bot.config import Config

# Everything else is imported where it is needed: the libraries take a second, and a bot that is stopped within it
# ends as one that is stopped later.

_CONFIG_FILE = Path("config.toml")
_EXIT_FINE, _EXIT_WRONG, _EXIT_REFUSED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 fine, 1 something is missing or failed, 2 refused and nothing was done."""
    options = _parser().parse_args(arguments)
    if options.command == "run" and arguments is None:
        _end_at_signals()
    from bot.errors import DarkroomError
    from bot.runners.confinement import hide_memory

    if arguments is None:
        # This is the process's own command line.
        hide_memory()
        # What it writes, its trainers' files included, is for its user alone.
        os.umask(0o077)
    try:
        return _run_command(options)
    except DarkroomError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the output of the command line.
        return _EXIT_REFUSED
    except KeyboardInterrupt:
        return 130


def _end_at_signals() -> None:
    """End with status 0 at SIGTERM or SIGINT; `bot.app.connection.run` takes over once there is something to close."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: os._exit(_EXIT_FINE))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bot", description="Fine-tune Stable Diffusion from Discord.")
    parser.set_defaults(command="run", config=None)
    with_config = argparse.ArgumentParser(add_help=False)
    with_config.add_argument("--config", type=Path, default=None, metavar="FILE", help="default: config.toml, if there")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", parents=[with_config], help="run the bot (the default)")
    commands.add_parser("doctor", parents=[with_config], help="check what a first run needs, and the bot's health")
    _add_queue(commands.add_parser("queue", parents=[with_config], help="show, pause, drain or resume the queue"))
    backup = commands.add_parser("backup", parents=[with_config], help="copy the database, also while the bot runs")
    backup.add_argument(
        "--to", type=Path, default=None, metavar="FILE", help="default: a new file in the backup folder"
    )
    restore = commands.add_parser("restore", parents=[with_config], help="replace the database by a copy")
    restore.add_argument("copy", type=Path, metavar="FILE", help="the previous database is set aside and kept")
    sync = commands.add_parser("sync", parents=[with_config], help="sync the commands with Discord now")
    sync.add_argument("--dry-run", action="store_true", help="only show what would be synced")
    sync.add_argument("--force", action="store_true", help="write all commands, also those that Discord has")
    models = commands.add_parser("models", parents=[with_config], help="show the base models, or add one")
    actions = models.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("check", help="show them, and what is missing (the default)")
    add = actions.add_parser("add", help="write one into config.toml")
    add.add_argument("label", metavar="LABEL", help="its name in Discord, such as SDXL")
    add.add_argument("source", metavar="SOURCE", help="a .safetensors file, a diffusers folder, or a hub name")
    demo = commands.add_parser("demo", help="watch the real bot in a simulated Discord")
    demo.add_argument("--headless", action="store_true", help="no page: print what the channel shows")
    demo.add_argument("--data", type=Path, default=Path("demo-data"), metavar="FOLDER", help="default: demo-data")
    demo.add_argument("--dataset", type=Path, default=None, metavar="ZIP", help="images of your own")
    demo.add_argument("--port", type=int, default=0, help="of the page; default: a free one")
    return parser


def _add_queue(parser: argparse.ArgumentParser) -> None:
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--json", action="store_true", help="for programs")
    action.add_argument("--pause", metavar="WHY", help="start no new training; running ones continue")
    action.add_argument("--drain", metavar="WHY", help="start none; running ones save a checkpoint and wait")
    action.add_argument("--resume", action="store_true", help="let the queue run again")


def _run_command(options: argparse.Namespace) -> int:
    # Servers have no simcord, and a trainer's machine no discord.py.
    import asyncio

    match options.command:
        case "doctor":
            return asyncio.run(_doctor(options.config or _CONFIG_FILE))
        case "queue":
            return _print(asyncio.run(_queue(_config(options.config), options)))
        case "backup":
            from bot.operations.backup import run_backup

            return _print(asyncio.run(run_backup(_config(options.config), to=options.to)))
        case "restore":
            from bot.operations.backup import restored_text, run_restore

            data_dir = _config(options.config).storage.data_dir
            return _print(restored_text(asyncio.run(run_restore(options.copy, data_dir))))
        case "sync":
            from bot.app.connection import sync_commands

            report, is_synced = asyncio.run(
                sync_commands(_config(options.config), is_dry=options.dry_run, is_forced=options.force)
            )
            _print(report)
            return _EXIT_FINE if is_synced else _EXIT_WRONG
        case "models":
            from bot.operations.models_command import add_model, models_text

            if options.action == "add":
                return _print(add_model(options.config or _CONFIG_FILE, options.label, options.source))
            return _print(models_text(_config(options.config)))
        case "demo":
            from bot.demo.show import run_demo

            return run_demo(data=options.data, dataset=options.dataset, port=options.port, is_headless=options.headless)
        case _:
            from bot.app.connection import run
            from bot.log import setup_logging

            setup_logging()
            config = _config(options.config)
            setup_logging(config.log.level, form=config.log.format)
            asyncio.run(run(config))
            return _EXIT_FINE


def _config(path: Path | None) -> Config:
    """Load the settings of `path`, else of config.toml if it exists, else the defaults."""
    import logging

    from bot.config import Config
    from bot.config_file import load_config

    if path is not None:
        return load_config(path)
    if _CONFIG_FILE.exists():
        return load_config(_CONFIG_FILE)
    logging.getLogger(__name__).info("there is no %s: the defaults apply", _CONFIG_FILE)
    return Config()


async def _queue(config: Config, options: argparse.Namespace) -> str:
    import json

    from bot.operations.queue_command import pause_queue, queue_json, queue_text, read_queue, resume_queue
    from bot.queue import PauseKind

    if options.resume:
        return await resume_queue(config)
    if options.pause is not None:
        return await pause_queue(config, PauseKind.PAUSE, options.pause)
    if options.drain is not None:
        return await pause_queue(config, PauseKind.DRAIN, options.drain)
    queue = await read_queue(config)
    return json.dumps(queue_json(queue), indent=2) if options.json else queue_text(queue)


def _print(text: str) -> int:
    print(text)  # noqa: T201
    return _EXIT_FINE


async def _doctor(path: Path) -> int:
    from bot.doctor import Mark, examine
    from trainer.protocol.text import _

    is_wrong = False
    async for result in examine(path):
        print(result, flush=True)  # noqa: T201
        is_wrong = is_wrong or result.mark is Mark.WRONG
    _print(_("\nFix the lines marked ✗ first.") if is_wrong else _("\nReady: `make run`."))
    return _EXIT_WRONG if is_wrong else _EXIT_FINE


if __name__ == "__main__":
    sys.exit(main())
