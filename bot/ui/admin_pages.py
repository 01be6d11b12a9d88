"""Pages of `/admin`: the queue's pause, slots, limits of roles, storage, health."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import sha256

import discord

from bot.health import HealthSnapshot, HeldChannel, JobHealth, Problem, ProblemKind
from bot.queue.domain.job import Job, Priority, State
from bot.queue.planning.retention import Deletion, DeletionReason, DeletionScope, RetentionPlan, StorageTotals
from bot.queue.store.limits import RoleLimit
from bot.queue.store.queue_control import PauseKind, QueuePause
from bot.queue.store.slots import Slot
from bot.ui.buttons import AdminButton, admin_button
from bot.ui.discord_text import date_time, escape, first_lines, hold_words, relative_time, shorten
from bot.ui.job_card import in_sentence, state_name, state_words
from bot.ui.layout import Color, MessageContent, box, layout, row
from bot.ui.queue_pages import priority_name
from trainer.protocol.text import _, duration, listed, ngettext, size

#: Owners and deletions that the storage page lists; problems and jobs that the health page lists.
_MAX_STORAGE_LINES = 15
_MAX_HEALTH_LINES = 10


# -- the queue -----------------------------------------------------------------------------------------------------


def pause_text(pause: QueuePause, running: int) -> str:
    """What a pause or a drain means for the running trainings."""
    is_drain = pause.kind is PauseKind.DRAIN
    why = f" (“{escape(pause.why, 300)}”)" if pause.why else ""
    head = _("⛔ The queue is being emptied{why}.", why=why) if is_drain else _("⛔ The queue is paused{why}.", why=why)
    if not running:
        effect = _("No new training starts, and none runs.")
    elif is_drain:
        effect = ngettext(
            "No new training starts. {n} running training saves a checkpoint and waits at the front of the queue.",
            "No new training starts. {n} running trainings save a checkpoint and wait at the front of the queue.",
            running,
        )
    else:
        effect = ngettext(
            "No new training starts; {n} running training continues.",
            "No new training starts; {n} running trainings continue.",
            running,
        )
    return " ".join((head, effect, _("/admin resume restarts the queue.")))


def bump_text(before: Job, after: Job, priority: Priority) -> str:
    """The result of changing a job's priority."""
    values = {"job": after.id, "priority": priority_name(priority.name)}
    if before.state is not State.QUEUED:
        return _(
            "#{job} is not waiting: {state}. Only waiting jobs have a priority.",
            job=after.id,
            state=in_sentence(state_words(before)[1]),
        )
    if before.priority is priority:
        return _("#{job} already has {priority} priority.", **values)
    return _("#{job} has {priority} priority now.", **values)


def hold_text(*, opens_at: datetime | None = None, free_bytes: int = 0) -> str:
    """Why no training starts now: the next opening of the windows, else the free space on a full disk."""
    if opens_at is not None:
        return _("The training window opens {when}.", when=date_time(opens_at))
    return _("The disk is nearly full ({free} free); nothing starts until there is space.", free=size(free_bytes))


# -- slots ---------------------------------------------------------------------------------------------------------


def slots_page(slots: Sequence[Slot], note: str = "") -> MessageContent:
    """Every slot, with its use."""
    lines = first_lines([_slot_line(slot) for slot in slots], most=30, characters=2500)
    text = "\n".join([_("### Slots"), *(lines or [_("No slots: no training can run.")])])
    return MessageContent(layout=layout(box(Color.NOTE, note or None, text)))


def slot_choice(slot: Slot) -> str:
    """A slot in an autocomplete list."""
    use = f"#{slot.job_id}" if slot.job_id is not None else _("free")
    return f"{slot.name} · {use if slot.is_enabled else _('switched off')}"[:100]


def _slot_line(slot: Slot) -> str:
    memory = "" if slot.memory_bytes is None else f" · {size(slot.memory_bytes)}"
    uses = [] if slot.job_id is None else [f"#{slot.job_id}"]
    if not slot.is_enabled:
        uses.append(_("**switched off**"))
    return f"{escape(slot.name, 60)}{memory} · {' · '.join(uses) or _('free')}"


# -- limits --------------------------------------------------------------------------------------------------------


def limits_page(limits: Sequence[RoleLimit], note: str = "") -> MessageContent:
    """The limits of each role; a member with several roles gets the most generous of each."""
    lines = first_lines([_limit_line(limit) for limit in limits], characters=2500)
    text = "\n".join(
        [_("### Limits of roles"), *(lines or [_("No role has limits of its own; the usual ones apply.")])]
    )
    return MessageContent(layout=layout(box(Color.NOTE, note or None, text)))


def _limit_line(limit: RoleLimit) -> str:
    running, hours = limit.max_running, limit.gpu_hours_per_week
    parts = [
        None if limit.max_waiting is None else _("{n} waiting", n=limit.max_waiting),
        None if running is None else _("{n} running", n=running) if running else _("any number running"),
        None if limit.max_epochs is None else ngettext("{n} epoch", "{n} epochs", limit.max_epochs),
        None if limit.max_dataset_mib is None else _("{size} a dataset", size=f"{limit.max_dataset_mib:,} MiB"),
        None if hours is None else _("{n} GPU hours a week", n=hours) if hours else _("any number of GPU hours a week"),
    ]
    return f"<@&{limit.role_id}> · {listed(part for part in parts if part) or _('nothing of its own')}"


# -- storage -------------------------------------------------------------------------------------------------------


def plan_digest(plan: RetentionPlan) -> str:
    """What a plan deletes, as 16 characters: only the plan that was shown is carried out."""
    named = ",".join(f"{each.job_id}:{each.scope}" for each in sorted(plan.deletions, key=lambda each: each.job_id))
    return sha256(named.encode()).hexdigest()[:16]


def storage_page(plan: RetentionPlan, totals: StorageTotals, note: str = "") -> MessageContent:
    """Storage by owner, the largest first, and the planned deletions with the button for them."""
    by_size = sorted(totals.bytes_by_owner.items(), key=lambda item: -item[1])
    owners = [f"<@{owner}> · {size(count)}" for owner, count in by_size if count]
    head = _(
        "### Storage\nJobs take {used}; {free} are free.",
        used=size(sum(totals.bytes_by_owner.values())),
        free=size(totals.free_bytes),
    )
    protected = None
    if totals.protected_bytes:
        protected = _("-# {size} of it are pinned or shared, and kept.", size=size(totals.protected_bytes))
    body = box(Color.NOTE, head, "\n".join(_shown(owners)) or None, protected, _deletions_text(plan))
    delete = row(_plan_button("delete", plan, _("Delete these"))) if plan.deletions else None
    return MessageContent(layout=layout(body, note or None, delete))


def confirm_page(plan: RetentionPlan) -> MessageContent:
    """The second question, before anything is deleted."""
    text = ngettext(
        "Delete files of {n} job, {size}? They cannot be restored. "
        "A job that is pinned, shared or queued again by then keeps its files.",
        "Delete files of {n} jobs, {size}? They cannot be restored. "
        "Jobs that are pinned, shared or queued again by then keep theirs.",
        len(plan.deletions),
        size=size(plan.bytes),
    )
    return MessageContent(
        layout=layout(box(Color.FAILED, text, row(_plan_button("delete_now", plan, _("Yes, delete them")))))
    )


def deleted_text(deleted: Sequence[Deletion], planned: int) -> str:
    """The result of the deletions."""
    text = ngettext(
        "🗑️ Files of {n} job deleted, {size}.",
        "🗑️ Files of {n} jobs deleted, {size}.",
        len(deleted),
        size=size(sum(deletion.bytes for deletion in deleted)),
    )
    if kept := planned - len(deleted):
        more = ngettext(
            "{n} job kept its files: they are needed again.", "{n} jobs kept theirs: they are needed again.", kept
        )
        text = f"{text} {more}"
    return text


def deletion_text(deletion: Deletion) -> str:
    """One deletion and its reason."""
    is_checkpoints = deletion.scope is DeletionScope.CHECKPOINTS
    files = _("checkpoints") if is_checkpoints else _("all files")
    if deletion.reason is DeletionReason.AGE:
        days, limit = round(deletion.value), round(deletion.limit)
        reason = _("it ended {days} days ago (limit: {limit})", days=days, limit=limit)
    else:
        used, limit_size = size(deletion.value), size(deletion.limit)
        reason = _("its owner's ended jobs take {used} of {limit}", used=used, limit=limit_size)
    return _(
        "#{job} {name}: {files} ({size}), because {reason}.",
        job=deletion.job_id,
        name=deletion.name,
        files=files,
        size=size(deletion.bytes),
        reason=reason,
    )


def _deletions_text(plan: RetentionPlan) -> str:
    if not plan.deletions:
        return _("No files are due to be deleted.")
    title = ngettext(
        "**Due to be deleted: files of {n} job, {size}**",
        "**Due to be deleted: files of {n} jobs, {size}**",
        len(plan.deletions),
        size=size(plan.bytes),
    )
    lines = [f"- <@{deletion.owner_id}> · {escape(deletion_text(deletion))}" for deletion in plan.deletions]
    return "\n".join((title, *_shown(lines)))


def _shown(lines: Sequence[str]) -> list[str]:
    return first_lines(lines, most=_MAX_STORAGE_LINES, characters=10_000)


def _plan_button(verb: str, plan: RetentionPlan, label: str) -> AdminButton:
    return admin_button(verb, plan_digest(plan), label, style=discord.ButtonStyle.danger)


def links_ended_text(count: int) -> str:
    """The result of `/admin links`."""
    if not count:
        return _("There is no such link that still opens. Nothing was changed.")
    return ngettext(
        "{n} link no longer opens. If its owner may still see that page, they get a new link with **Open page**.",
        "{n} links no longer open. Those who may still see these pages get new links with **Open page**.",
        count,
    )


def resent_text(count: int, *, is_here: bool) -> str:
    """The result of sending undelivered messages again."""
    if not count:
        return _("Every message has been delivered; nothing was sent again.")
    if is_here:
        return ngettext(
            "{n} message is sent again, to this channel.", "{n} messages are sent again, to this channel.", count
        )
    return ngettext(
        "{n} message is tried again now. /admin health shows what still fails.",
        "{n} messages are tried again now. /admin health shows what still fails.",
        count,
    )


# -- health --------------------------------------------------------------------------------------------------------


def health_page(health: HealthSnapshot, *, guild_id: int | None = None) -> MessageContent:
    """The problems first, then the numbers; `guild_id`: without the names of what belongs to other servers."""
    problems = health.problems
    head = _("### ✅ All is well")
    if problems:
        head = ngettext("### ⚠️ {n} problem", "### ⚠️ {n} problems", len(problems))
    lines = [
        f"- {shorten(problem_text(problem, health, guild_id=guild_id), 400)}"
        for problem in problems[:_MAX_HEALTH_LINES]
    ]
    body = box(
        Color.FAILED if problems else Color.TRAINING,
        "\n".join([head, *lines]),
        "\n".join(_health_lines(health)),
        "\n".join(_dead_lines(health, guild_id)) or None,
        "\n".join(_job_health_line(job) for job in health.running[:_MAX_HEALTH_LINES]) or None,
        _("-# as of {when}", when=relative_time(health.at)),
    )
    return MessageContent(layout=layout(body), is_silent=True)


def problem_text(problem: Problem, health: HealthSnapshot, *, guild_id: int | None = None) -> str:
    """What is wrong, and what to do; see `health_page`."""
    match problem.kind:
        case ProblemKind.DATABASE_DAMAGED:
            return _(
                "The database is damaged ({finding}). Stop the bot and restore a backup: `python -m bot restore FILE`.",
                finding=health.integrity,
            )
        case ProblemKind.DISK_FULL:
            return _(
                "The data folder has only {free} of free space; {least} are needed. Delete old jobs or free disk "
                "space.",
                free=size(health.free_disk_bytes),
                least=size(health.min_free_bytes),
            )
        case ProblemKind.WAL_LARGE:
            return _(
                "The write-ahead log has {size}: a program keeps the database open. End that program.",
                size=size(health.wal_bytes),
            )
        case ProblemKind.NO_HEARTBEAT:
            assert problem.job is not None
            return _(
                "#{job} has sent no heartbeat for {age}. If that continues, its process is killed and it continues "
                "from its checkpoint.",
                job=problem.job.job_id,
                age=duration(problem.job.heartbeat_age_s or 0.0),
            )
        case ProblemKind.OUTBOX_LATE:
            return _(
                "The oldest unsent message has waited for {age} ({waiting} wait): {reason}. It is tried again.",
                age=duration(health.outbox.oldest_s or 0.0),
                waiting=health.outbox.waiting,
                reason=escape(health.outbox.oldest_reason or _("not tried yet")),
            )
        case ProblemKind.CHANNEL_HELD:
            assert problem.held is not None
            return _held_text(problem.held, health, guild_id)
        case ProblemKind.UNDELIVERABLE:
            return _(
                "Undeliverable messages of the last day: {n}. `/admin resend` sends them again, "
                "also to another channel.",
                n=health.outbox.dead,
            )
        case _:
            return _connection_problem_text(problem, health)


def _held_text(held: HeldChannel, health: HealthSnapshot, guild_id: int | None) -> str:
    """Which channel takes no messages, why, since when, and what waits."""
    is_shown = guild_id in {None, held.guild_id}
    text = _(
        "{channel} has taken no messages for {age}: {why}. Waiting: {messages}, {cards}. "
        "It is tried again each minute.",
        channel=f"<#{held.channel_id}>" if is_shown else _("A channel of another server"),
        age=duration((health.at - held.since).total_seconds()),
        why=hold_words(held.reason),
        messages=ngettext("{n} message", "{n} messages", held.messages),
        cards=ngettext("{n} card", "{n} cards", held.cards),
    )
    return f"{text} ({escape(held.detail)})" if is_shown else text


def _connection_problem_text(problem: Problem, health: HealthSnapshot) -> str:
    if problem.kind is ProblemKind.NO_SLOTS:
        return _("There is no slot, so nothing can start: no GPU was found. `python -m bot doctor` says why.")
    assert health.connection is not None
    if problem.kind is ProblemKind.BLOCKED:
        return _(
            "Requests refused before they reached Discord (429 without Via): {n}. This machine's address sent too many "
            "bad ones and is blocked for a while; messages wait.",
            n=health.connection.blocks,
        )
    return _(
        "Not connected to Discord since {since} UTC. Trainings continue; messages wait.",
        since=f"{health.connection.disconnected_at:%H:%M}",
    )


def _health_lines(health: HealthSnapshot) -> Iterator[str]:
    integrity = {"ok": _("intact"), None: _("not checked")}.get(health.integrity, _("damaged"))
    yield _(
        "**Database** {integrity} · {size}, log {wal} · schema {schema}",
        integrity=integrity,
        size=size(health.database_bytes),
        wal=size(health.wal_bytes),
        schema=health.schema,
    )
    yield _("**Disk** {free} free", free=size(health.free_disk_bytes))
    jobs = [_("{n} {state}", n=f"{n:,}", state=state_name(state)) for state, n in health.jobs.items()]
    yield _("**Jobs** {jobs}", jobs=_(", ").join(jobs) or _("none yet"))
    slots = _("**Slots** {free} of {slots} free", free=health.free_slots, slots=health.enabled_slots)
    lost = len(health.slots) - health.enabled_slots
    yield slots + (_(" · {n} gone and still held", n=lost) if lost else "")
    if health.queue_pause is not None:
        is_drain = health.queue_pause.kind is PauseKind.DRAIN
        yield _(
            "**Queue** {state} {when}",
            state=_("draining") if is_drain else _("paused"),
            when=relative_time(health.queue_pause.at),
        )
    outbox = health.outbox
    messages = ngettext("{n} unsent message", "{n} unsent messages", outbox.waiting)
    cards = ngettext("{n} outdated card", "{n} outdated cards", outbox.cards)
    if outbox.refused_cards:
        cards += _(" ({n} refused until they change)", n=outbox.refused_cards)
    oldest = "" if outbox.oldest_s is None else _(", the oldest for {age}", age=duration(outbox.oldest_s))
    yield _("**Outbox** {messages}, {cards}{oldest}", messages=messages, cards=cards, oldest=oldest)
    if (connection := health.connection) is not None:
        yield _(
            "**Discord** {state} · {disconnects}{last} · {resumes}",
            state=_("connected") if connection.is_connected else _("not connected"),
            disconnects=ngettext("{n} disconnect", "{n} disconnects", connection.disconnects),
            last=_last(connection.disconnected_at),
            resumes=ngettext("{n} resume", "{n} resumes", connection.resumes),
        )
        yield _("**Rate limits** (429) {n}{last}", n=connection.rate_limits, last=_last(connection.rate_limited_at))


def _dead_lines(health: HealthSnapshot, guild_id: int | None) -> list[str]:
    """The undeliverable messages of a week, the newest first."""
    shown = [dead for dead in health.outbox.newest_dead if guild_id in {None, dead.guild_id}]
    lines = [
        "- "
        + _(
            "{what} for {where}, {when}: {reason}",
            what=f"`{dead.kind}`" + (f" `#{dead.job_id}`" if dead.job_id else ""),
            where=f"<#{dead.channel_id}>" if dead.channel_id else _("a direct message"),
            when=relative_time(dead.at),
            reason=escape(dead.reason, 120),
        )
        for dead in shown
    ]
    return [_("**Undeliverable**"), *first_lines(lines, most=_MAX_HEALTH_LINES)] if lines else []


def _last(moment: datetime | None) -> str:
    return "" if moment is None else _(", the last {when}", when=relative_time(moment))


def _job_health_line(job: JobHealth) -> str:
    heartbeat, event = _("no heartbeat yet"), _("no event yet")
    if job.heartbeat_age_s is not None:
        heartbeat = _("heartbeat {age} ago", age=duration(job.heartbeat_age_s))
    if job.event_age_s is not None:
        event = _("event {age} ago", age=duration(job.event_age_s))
    return f"`#{job.job_id}` {state_name(job.state)} · {heartbeat} · {event}"
