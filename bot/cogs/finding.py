"""Which job somebody means, and the jobs that a command offers."""

from __future__ import annotations

import discord
from discord import app_commands

from bot.cogs.services import Services
from bot.errors import NotFound
from bot.queue import Job, State, may_control
from bot.queue.domain.verbs import Verb, makes_sense
from bot.ui.receipts import job_choice

#: Discord shows no more.
_MOST = 25
#: Jobs that are looked through for those with which a verb makes sense.
_LOOKED_THROUGH = 200


async def found_job(services: Services, interaction: discord.Interaction, typed: str) -> Job:
    """The job that somebody means by a number (`42`, `#42`) or a name.

    Raises:
        NotFound: there is none in this server.
    """
    assert interaction.guild_id is not None
    number = typed.strip().removeprefix("#")
    if number.isascii() and number.isdigit() and len(number) < 19:
        return await services.jobs.get_in(interaction.guild_id, int(number))
    found = await services.jobs.search(interaction.guild_id, typed, limit=1)
    if not found:
        raise NotFound(f"There is no job {typed[:60]!r} here. /job list shows those that there are.")
    return found[0]


async def job_choices(
    services: Services,
    interaction: discord.Interaction,
    typed: str,
    *,
    verb: Verb | None = None,
    states: frozenset[State] | None = None,
) -> list[app_commands.Choice[str]]:
    """Jobs whose number or name fits: in these states, and those only that `verb` would change and may be asked of."""
    assert interaction.guild_id is not None
    is_narrow = verb is not None or states is not None
    jobs = await services.jobs.search(interaction.guild_id, typed, limit=_LOOKED_THROUGH if is_narrow else _MOST)
    if verb is not None:
        user_id, can_manage = interaction.user.id, interaction.permissions.manage_guild
        jobs = [
            job for job in jobs if makes_sense(verb, job) and may_control(job, user_id=user_id, can_manage=can_manage)
        ]
    if states is not None:
        jobs = [job for job in jobs if job.state in states]
    return [app_commands.Choice(name=job_choice(job), value=str(job.id)) for job in jobs[:_MOST]]
