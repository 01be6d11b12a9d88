"""The bot's side of an object store: what an attempt begins with goes up, what it says and shows comes down."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from bot.runners.events import EVENTS_FILE
from trainer.protocol.attempt import Attempt, write_attempt
from trainer.protocol.events import (
    EpochEnded,
    Event,
    Exported,
    Finished,
    LastWord,
    Sampled,
    Started,
    Tested,
    parse_event,
)
from trainer.protocol.log_file import read_tail
from trainer.protocol.objects import Objects
from trainer.protocol.order import LOG_FILE
from trainer.protocol.spec import Spec, read_spec
from trainer.protocol.store import Begin, JobPlace, first_byte

log = logging.getLogger(__name__)

#: Made by trainings, and again by the next where it is missing.
_NOT_PACKED = ("cache",)


class Mirror:
    """Blocking; call it in a thread. A job folder here holds the same bytes of events.jsonl as the trainer's own."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        #: Attempts whose events were compared with the mirror since this bot began.
        self._compared: set[JobPlace] = set()

    @property
    def url(self) -> str:
        return self._objects.url

    def prepare(self, place: JobPlace, job_dir: Path) -> None:
        """Make an attempt the valid one, and lay out all that it needs; a second call changes nothing.

        Raises:
            OSError: the store cannot be used.
        """
        write_attempt(job_dir, place.attempt)
        # First: from here on an earlier attempt sends nothing more.
        self._objects.write(place.fence, Attempt(attempt=place.attempt).model_dump_json().encode())
        if self._objects.exists(place.begin):
            return
        # Before the events: all that was said before these checkpoints were written is among those then.
        before, checkpoints = self._earlier(place)
        said = _whole_lines(job_dir)
        if before is not None:
            said += self._late_words(before, place, job_dir)
        if said:
            self._objects.write(place.events_from(0), said)
        if log_so_far := read_tail(job_dir / LOG_FILE):
            self._objects.write(place.log, log_so_far)
        spec = read_spec(job_dir)
        begin = Begin(
            spec=(job_dir / "spec.json").read_text(encoding="utf-8"),
            datasets={folder: self._put_dataset(Path(folder)) for folder in datasets_of(spec)},
            checkpoints=checkpoints,
            files=() if before is None else (*self._read_begin(before).files, before.files),
        )
        self._objects.write(place.begin, begin.model_dump_json().encode())

    def _earlier(self, place: JobPlace) -> tuple[JobPlace | None, tuple[str, ...]]:
        """The last attempt that was prepared, None if there is none, and the checkpoints to go on from."""
        for number in range(place.attempt - 1, 0, -1):
            before = JobPlace(job_id=place.job_id, attempt=number)
            if not self._objects.exists(before.begin):
                continue
            newest = {name.rpartition("/")[2]: name for name in self._read_begin(before).checkpoints}
            newest |= {name.rpartition("/")[2]: name for name in self._objects.names(before.checkpoints)}
            return before, tuple(name for _, name in sorted(newest.items()) if self._objects.exists(name))
        return None, ()

    def _read_begin(self, place: JobPlace) -> Begin:
        return Begin.model_validate_json(self._objects.read(place.begin) or b"{}")

    def _late_words(self, before: JobPlace, place: JobPlace, job_dir: Path) -> bytes:
        """What the earlier attempt sent after it was last heard: the next one counts it as said, so it is said by it.

        Without its last word, which is no word about the next.
        """
        late = [event for lines in self._new_chunks(before, job_dir) for event in _events_of(lines)]
        kept = [
            event.model_copy(update={"attempt": place.attempt}) for event in late if not isinstance(event, LastWord)
        ]
        return b"".join(event.model_dump_json().encode() + b"\n" for event in kept)

    def _put_dataset(self, folder: Path) -> str:
        """Its name in the store. A prepared folder never changes, so one that is there is the same."""
        key = hashlib.sha256(os.fsencode(folder) + (folder / "report.json").read_bytes()).hexdigest()[:32]
        name = f"datasets/{key}.tar"
        if not self._objects.exists(name):
            self._objects.pack(folder, name, leave_out=_NOT_PACKED)
        return name

    def fetch(self, place: JobPlace, job_dir: Path) -> None:
        """Bring the mirror up to what the attempt has sent: first the files that its events name, then those events.

        Raises:
            OSError: the store cannot be used, or this disk.
        """
        for lines in self._new_chunks(place, job_dir):
            for event in _events_of(lines):
                for name in named_files(event):
                    self._fetch_file(place, job_dir, name)
            _append(job_dir, lines)

    def _new_chunks(self, place: JobPlace, job_dir: Path) -> Iterator[bytes]:
        """Lines after those that the mirror has."""
        if place not in self._compared:
            _cut_torn_line(job_dir)
        at = _size(job_dir)
        if place not in self._compared and (rest := self._rest_of_object(place, at)):
            yield rest
            at += len(rest)
        self._compared.add(place)
        # By name, without a listing: those grow with the hours, and this is asked every second.
        while lines := self._objects.read(place.events_from(at)):
            yield lines
            at += len(lines)

    def _rest_of_object(self, place: JobPlace, at: int) -> bytes:
        """What is left of the object in whose middle the mirror ends: a new attempt begins with one that is longer than
        the mirror where the earlier one was not heard to its end, and a bot may die while it writes."""
        names = [name for name in self._objects.names(place.events) if first_byte(name) < at]
        return (self._objects.read(names[-1]) or b"")[at - first_byte(names[-1]) :] if names else b""

    def _fetch_file(self, place: JobPlace, job_dir: Path, name: str) -> None:
        """From this attempt, or from the last one before it that sent the file. A folder is fetched with all in it."""
        if ".." in Path(name).parts or Path(name).is_absolute():
            log.warning("#%d: %r lies outside of the job folder and is not fetched", place.job_id, name)
            return
        for folder in (place.files, *reversed(self._read_begin(place).files)):
            source = f"{folder}/{name}"
            found = [source] if self._objects.exists(source) else []
            inside = self._objects.names(source)
            for each in inside or found:
                self._objects.download(each, job_dir / each.removeprefix(f"{folder}/"))
            if inside or found:
                return
        log.warning("#%d: an event names %s, which is not in the store", place.job_id, name)

    def fetch_log(self, place: JobPlace, job_dir: Path) -> None:
        """Bring trainer.log up to what the attempt has sent of it: the log of earlier attempts is its beginning.

        Raises:
            OSError: the store cannot be read, or this disk not be written.
        """
        with suppress(FileNotFoundError):
            self._objects.download(place.log, job_dir / LOG_FILE)

    def last_beat(self, place: JobPlace) -> float | None:
        """See `Runner.last_beat`.

        Raises:
            OSError: the store cannot be read.
        """
        said = self._objects.read(place.beat)
        return None if said is None else float(said)


def datasets_of(spec: Spec) -> Sequence[str]:
    """Folders of all datasets of a job."""
    return (spec.dataset, *(part.dataset for part in spec.mix))


def named_files(event: Event) -> tuple[str, ...]:
    """Files for people that an event names, from the job folder on; a checkpoint is none."""
    named: tuple[str | None, ...] = ()
    match event:
        case Started():
            named = (event.augmentation_sheet,)
        case Sampled():
            named = (event.sheet, *(sample.path for sample in event.samples))
        case EpochEnded() | Tested():
            named = (event.chart,)
        case Exported():
            named = (event.path,)
        case Finished():
            named = (event.comparison, event.report)
        case _:
            pass
    return tuple(name for name in named if name)


def _events_of(lines: bytes) -> Iterator[Event]:
    for line in lines.splitlines():
        try:
            yield parse_event(line)
        except ValidationError:
            # Whoever reads the mirror says so.
            continue


def _size(job_dir: Path) -> int:
    try:
        return (job_dir / EVENTS_FILE).stat().st_size
    except FileNotFoundError:
        return 0


def _whole_lines(job_dir: Path) -> bytes:
    _cut_torn_line(job_dir)
    path = job_dir / EVENTS_FILE
    return path.read_bytes() if path.exists() else b""


def _cut_torn_line(job_dir: Path) -> None:
    """A bot that died while it wrote leaves part of a line, which nobody has read."""
    path = job_dir / EVENTS_FILE
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def _append(job_dir: Path, lines: bytes) -> None:
    with (job_dir / EVENTS_FILE).open("ab") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
