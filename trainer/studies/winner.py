"""The winner of a comparison as a job of its own: what was trained is kept, what is left is the test and the export."""

from __future__ import annotations

import os
import shutil
from itertools import count
from pathlib import Path

from trainer.protocol.attempt import ATTEMPT_FILE, HEARTBEAT_FILE
from trainer.protocol.events import EpochEnded, LastWord, StoppedEarly
from trainer.protocol.spec import Spec, make_spec, read_spec
from trainer.studies.stories import EVENTS_FILE, event_of

#: What belongs to a process, or is made again at the end.
_LEFT = ("lock", "process.json", ATTEMPT_FILE, HEARTBEAT_FILE, "trainer.log", "output", EVENTS_FILE, "spec.json")


def make_winner(child: Path, winner: Path, spec: Spec, child_spec: Spec) -> None:
    """Copy a child's folder to `winner`, with the job's own test and samples; it stays if it is there already.

    Another's, from before a failed candidate got its second try and won, is put aside as `winner-before-1` and on.

    Checkpoints are linked, not copied: a trainer replaces them whole and never writes into one.
    """
    whole = child_spec.model_copy(update={"validation": spec.validation, "samples": spec.samples})
    if winner.exists():
        if read_spec(winner) == whole:
            return
        number = next(n for n in count(1) if not winner.with_name(f"{winner.name}-before-{n}").exists())
        winner.rename(winner.with_name(f"{winner.name}-before-{number}"))
    part = winner.with_name(winner.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(child, part, ignore=shutil.ignore_patterns(*_LEFT), copy_function=_link_or_copy)
    (part / EVENTS_FILE).write_bytes(_training_events((child / EVENTS_FILE).read_bytes()))
    make_spec(whole.model_dump(mode="json")).write(part)
    part.replace(winner)


def _training_events(lines: bytes) -> bytes:
    """The events up to the last epoch, without last words: what a child said of its ends is not the winner's end.

    They are numbered again, and belong to no attempt: whoever counts the winner's attempts begins at 1 again.
    """
    events = [event for line in lines[: lines.rfind(b"\n") + 1].splitlines() if (event := event_of(line)) is not None]
    last = max(
        (place for place, event in enumerate(events) if isinstance(event, EpochEnded | StoppedEarly)), default=-1
    )
    kept = [event for event in events[: last + 1] if not isinstance(event, LastWord)]
    return b"".join(
        event.model_copy(update={"seq": seq, "attempt": 0}).model_dump_json().encode() + b"\n"
        for seq, event in enumerate(kept, 1)
    )


def _link_or_copy(source: str, target: str) -> None:
    if "checkpoints" in Path(source).parts:
        try:
            os.link(source, target)
            return
        except OSError:
            # Another file system, or one without links.
            pass
    shutil.copy2(source, target)
