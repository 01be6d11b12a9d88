"""`python -m bot`: run the bot, look after it, tell Discord its commands, or watch a demo.

python -m bot run
python -m bot doctor
python -m bot queue [--json | --pause WHY | --drain WHY | --resume]
python -m bot backup [--to FILE]
python -m bot restore FILE
python -m bot sync --dry-run
python -m bot demo
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bot.config import Config, load_config
from bot.errors import DarkroomError
from bot.log import setup_logging

log = logging.getLogger(__name__)

_CONFIG_FILE = Path("config.toml")
_EXIT_FINE, _EXIT_WRONG, _EXIT_REFUSED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 fine, 1 something is missing or failed, 2 refused: nothing was done."""
    options = _parser().parse_args(arguments)
    try:
        return _command(options)
    except DarkroomError as error:
        print(error, file=sys.stderr)  # noqa: T201 - what the command line says.
        return _EXIT_REFUSED
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bot", description="Fine-tune Stable Diffusion from Discord.")
    parser.set_defaults(command="run", config=None)
    with_config = argparse.ArgumentParser(add_help=False)
    with_config.add_argument("--config", type=Path, default=None, metavar="FILE", help="default: config.toml, if there")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", parents=[with_config], help="run the bot (the default)")
    commands.add_parser(
        "doctor", parents=[with_config], help="say what is missing before a first run, and what ails it"
    )
    _add_queue(commands.add_parser("queue", parents=[with_config], help="show the line; pause, drain or resume it"))
    backup = commands.add_parser("backup", parents=[with_config], help="copy the database, also while the bot runs")
    backup.add_argument(
        "--to", type=Path, default=None, metavar="FILE", help="default: a new file in the backup folder"
    )
    restore = commands.add_parser("restore", parents=[with_config], help="put a copy in the place of the database")
    restore.add_argument("copy", type=Path, metavar="FILE", help="the database that was there is put aside, and kept")
    sync = commands.add_parser("sync", parents=[with_config], help="tell Discord the commands now")
    sync.add_argument("--dry-run", action="store_true", help="only say what would be told")
    demo = commands.add_parser("demo", help="watch the real bot in a simulated Discord")
    demo.add_argument("--headless", action="store_true", help="no page: print what the channel shows")
    demo.add_argument("--data", type=Path, default=Path("demo-data"), metavar="FOLDER", help="default: demo-data")
    demo.add_argument("--dataset", type=Path, default=None, metavar="ZIP", help="pictures of your own")
    demo.add_argument("--port", type=int, default=0, help="of the page; default: a free one")
    return parser


def _add_queue(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="for programs")
    what.add_argument("--pause", metavar="WHY", help="start nothing new; what runs goes on")
    what.add_argument("--drain", metavar="WHY", help="start nothing new; what runs saves its checkpoint and waits")
    what.add_argument("--resume", action="store_true", help="let jobs start again")


def _command(options: argparse.Namespace) -> int:
    # Each command's own imports: discord.py takes half a second, simcord is not there on a server.
    match options.command:
        case "doctor":
            return asyncio.run(_doctor(options.config or _CONFIG_FILE))
        case "queue":
            return asyncio.run(_queue(_config(options.config), options))
        case "backup":
            from bot.operations.backup import run_backup

            return _say(asyncio.run(run_backup(_config(options.config), to=options.to)))
        case "restore":
            from bot.operations.restore import run_restore

            return _say(asyncio.run(run_restore(options.copy, _config(options.config).storage.data_dir)))
        case "sync":
            from bot.app.sync_command import sync_command

            return asyncio.run(sync_command(_config(options.config), is_dry=options.dry_run))
        case "demo":
            from bot.demo import run_demo

            return run_demo(data=options.data, dataset=options.dataset, port=options.port, is_headless=options.headless)
        case _:
            from bot.app.connection import run

            setup_logging()
            config = _config(options.config)
            setup_logging(config.log.level, form=config.log.format)
            asyncio.run(run(config))
            return _EXIT_FINE


def _config(path: Path | None) -> Config:
    """The settings of `path`; of config.toml if it is there, else the defaults."""
    if path is not None:
        return load_config(path)
    if _CONFIG_FILE.exists():
        return load_config(_CONFIG_FILE)
    log.info("there is no %s: the defaults are used", _CONFIG_FILE)
    return Config()


async def _queue(config: Config, options: argparse.Namespace) -> int:
    from bot.operations.queue import as_json, as_text, halt_queue, read_line, resume_queue
    from bot.queue import HaltKind

    if options.resume:
        return _say(await resume_queue(config))
    if options.pause is not None:
        return _say(await halt_queue(config, HaltKind.PAUSE, options.pause))
    if options.drain is not None:
        return _say(await halt_queue(config, HaltKind.DRAIN, options.drain))
    line = await read_line(config)
    return _say(json.dumps(as_json(line), indent=2) if options.json else as_text(line, datetime.now(UTC)))


def _say(text: object) -> int:
    print(text)  # noqa: T201
    return _EXIT_FINE


async def _doctor(path: Path) -> int:
    from bot.doctor import Mark, examine

    is_wrong = False
    async for finding in examine(path):
        print(finding, flush=True)  # noqa: T201
        is_wrong = is_wrong or finding.mark is Mark.WRONG
    print("\nSomething must be mended first (✗)." if is_wrong else "\nReady: `make run`.")  # noqa: T201
    return _EXIT_WRONG if is_wrong else _EXIT_FINE


if __name__ == "__main__":
    sys.exit(main())
