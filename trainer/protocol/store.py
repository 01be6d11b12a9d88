"""What lies where in an object store through which a job goes to another machine and comes back.

    ROOT/datasets/<key>.tar                    a prepared dataset; written once
    ROOT/jobs/7/attempt.json                   which attempt is the valid one
    ROOT/jobs/7/attempts/3/begin.json          where the attempt begins; written by whoever starts it
    ROOT/jobs/7/attempts/3/events/<byte>.jsonl whole lines of events.jsonl, from that byte on; written once
    ROOT/jobs/7/attempts/3/files/…             what the job folder holds for people, under its name there
    ROOT/jobs/7/attempts/3/checkpoints/….tar   complete checkpoints
    ROOT/jobs/7/attempts/3/beat                the trainer's last sign of life, seconds since the epoch
    ROOT/jobs/7/attempts/3/trainer.log         the end of the log, that of earlier attempts before it

Each attempt writes under its own number only, and reads what `begin.json` names: what an earlier one that lost its job
still writes is read by nobody, however late it comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from trainer.protocol.attempt import ATTEMPT_FILE
from trainer.protocol.order import LOG_FILE

JOBS_FOLDER = "jobs"
EVENTS_FOLDER, FILES_FOLDER, CHECKPOINTS_FOLDER = "events", "files", "checkpoints"
#: Argument of a trainer's command line in whose place its job folder on the node is put.
JOB_DIR_ARGUMENT = "JOB_DIR"


class Begin(BaseModel):
    """Where an attempt begins. All names are from the store's root on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The spec, as `spec.json` holds it.
    spec: str
    #: Folder in the spec → its packed dataset.
    datasets: dict[str, str] = {}
    #: Packed checkpoints to go on from.
    checkpoints: tuple[str, ...] = ()
    #: Folders whose files the job folder begins with, later ones over earlier ones.
    files: tuple[str, ...] = ()


def attempts_of(job_id: int) -> str:
    """The folder of all attempts at a job."""
    return f"{job_folder(job_id)}/attempts"


def job_folder(job_id: int) -> str:
    """The folder of all that a job has in the store, but its datasets."""
    return f"{JOBS_FOLDER}/{job_id}"


@dataclass(frozen=True, kw_only=True)
class JobPlace:
    """The names of one attempt at one job."""

    job_id: int
    attempt: int

    @property
    def fence(self) -> str:
        return f"{job_folder(self.job_id)}/{ATTEMPT_FILE}"

    @property
    def folder(self) -> str:
        return f"{attempts_of(self.job_id)}/{self.attempt}"

    @property
    def begin(self) -> str:
        return f"{self.folder}/begin.json"

    @property
    def beat(self) -> str:
        return f"{self.folder}/beat"

    @property
    def log(self) -> str:
        return f"{self.folder}/{LOG_FILE}"

    @property
    def events(self) -> str:
        return f"{self.folder}/{EVENTS_FOLDER}"

    @property
    def files(self) -> str:
        return f"{self.folder}/{FILES_FOLDER}"

    @property
    def checkpoints(self) -> str:
        return f"{self.folder}/{CHECKPOINTS_FOLDER}"

    def events_from(self, byte: int) -> str:
        """The object with the lines from a byte of events.jsonl on."""
        return f"{self.events}/{byte:015d}.jsonl"


def first_byte(events_object: str) -> int:
    """The byte of events.jsonl that an object begins with."""
    return int(events_object.rpartition("/")[2].partition(".")[0])
