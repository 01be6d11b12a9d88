"""What a trainer needs to begin or to go on, from the object store into a scratch folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.errors import TrainerError
from trainer.event_file import EVENTS_FILE
from trainer.protocol.attempt import write_attempt
from trainer.protocol.objects import Objects
from trainer.protocol.order import LOG_FILE
from trainer.protocol.places import write_places
from trainer.protocol.store import Begin, JobPlace, first_byte


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A job on this machine."""

    job_dir: Path
    #: What the trainer's environment is laid under: where the datasets lie here.
    environment: dict[str, str]
    #: Name of a checkpoint's folder → the object that it came from.
    checkpoints: dict[str, str]


def fetch(objects: Objects, place: JobPlace, scratch: Path) -> Fetched:
    """Lay out the job folder of an attempt, and its datasets beside it.

    Raises:
        TrainerError: nobody has prepared this attempt, or what was prepared is damaged.
        OSError: the store cannot be read.
    """
    content = objects.read(place.begin)
    if content is None:
        raise TrainerError(
            f"{objects.url} holds no {place.begin}: nobody has prepared attempt {place.attempt}.",
            "`trainer ship` is started by the bot; on the command line, use `trainer run`.",
        )
    begin = Begin.model_validate_json(content)
    job_dir = scratch / str(place.job_id)
    job_dir.mkdir(parents=True)
    (job_dir / "spec.json").write_text(begin.spec, encoding="utf-8")
    write_attempt(job_dir, place.attempt)
    _fetch_files(objects, begin.files, job_dir)
    _fetch_events(objects, place, job_dir)
    if (log := objects.read(place.log)) is not None:
        (job_dir / LOG_FILE).write_bytes(log)
    checkpoints = {PurePosixPath(name).stem: name for name in begin.checkpoints}
    for step, name in checkpoints.items():
        (job_dir / "checkpoints").mkdir(exist_ok=True)
        objects.unpack(name, job_dir / "checkpoints" / step)
    places = {folder: str(_fetch_dataset(objects, folder, name, scratch)) for folder, name in begin.datasets.items()}
    return Fetched(job_dir=job_dir, environment=write_places(places), checkpoints=checkpoints)


def _fetch_files(objects: Objects, folders: Iterable[str], job_dir: Path) -> None:
    for folder in folders:
        for name in objects.names(folder):
            objects.download(name, job_dir / name.removeprefix(f"{folder}/"))


def _fetch_events(objects: Objects, place: JobPlace, job_dir: Path) -> None:
    """What was said so far, from the first byte on."""
    said = b""
    for name in objects.names(place.events):
        if first_byte(name) != len(said):
            raise TrainerError(f"{name} does not go on from byte {len(said)}.", "The store was changed by hand?")
        said += objects.read(name) or b""
    (job_dir / EVENTS_FILE).write_bytes(said)


def _fetch_dataset(objects: Objects, folder: str, name: str, scratch: Path) -> Path:
    """Its own last two names are kept: people know a dataset by them."""
    key = PurePosixPath(name).stem
    local = scratch.joinpath("datasets", key, *Path(folder).parts[-2:])
    local.parent.mkdir(parents=True, exist_ok=True)
    objects.unpack(name, local)
    return local
