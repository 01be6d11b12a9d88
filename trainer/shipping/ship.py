"""One attempt at a job from an object store: fetch, train, and send until all is there or somebody else has the job."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import FencedError
from trainer.protocol.attempt import write_attempt
from trainer.protocol.events import EXIT_FENCED
from trainer.protocol.objects import Objects
from trainer.protocol.order import LOG_FILE
from trainer.protocol.store import JOB_DIR_ARGUMENT, JobPlace
from trainer.shipping.beating import Beating
from trainer.shipping.child import Child
from trainer.shipping.fetching import fetch
from trainer.shipping.sending import Sender

log = logging.getLogger(__name__)

#: Between two rounds.
INTERVAL_S = 1.0
#: How long a trainer that lost its job has to stop.
FENCED_GRACE_S = 20.0
#: How long the store may be out of reach after the trainer has ended; then its last results are lost.
PATIENCE_S = 900.0


def ship(
    objects: Objects, place: JobPlace, command: Sequence[str], *, scratch: Path, interval_s: float = INTERVAL_S
) -> int:
    """Run `command`, JOB_DIR in it replaced by a folder below `scratch`; its exit status.

    Raises:
        TrainerError: the attempt cannot be begun.
        OSError: the store cannot be read at the beginning, or not be written to at the end.
    """
    fetched = fetch(objects, place, scratch)
    sender = Sender(objects, place, fetched)
    argv = [str(fetched.job_dir) if word == JOB_DIR_ARGUMENT else word for word in command]
    child = Child(argv, environment=fetched.environment, log_file=fetched.job_dir / LOG_FILE)
    try:
        with Beating(objects, place, fetched.job_dir, lambda: child.status is not None):
            while not child.wait(interval_s):
                _send(sender)
            return _send_the_rest(sender, child)
    except FencedError as error:
        log.warning("%s", error)
        # The trainer looks at it before it says or saves anything.
        write_attempt(fetched.job_dir, place.attempt + 1)
        child.end(grace_s=FENCED_GRACE_S)
        return EXIT_FENCED


def _send(sender: Sender) -> None:
    try:
        sender.send()
    except OSError as error:
        log.warning("the store cannot be reached (%s); training goes on, sending later", error)


def _send_the_rest(sender: Sender, child: Child) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            sender.send(is_last=True)
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            log.warning("the store cannot be reached (%s); trying again", error)
            time.sleep(INTERVAL_S)
        else:
            status = child.status
            assert status is not None, "it has ended"
            return status
