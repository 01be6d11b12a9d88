"""`/compare`: several trainings beside each other, drawn by a trainer process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import discord
from discord import app_commands
from pydantic import ValidationError

from bot.access import Ability
from bot.cogs.autocomplete import Choices, answered, job_choices
from bot.cogs.interaction_gate import REPORTS, handled
from bot.cogs.lookups import find_job
from bot.cogs.replies import reply
from bot.cogs.services import ServiceCog, Services, file_limit_of
from bot.errors import Explained, JobFilesDeleted, JobRefused
from bot.queue import Job
from bot.runners.child_process import run_and_capture
from bot.ui.comparison_pages import comparison_reply
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.job_comparison import JobComparison
from trainer.protocol.text import N_, _

#: More would be too small to see.
MAX_JOBS = 5
_TIMEOUT_S = 120.0


async def _jobs_choices(services: Services, interaction: discord.Interaction, typed: str) -> Choices:
    """Trainings for the last word; the earlier ones stay."""
    *earlier, last = re.split(r"(?<=[\s,])", typed) if typed else [""]
    head = "".join(earlier)
    return [(f"{head}{name}", f"{head}{value} ") for name, value in await job_choices(services, interaction, last)]


_choose_jobs = answered(_jobs_choices)


class ComparisonFailed(Explained):
    """The trainer gave no answer."""

    sentence = N_("The comparison could not be drawn. Nothing was changed; try again in a minute.")


class CompareCommand(ServiceCog):
    """`/compare`."""

    @app_commands.command(
        description=N_("Several trainings beside each other: curves, samples, and what differs."),
        extras=handled(rate=REPORTS),
    )
    @app_commands.guild_only()
    @app_commands.describe(jobs=N_("Numbers or names of two to five trainings, with spaces between them: 12 14"))
    @app_commands.autocomplete(jobs=_choose_jobs)
    async def compare(self, interaction: discord.Interaction, jobs: str) -> None:
        found = await self._find(interaction, jobs)
        with TemporaryDirectory(prefix="darkroom-compare-") as scratch:
            comparison = await self._run_trainer(found, Path(scratch))
            await reply(
                interaction,
                comparison_reply(
                    found,
                    comparison,
                    Path(scratch),
                    file_limit=file_limit_of(interaction.client, interaction.guild_id or 0),
                    may_train=self._services.access.allows(interaction, Ability.TRAIN),
                ),
            )

    async def _find(self, interaction: discord.Interaction, typed: str) -> list[Job]:
        """Return the jobs that were named, each once.

        Raises:
            JobRefused: There are not two to five, or one is no training.
            JobFilesDeleted: One has no files any more.
        """
        found: dict[int, Job] = {}
        for word in words_of(typed)[: MAX_JOBS + 1]:
            job = await find_job(self._services, interaction, word)
            found[job.id] = job
        if not 2 <= len(found) <= MAX_JOBS:
            raise JobRefused(_("Name two to {most} different trainings: `/compare jobs:12 14`.", most=MAX_JOBS))
        for job in found.values():
            if job.are_files_deleted:
                raise JobFilesDeleted(job_id=job.id)
            if job.study is not None or job.is_sampling or not job.progress.base:
                raise JobRefused(
                    _(
                        "#{job} has no curve of its own to compare. Choose trainings that have started.",
                        job=job.id,
                    )
                )
        return list(found.values())

    async def _run_trainer(self, jobs: Sequence[Job], folder: Path) -> JobComparison:
        config = self._services.config
        labeled = [f"#{job.id} {job.name}={self._services.jobs.job_dir(job)}" for job in jobs]
        command = [*self._services.trainer_command, "compare-jobs", *labeled, "--out", str(folder)]
        try:
            answer = await run_and_capture(command, config.trainer_environment(), timeout_s=_TIMEOUT_S)
            if answer.status == EXIT_REFUSED:
                raise JobRefused(answer.last_error_line)
            return JobComparison.model_validate_json(answer.last_line)
        except (OSError, ValidationError) as error:
            raise ComparisonFailed from error


def words_of(typed: str) -> list[str]:
    """Return the jobs that a member named: `12, #14 fox`."""
    return [word for word in re.split(r"[\s,;]+", typed) if word]
