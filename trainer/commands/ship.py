"""`python -m trainer ship`: trains a job whose folder lies in an object store; started by a bot on a cluster."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from trainer.commands.refusing import refuse
from trainer.errors import TrainerError
from trainer.protocol.events import EXIT_FAILED
from trainer.protocol.objects import Objects
from trainer.protocol.store import JOB_DIR_ARGUMENT, JobPlace
from trainer.shipping.ship import INTERVAL_S, ship

log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `ship` takes."""
    parser.add_argument("url", metavar="URL", help="the store's root, as fsspec knows it: s3://bucket/darkroom")
    parser.add_argument("--job", type=int, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--scratch", type=Path, help="folder for the job while it trains; default: the system's")
    parser.add_argument("--interval", type=float, default=INTERVAL_S, metavar="SECONDS", help="between two sendings")
    parser.add_argument(
        "trainer", nargs="+", metavar="COMMAND", help=f"after --: what trains, with {JOB_DIR_ARGUMENT} for its folder"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Fetch, train, send back; the exit status is the trainer's."""
    logging.getLogger("trainer.shipping").setLevel(logging.INFO)
    place = JobPlace(job_id=options.job, attempt=options.attempt)
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f"darkroom-{options.job}-", dir=options.scratch) as scratch:
            objects = Objects(options.url)
            return ship(objects, place, options.trainer, scratch=Path(scratch), interval_s=options.interval)
    except TrainerError as error:
        return refuse(str(error))
    except OSError as error:
        log.exception("the store cannot be used")
        sys.stderr.write(f"{options.url} cannot be used: {error}\n")
        return EXIT_FAILED
