"""The pages of `/queue`, `/job list`, `/job history` and `/admin audit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from bot.queue.domain.job import ACTIVE, Job, State
from bot.queue.planning.forecast import Forecast
from bot.queue.store.history import AttemptRecord, AuditEntry
from bot.queue.store.queue_control import QueuePause
from bot.queue.store.slots import Slot
from bot.ui.discord_text import date_time, escape, first_lines, mention, relative_time, time_or_date
from bot.ui.end_reasons import audit_reason_text, end_reason_text
from bot.ui.job_card import job_line, priority_words
from bot.ui.job_context import pause_line, start_words
from bot.ui.layout import Color, MessageContent, box, layout
from trainer.protocol.text import _, duration, listed

#: Characters for all jobs of the board: those of a layout, less the most that stands above and below the jobs.
_MAX_JOB_CHARS = 2_200
#: Running and paused jobs get a third each at most; waiting ones get the rest.
_SHARE = _MAX_JOB_CHARS // 3
#: Jobs that a section of the board lists.
MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class BoardSnapshot:
    """The whole queue at one moment, as a server sees it."""

    now: datetime
    #: Unfinished jobs of this server; the waiting ones in the order in which they will start.
    jobs: Sequence[Job]
    #: How many there are in each state, where `jobs` has only the first of them.
    counts: Mapping[State, int] = field(default_factory=dict)
    #: Positions in the line of all servers, by job.
    positions: Mapping[int, int] = field(default_factory=dict)
    forecasts: Mapping[int, Forecast] = field(default_factory=dict)
    slots: Sequence[Slot] = ()
    #: None: the queue runs.
    queue_pause: QueuePause | None = None
    #: Why nothing starts at this hour (training windows, a full disk), as a sentence; empty if it may.
    why_closed: str = ""

    def of(self, *states: State) -> list[Job]:
        return [job for job in self.jobs if job.state in states]

    def count(self, *states: State) -> int:
        """How many jobs there are in these states."""
        return max(len(self.of(*states)), sum(self.counts.get(state, 0) for state in states))


def queue_board(snapshot: BoardSnapshot) -> MessageContent:
    """Running, waiting and paused jobs, below what holds them up."""
    running, waiting, paused = snapshot.of(*ACTIVE), snapshot.of(State.QUEUED), snapshot.of(State.PAUSED)
    color = Color.STOPPING if snapshot.queue_pause else Color.TRAINING if running else Color.WAITING
    lines = [_running_line(job) for job in running]
    now_running = _section(_("Training"), lines, _SHARE, snapshot.count(*ACTIVE))
    now_paused = _section(_("Paused"), [job_line(job) for job in paused], _SHARE, snapshot.count(State.PAUSED))
    room = _MAX_JOB_CHARS - len(now_running) - len(now_paused)
    lines = [_waiting_line(job, snapshot) for job in waiting]
    now_waiting = _section(_("Waiting"), lines, room, snapshot.count(State.QUEUED))
    body = box(
        color,
        "\n".join(_head(snapshot)),
        now_running or _nothing_runs(snapshot),
        now_waiting or _nothing_waits(snapshot),
        now_paused or None,
        f"-# {_('updated {when}', when=relative_time(snapshot.now))}",
    )
    return MessageContent(layout=layout(body))


def job_list(title: str, jobs: Sequence[Job], now: datetime) -> MessageContent:
    """Jobs in the given order, a line each."""
    lines = first_lines([_dated_line(job, now) for job in jobs], characters=3000)
    text = "\n".join(lines) or _("No jobs yet: `/finetune` makes the first.")
    return MessageContent(layout=layout(box(Color.WAITING, f"### {title}\n{text}")))


def _dated_line(job: Job, now: datetime) -> str:
    if job.ended_at:
        return f"{job_line(job)} · {relative_time(job.ended_at)}"
    return job_line(job) + _not_before(job, now)


def _not_before(job: Job, now: datetime) -> str:
    if job.state is not State.QUEUED or job.run_after is None or job.run_after <= now:
        return ""
    return " · " + _("not before {time}", time=time_or_date(job.run_after, now))


def _head(snapshot: BoardSnapshot) -> list[str]:
    lines = [f"### {_('Queue')}"]
    if snapshot.queue_pause is not None:
        lines.append(f"⛔ {pause_line(snapshot.queue_pause)}")
    if snapshot.why_closed:
        lines.append(f"🌙 {escape(snapshot.why_closed, 300)}")
    lines += first_lines([f"-# {_slot_words(slot)}" for slot in snapshot.slots], most=8, characters=600)
    return lines


def _slot_words(slot: Slot) -> str:
    name = escape(slot.name, 60)
    if slot.job_id is None:
        return f"{name} · {_('free') if slot.is_enabled else _('switched off')}"
    used = f"{name} · #{slot.job_id}"
    return used if slot.is_enabled else used + ", " + _("then switched off")


def _section(title: str, lines: Sequence[str], room: int, total: int) -> str:
    if not lines:
        return ""
    shown = first_lines(lines, most=MAX_LISTED, characters=room, total=total)
    return "\n".join([f"**{title}** ({total})", *shown])


def _nothing_runs(snapshot: BoardSnapshot) -> str:
    if any(slot.job_id is not None for slot in snapshot.slots):
        return _("Nothing of this server is training.")
    return _("Nothing is training.")


def _nothing_waits(snapshot: BoardSnapshot) -> str:
    is_held = snapshot.queue_pause or snapshot.why_closed
    if is_held or not any(slot.is_enabled and slot.job_id is None for slot in snapshot.slots):
        return _("No job is waiting.")
    return _("No job is waiting: `/finetune` starts at once.")


def _running_line(job: Job) -> str:
    step = job.progress.step
    line = job_line(job)
    # The full names are shown above, beside the job that holds them.
    if names := [escape(name.partition(" · ")[0], 30) for name in job.slots]:
        line += " · " + _("on {slots}", slots=listed(names))
    if step is None or step.eta_s is None or job.last_event_at is None:
        return line
    ends_at = job.last_event_at + timedelta(seconds=step.eta_s)
    return line + " · " + _("ends {when}", when=relative_time(ends_at))


def _waiting_line(job: Job, snapshot: BoardSnapshot) -> str:
    line = job_line(job, snapshot.positions.get(job.id), is_among_waiting=True)
    if priority := priority_words(job):
        line += f" · {priority}"
    if delay := _not_before(job, snapshot.now):
        return line + delay
    forecast = snapshot.forecasts.get(job.id)
    if forecast is None or forecast.starts_at is None:
        return line
    return f"{line} · {start_words(datetime.fromtimestamp(forecast.starts_at, UTC), snapshot.now)}"


# -- history and audit --------------------------------------------------------------------------------------------


def audit_page(title: str, entries: Sequence[AuditEntry]) -> MessageContent:
    """Audit entries, newest first."""
    lines = first_lines([entry_line(entry, names_job=True) for entry in entries], most=25, characters=3000)
    text = "\n".join(lines) or _("Nothing has happened yet.")
    return MessageContent(layout=layout(box(Color.WAITING, f"### {title}\n{text}")))


def history_page(job: Job, attempts: Sequence[AttemptRecord], entries: Sequence[AuditEntry]) -> MessageContent:
    """Attempts and changes of one job, newest first."""
    starts = first_lines([attempt_line(attempt) for attempt in reversed(attempts)], most=10, characters=1500)
    changes = first_lines([entry_line(entry, names_job=False) for entry in entries], most=20, characters=1500)
    body = box(
        Color.WAITING,
        f"### {_('History of #{job} {name}', job=job.id, name=escape(job.name))}",
        "\n".join([f"**{_('Starts')}**", *starts]) if starts else _("It was never started."),
        "\n".join([f"**{_('Changes')}**", *changes]) if changes else None,
    )
    return MessageContent(layout=layout(body))


def attempt_line(attempt: AttemptRecord) -> str:
    """`**2** · <t:…:f>, 12 min · GPU 0 · RTX 4090 · then queued: the machine went down`."""
    # Not "2.": Discord makes a list of that and numbers it itself.
    number, started = f"**{attempt.number}**", date_time(attempt.started_at)
    slots = [escape(", ".join(attempt.slots), 80)] if attempt.slots else []
    if attempt.ended_at is None:
        return " · ".join([number, started, *slots, _("running")])
    took = duration((attempt.ended_at - attempt.started_at).total_seconds())
    end = _("then {state}", state=attempt.outcome)
    why = f": {escape(end_reason_text(attempt.reason), 160)}" if attempt.reason else ""
    return " · ".join([number, f"{started}, {took}", *slots, end + why])


def entry_line(entry: AuditEntry, *, names_job: bool) -> str:
    """`<t:…:f> · <@1> · cancel #42 · running → stopping · why`."""
    who = "Darkroom" if entry.actor_id is None else mention(entry.actor_id)
    what = escape(entry.verb, 60) + (f" #{entry.job_id}" if names_job and entry.job_id is not None else "")
    parts = [date_time(entry.at), who, what, _change(entry), escape(audit_reason_text(entry.why or ""), 160)]
    return " · ".join(part for part in parts if part)


def _change(entry: AuditEntry) -> str:
    before, after = escape(entry.before or "", 120), escape(entry.after or "", 120)
    if before == after:
        return ""
    if not after:
        return f"{before} → {_('gone')}"
    return f"{before} → {after}" if before else after
