"""What can go wrong in the bot; each error carries its data and says it as a sentence for a person.

DarkroomError
├── ConfigError              the configuration cannot be used; names every problem
├── DataFolderError
│   ├── FolderInUse          another bot works on this data folder
│   ├── SchemaTooNew         a newer Darkroom wrote this database
│   ├── SchemaTooOld         an older one wrote it, and this command may not change it
│   ├── DatabaseUnreadable   there is none, or it cannot be opened
│   ├── CopyFailed           no copy of it could be made
│   ├── CopyRefused          a copy is not put back; nothing was changed
│   ├── DatabaseDamaged      the database fails its own check
│   └── DatabaseUnwritable   its disk is full, read-only or broken; nothing was changed
├── DatasetRefused           what was handed in cannot be trained on
│   ├── DatasetTooLarge
│   ├── TooFewImages
│   └── PrepareFailed        it could not be examined (time, memory, crash)
├── JobRefused               the job is not accepted; nothing was queued
│   ├── TooManyWaiting
│   ├── OverBudget           it needs more GPU hours than its owner has left this week
│   └── DuplicateJob         the same data and settings wait, run, or have succeeded
├── DatasetInUse             a training that has not ended needs it
├── DraftEnded               a request that waited for "Go on" and no longer does
├── NotAllowed               somebody else's job
│   ├── NotYourDataset
│   ├── NotYourRequest
│   └── NotAnOperator        the whole machine, which is for its operators
├── NotFound
│   ├── NoSuchJob
│   └── NoSuchDataset
├── LaunchFailed             no trainer process could be started
└── RunnerUnreachable        the cluster does not answer; what runs there may well run on
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_MIB = 1024 * 1024


class DarkroomError(Exception):
    """Root of all that the bot can explain; `str(error)` is the sentence."""


class ConfigError(DarkroomError):
    """The configuration cannot be used."""

    def __init__(self, *, path: Path, problems: Sequence[str]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__(f"{path} cannot be used:\n" + "\n".join(f"- {problem}" for problem in self.problems))


class DataFolderError(DarkroomError):
    """The data folder cannot be worked on."""


class FolderInUse(DataFolderError):
    """Another bot works on this data folder."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"Another bot already works on {path}. Stop it first, or set another storage.data_dir.")


class SchemaTooNew(DataFolderError):
    """A newer Darkroom wrote this database."""

    def __init__(self, *, path: Path, found: int, known: int) -> None:
        self.path, self.found, self.known = path, found, known
        super().__init__(
            f"{path} was written by a newer Darkroom (schema {found}; this one knows {known}). "
            "Nothing was changed; update Darkroom, or set another storage.data_dir."
        )


class SchemaTooOld(DataFolderError):
    """An older Darkroom wrote this database, and whoever asks may only read it."""

    def __init__(self, *, path: Path, found: int, known: int) -> None:
        self.path, self.found, self.known = path, found, known
        super().__init__(
            f"{path} was written by an older Darkroom (schema {found}; this one needs {known}). "
            "Nothing was changed; the bot brings it up to date when it starts."
        )


class DatabaseUnreadable(DataFolderError):
    """There is no database, or it cannot be opened."""

    def __init__(self, *, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(
            f"{path} cannot be read: {why}. Look at storage.data_dir in the config, and run this as the bot's user."
        )


class CopyFailed(DataFolderError):
    """No copy of the database could be made."""

    def __init__(self, *, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path} could not be written: {why}. Nothing else was changed.")


class CopyRefused(DataFolderError):
    """A copy is not put back."""

    def __init__(self, *, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path} is not put back: {why}. Nothing was changed.")


class DatabaseDamaged(DataFolderError):
    """The database fails its own check."""

    def __init__(self, *, path: Path, finding: str) -> None:
        self.path, self.finding = path, finding
        super().__init__(f"{path} is damaged ({finding}). Put back a copy of it, or set another storage.data_dir.")


class DatabaseUnwritable(DataFolderError):
    """The database takes no change at the moment; what it holds is as it was."""

    def __init__(self, *, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(
            f"I can write nothing down at the moment: {why}. Nothing was changed and nothing is lost. "
            "Whoever runs this bot has to make room or mend the disk; then try again."
        )


class DatasetRefused(DarkroomError):
    """What was handed in cannot be trained on; the message says why."""


class DatasetTooLarge(DatasetRefused):
    """More bytes than this bot takes."""

    def __init__(self, *, file_name: str, max_bytes: int) -> None:
        self.file_name, self.max_bytes = file_name, max_bytes
        super().__init__(
            f"{file_name} is larger than the {max_bytes / _MIB:.3g} MiB that a dataset may have here. "
            "Nothing was kept; hand in fewer or smaller pictures."
        )


class TooFewImages(DatasetRefused):
    """Not enough usable pictures."""

    def __init__(self, *, kept: int, dropped: int, refused: int, needed: int) -> None:
        self.kept, self.dropped, self.refused, self.needed = kept, dropped, refused, needed
        aside = f" ({dropped} dropped, {refused} refused)" if dropped or refused else ""
        super().__init__(
            f"Only {kept} usable {_images(kept)}{aside}; a training needs {needed}. Add more and try again."
        )


class PrepareFailed(DatasetRefused):
    """The dataset could not be examined."""

    def __init__(self, *, name: str, why: str) -> None:
        self.name, self.why = name, why
        super().__init__(f"I could not examine {name}: {why} Nothing was queued.")


class JobRefused(DarkroomError):
    """The job is not accepted; nothing was queued."""


class TooManyWaiting(JobRefused):
    """One person has as many waiting jobs as they may have."""

    def __init__(self, *, waiting: int, allowed: int) -> None:
        self.waiting, self.allowed = waiting, allowed
        super().__init__(f"You have {waiting} of {allowed} jobs waiting. Cancel one, or wait until one starts.")


class OverBudget(JobRefused):
    """It needs more GPU hours than its owner has left this week."""

    def __init__(self, *, needed_h: float | None, left_h: float, allowed_h: float) -> None:
        self.needed_h, self.left_h, self.allowed_h = needed_h, left_h, allowed_h
        if needed_h is None or left_h <= 0:
            said = f"The {allowed_h:g} GPU-h that you have a week are used or promised to your other jobs."
            what = "Wait until Monday, or cancel a job of yours that waits"
        else:
            said = f"This needs ≈ {_hours(needed_h)} GPU-h; you have {_hours(left_h)} h left until Monday."
            what = "Take fewer epochs, or wait until then"
        super().__init__(f"{said} {what}; nothing was queued.")


class DuplicateJob(JobRefused):
    """The same data and settings wait, run, or have succeeded."""

    def __init__(self, *, job_id: int, state: str) -> None:
        self.job_id, self.state = job_id, state
        super().__init__(f"Same data and settings as #{job_id} ({state}). Nothing was queued.")


class NotAllowed(DarkroomError):
    """Somebody else's job."""

    def __init__(self, *, job_id: int, owner_id: int, verb: str) -> None:
        self.job_id, self.owner_id, self.verb = job_id, owner_id, verb
        super().__init__(f"Only <@{owner_id}> or somebody who may manage the server can {verb} #{job_id}.")


class NotYourDataset(NotAllowed):
    """Somebody else's dataset."""

    def __init__(self, *, name: str, owner_id: int, verb: str) -> None:
        self.name, self.owner_id, self.verb = name, owner_id, verb
        DarkroomError.__init__(
            self, f"Only <@{owner_id}> or somebody who may manage the server can {verb} the dataset `{name}`."
        )


class NotYourRequest(NotAllowed):
    """Somebody else's request that waits for "Go on"."""

    def __init__(self, *, owner_id: int) -> None:
        self.owner_id = owner_id
        DarkroomError.__init__(self, f"Only <@{owner_id}> can go on with this request. /finetune makes one of yours.")


class NotAnOperator(NotAllowed):
    """The whole machine, which is for its operators; without any, several servers share it and nobody is listed."""

    def __init__(self, *, user_id: int, operator_ids: Sequence[int] = ()) -> None:
        self.user_id, self.operator_ids = user_id, tuple(operator_ids)
        if operator_ids:
            named = ", ".join(f"<@{operator_id}>" for operator_id in operator_ids)
            said = f"Only its operators can do that: {named}."
        else:
            said = (
                "I do not work for this server alone, and nobody is listed as operator. Whoever runs me lists them in "
                f"config.toml, below [discord]: `operator_ids = [{user_id}]` would be you. Nothing was changed."
            )
        DarkroomError.__init__(self, f"This concerns the whole machine. {said}")


class DatasetInUse(DarkroomError):
    """A training that has not ended needs the dataset."""

    def __init__(self, *, name: str, job_id: int, job_name: str) -> None:
        self.name, self.job_id, self.job_name = name, job_id, job_name
        super().__init__(
            f"{name} is needed by #{job_id} {job_name}, which has not ended. "
            f"Nothing was deleted; try again after it, or cancel it with /job cancel id:{job_id}."
        )


class DraftEnded(DarkroomError):
    """A request that waited for "Go on" and no longer does; nothing was queued by this press."""


class NotFound(DarkroomError):
    """There is no such thing (here)."""


class NoSuchJob(NotFound):
    """No job of that number."""

    def __init__(self, *, job_id: int) -> None:
        self.job_id = job_id
        super().__init__(f"There is no job #{job_id} here. /job list shows those that there are.")


class NoSuchDataset(NotFound):
    """No dataset of that name or number."""

    def __init__(self, *, wanted: str | int) -> None:
        self.wanted = wanted
        super().__init__(f"There is no dataset {wanted!r} here. Hand one in with /dataset upload.")


class LaunchFailed(DarkroomError):
    """No trainer process could be started."""

    def __init__(self, *, command: str, why: str) -> None:
        self.command, self.why = command, why
        super().__init__(f"The trainer could not be started ({command}: {why}).")


class RunnerUnreachable(DarkroomError):
    """The machine that runs trainings does not answer; nothing is known of them, and nothing is done about them."""

    def __init__(self, *, where: str, why: str) -> None:
        self.where, self.why = where, why
        super().__init__(f"{where} cannot be reached ({why}). Trainings there may well go on; asking again.")


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def _images(count: int) -> str:
    return "image" if count == 1 else "images"
