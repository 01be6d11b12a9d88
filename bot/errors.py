"""The bot's errors; each carries its data, and `str(error)` is the sentence for a person.

DarkroomError
├── ConfigError              the configuration cannot be used; names every problem
├── TokenRefused             Discord refuses the bot's token
├── DiscordUnreachable       it does not answer a command of the command line
├── DataFolderError          the data folder cannot be used (`bot.db.errors`)
├── DatasetRefused           the uploaded files cannot be trained on (`bot.datasets.dataset` has more)
│   ├── DatasetTooLarge
│   ├── TooFewImages
│   ├── TooManyDatasets      the person has as many datasets, or bytes of them, as one may have
│   ├── DiskAlmostFull       the machine takes no uploads
│   ├── UploadClosed         the upload page takes no more files
│   └── PrepareFailed        it could not be prepared (time, memory, crash)
├── JobRefused               the job is not accepted; nothing was queued (`bot.queue.store.limits` has more)
│   ├── TooManyWaiting
│   ├── TooManyDrafts
│   ├── TooManyEpochs
│   ├── TooManyRuns          the study has more runs than one may have
│   ├── JobFilesDeleted      its files were deleted, so it cannot be retried
│   └── DuplicateJob         the same data and settings wait, run, or have succeeded
├── DatasetInUse             a training that has not ended needs it
├── DraftEnded               a request that waited for [Start training] and no longer does
├── TooOften                 more uses of a command or button than a person needs
├── StaleButton              a button that this version does not know
├── FormForgotten            a form that cannot be opened again with what was typed
├── NotAllowed               the member may not do this (`bot.queue.domain.verbs` has more)
│   ├── NotYourJob
│   ├── RoleNeeded           for members of some roles
│   ├── ChannelNotAllowed    the bot works in other channels of the server
│   ├── NotYourDataset
│   ├── NotYourRequest
│   └── NotAnOperator        the whole machine, which is for its operators
├── NotFound                 it does not exist (here); `bot.web.links` and the stores have more
│   ├── NoSuchJob
│   └── NoSuchDataset
├── LaunchFailed             no trainer process could be started
├── JobFolderUnwritable      the job's folder cannot be written
└── RunnerUnreachable        the cluster does not answer; its trainings may well be running
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, dataclass_transform

from trainer.protocol.text import N_, _, duration, listed, ngettext, size, translate

_MIB = 1024 * 1024


class DarkroomError(Exception):
    """Root of all errors that the bot can explain."""


@dataclass_transform(kw_only_default=True, eq_default=False)
class Explained(DarkroomError):
    """An error whose data are its fields; they fill its sentence. Each class derived from it is a dataclass."""

    #: Translated where the error is made; placeholders are names of fields.
    sentence: ClassVar[str]

    def __init_subclass__(cls) -> None:
        dataclass(kw_only=True, eq=False)(cls)

    def __post_init__(self) -> None:
        super().__init__(translate(self.sentence).format_map(vars(self)))


class ConfigError(DarkroomError):
    """The configuration cannot be used."""

    def __init__(self, *, path: Path, problems: Sequence[str]) -> None:
        self.path = path
        self.problems = tuple(problems)
        listed = "\n".join(f"- {problem}" for problem in self.problems)
        super().__init__(_("{path} cannot be used:\n{problems}", path=path, problems=listed))


class TokenRefused(Explained):
    """Discord refuses the bot's token."""

    token_env: str
    sentence = N_("Discord refuses the token in {token_env}. Reset it in the developer portal and set the new one.")


class DiscordUnreachable(Explained):
    """Discord does not answer a command of the command line."""

    why: str
    sentence = N_("Discord cannot be reached: {why}. Try again.")


class DatasetRefused(DarkroomError):
    """The uploaded files cannot be trained on; the message says why."""


class DatasetTooLarge(DatasetRefused):
    """More bytes than this bot accepts."""

    def __init__(self, *, file_name: str, max_bytes: int) -> None:
        self.file_name, self.max_bytes = file_name, max_bytes
        super().__init__(
            _(
                "{file} is larger than the {limit} MiB that a dataset may have here. Nothing was kept; upload fewer "
                "or smaller images.",
                file=file_name,
                limit=f"{max_bytes / _MIB:.3g}",
            )
        )


class TooManyDatasets(DatasetRefused):
    """The person has as many datasets, or bytes of them, as one may have."""

    def __init__(self, *, datasets: int, max_datasets: int, stored_bytes: int, max_bytes: int) -> None:
        self.datasets, self.max_datasets = datasets, max_datasets
        self.stored_bytes, self.max_bytes = stored_bytes, max_bytes
        super().__init__(
            _(
                "You would have {n} datasets of {size} in all, and one person may have {max_n} of {max_size}. "
                "Nothing was kept; delete one that you no longer need (`/dataset delete`).",
                n=datasets,
                size=size(stored_bytes),
                max_n=max_datasets,
                max_size=size(max_bytes),
            )
        )


class DiskAlmostFull(DatasetRefused):
    """The disk has less free space than the operator wants to keep."""

    def __init__(self, *, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        super().__init__(
            _(
                "The machine's disk is almost full ({free} left), so it takes no images now. Nothing was downloaded. "
                "Tell the operators of the bot: they have to free disk space.",
                free=size(free_bytes),
            )
        )


class TooFewImages(DatasetRefused):
    """Not enough usable images."""

    def __init__(self, *, kept: int, dropped: int, refused: int, needed: int) -> None:
        self.kept, self.dropped, self.refused, self.needed = kept, dropped, refused, needed
        aside = ""
        if dropped or refused:
            aside = _(" ({dropped} dropped, {refused} refused)", dropped=dropped, refused=refused)
        super().__init__(
            ngettext(
                "Only {n} usable image{aside}; a training needs {needed}. Add more and try again.",
                "Only {n} usable images{aside}; a training needs {needed}. Add more and try again.",
                kept,
                aside=aside,
                needed=needed,
            )
        )


class UploadClosed(Explained, DatasetRefused):
    """The upload of a page was finished or cancelled."""

    sentence = N_("This upload is finished, so it takes no more files. Start another one in Discord.")


class PrepareFailed(Explained, DatasetRefused):
    """The dataset could not be prepared."""

    name: str
    why: str
    sentence = N_("I could not prepare {name}: {why} Nothing was queued.")


class JobRefused(DarkroomError):
    """The job is not accepted; nothing was queued."""


class TooManyWaiting(Explained, JobRefused):
    """The owner has as many waiting jobs as allowed."""

    waiting: int
    allowed: int
    sentence = N_("You have {waiting} of {allowed} jobs waiting. Cancel one, or wait until one starts.")


class NotATraining(Explained, JobRefused):
    """What was asked for is done with trainings, and the job is a sampling."""

    job_id: int
    sentence = N_("#{job_id} is a set of images, not a training; nothing was changed.")


class TooManyDrafts(Explained, JobRefused):
    """The person has as many requests that wait for [Start training] as one may have."""

    waiting: int
    allowed: int
    sentence = N_(
        "You have {waiting} of {allowed} requests that wait for “Start training”. Press it on one of them, "
        "or cancel one; each is dropped after a day. The dataset is kept."
    )


class TooManyEpochs(Explained, JobRefused):
    """The job trains longer than its owner may in one job."""

    epochs: int
    allowed: int
    sentence = N_(
        "{epochs} epochs are more than the {allowed} that one of your jobs may have here. Nothing was "
        "queued; use fewer epochs."
    )


class TooManyRuns(Explained, JobRefused):
    """The study has more runs than one may have."""

    runs: int
    allowed: int
    sentence = N_(
        "This study has {runs} runs, and one may have {allowed} here. Nothing was queued; try fewer values "
        "or fewer parts."
    )


class CheckpointsDeleted(Explained, JobRefused):
    """A finished job that cannot go on."""

    job_id: int
    sentence = N_(
        "The checkpoints of #{job_id} were deleted to free disk space, so it cannot continue. Train again with "
        "/finetune, from_dataset and more epochs; /job pin keeps the files of a training."
    )


class JobFilesDeleted(Explained, JobRefused):
    """A Retry or an extension of a job whose files were deleted."""

    job_id: int
    sentence = N_(
        "The files of #{job_id} were deleted to free disk space. Train it again: /finetune with from_dataset."
    )


class DuplicateJob(Explained, JobRefused):
    """The same data and settings wait, run, or have succeeded."""

    job_id: int
    state: str
    sentence = N_("#{job_id} has the same data and settings. Nothing was queued.")


class NotAllowed(DarkroomError):
    """The member may not do this."""


class NotYourJob(Explained, NotAllowed):
    """Another member's job."""

    job_id: int
    owner_id: int
    sentence = N_("Only <@{owner_id}> or a manager of the server can do this with #{job_id}.")


class RoleNeeded(NotAllowed):
    """Something that only the members of some roles may do here."""

    def __init__(self, *, role_ids: Sequence[int]) -> None:
        self.role_ids = tuple(role_ids)
        named = listed((f"<@&{role_id}>" for role_id in self.role_ids), most=5)
        text = _("On this server this needs the role {roles}. A manager of the server can give it to you.", roles=named)
        super().__init__(text)


class ChannelNotAllowed(NotAllowed):
    """A channel in which the bot does not work."""

    def __init__(self, *, channel_ids: Sequence[int]) -> None:
        self.channel_ids = tuple(channel_ids)
        named = listed((f"<#{channel_id}>" for channel_id in self.channel_ids), most=5)
        super().__init__(_("I do not work in this channel. Go to {channels}.", channels=named))


class NotYourDataset(Explained, NotAllowed):
    """Another member's dataset."""

    name: str
    owner_id: int
    sentence = N_("Only <@{owner_id}> or a manager of the server can do this with the dataset `{name}`.")


class NotYourRequest(Explained, NotAllowed):
    """Another member's request that waits for [Start training]."""

    owner_id: int
    sentence = N_("Only <@{owner_id}> can continue with this request. /finetune makes one of your own.")


class NotAnOperator(NotAllowed):
    """Not an operator of the machine; several servers without a listed operator have none."""

    def __init__(self, *, user_id: int, operator_ids: Sequence[int] = ()) -> None:
        self.user_id, self.operator_ids = user_id, tuple(operator_ids)
        if operator_ids:
            named = ", ".join(f"<@{operator_id}>" for operator_id in operator_ids)
            text = _("This concerns the whole machine. Only its operators can do that: {operators}.", operators=named)
        else:
            text = _(
                "This concerns the whole machine. I serve more than this server, and no operator is listed in my "
                "config.toml. You would be listed below [discord] with `operator_ids = [{user}]`. Nothing was changed.",
                user=user_id,
            )
        super().__init__(text)


class DatasetInUse(Explained):
    """A training that has not ended needs the dataset."""

    name: str
    job_id: int
    job_name: str
    sentence = N_(
        "{name} is needed by #{job_id} {job_name}, which has not ended. Nothing was deleted; try again after it, "
        "or cancel it with /job cancel id:{job_id}."
    )


class DraftEnded(DarkroomError):
    """A request that no longer waits for [Start training]; nothing was queued."""

    def __init__(self, *, is_expired: bool) -> None:
        self.is_expired = is_expired
        if is_expired:
            text = _("This request is older than a day and no longer waits. Run the command again.")
        else:
            text = _("This request was cancelled; nothing was queued. Run the command again.")
        super().__init__(text)


class NotFound(DarkroomError):
    """It does not exist (here)."""


class NoSuchJob(Explained, NotFound):
    """No job of that number."""

    job_id: int
    sentence = N_("There is no job #{job_id} here. /job list shows them all.")


class NoSuchDataset(Explained, NotFound):
    """No dataset of that name or number."""

    wanted: str | int
    sentence = N_("There is no dataset “{wanted}” here. /dataset list shows them all.")


class TooOften(DarkroomError):
    """More uses of a command or button than a person needs; nothing was done."""

    def __init__(self, *, uses: int, per_s: float, wait_s: float) -> None:
        self.uses, self.per_s, self.wait_s = uses, per_s, wait_s
        super().__init__(
            _(
                "You have used this {uses} times within {period}. Nothing was done; try again in {wait}.",
                uses=uses,
                period=duration(per_s),
                wait=duration(max(1.0, wait_s)),
            )
        )


class StaleButton(Explained):
    """A button that this version does not know."""

    sentence = N_("This button belongs to another version of me. Run the command that showed it again.")


class FormForgotten(Explained):
    """A form that cannot be opened again with what was typed: the bot was restarted, or it is another member's."""

    sentence = N_("I no longer have what you typed there. Open the form again, by the command or the button.")


class LaunchFailed(Explained):
    """No trainer process could be started."""

    command: str
    why: str
    sentence = N_("The trainer could not be started ({command}: {why}).")


class JobFolderUnwritable(Explained):
    """The folder of a job could not be written, so no trainer was started."""

    job_id: int
    why: str
    sentence = N_("The folder of #{job_id} could not be written ({why}).")


class RunnerUnreachable(Explained):
    """The machine that runs trainings does not answer; their state is unknown, and nothing is done about them."""

    where: str
    why: str
    sentence = N_("{where} cannot be reached ({why}). Its trainings may well be running; trying again.")
