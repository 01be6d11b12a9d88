"""The pages of `/queue`, `/job list`, `/job history` and `/admin audit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from bot.db.audit import AuditEntry
from bot.queue.domain.job import ACTIVE, Job, State
from bot.queue.planning.forecast import Forecast
from bot.queue.store.history import AttemptRecord
from bot.queue.store.queue_control import QueuePause
from bot.queue.store.slots import Slot
from bot.ui.buttons import JobButton, job_button
from bot.ui.discord_text import date_time, escape, first_lines, mention, relative_time, time_or_date
from bot.ui.end_reasons import audit_reason_text, end_reason_text
from bot.ui.job_card import (
    in_sentence,
    job_line,
    priority_words,
    share_done,
    state_name,
    state_words,
    time_left,
)
from bot.ui.job_context import job_name, pause_line, position_words, start_words
from bot.ui.layout import Color, MessageContent, box, layout, row
from trainer.protocol.text import _, duration, listed, ngettext, percent

#: Characters for all jobs of the board: those of a layout, less the most that stands above and below the jobs.
_MAX_JOB_CHARS = 2_200
#: Running and paused jobs get a third each at most; waiting ones get the rest.
_SHARE = _MAX_JOB_CHARS // 3
#: Jobs that a section of the board lists; further ones of the queue are on further pages.
MAX_LISTED = 15
#: Runs of a study that are named below it.
_SHOWN_RUNS = 6
#: Verb of the buttons that show a page of the queue.
QUEUE_PAGE = "queue_page"


@dataclass(frozen=True, kw_only=True)
class BoardSnapshot:
    """The whole queue at one moment, as a server sees it."""

    now: datetime
    #: Unfinished jobs of this server; the waiting ones in the order in which they will start.
    jobs: Sequence[Job]
    #: How many there are in each state, where `jobs` has only the first of them.
    counts: Mapping[State, int] = field(default_factory=dict)
    #: The unfinished runs of studies, by study.
    runs: Mapping[int, Sequence[Job]] = field(default_factory=dict)
    #: Page of the queue, from 0; running and paused jobs are on the first.
    page: int = 0
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
    now_running = now_paused = ""
    if snapshot.page == 0:
        lines = [_running_line(job, snapshot) for job in running]
        now_running = _section(_("Training"), lines, _SHARE, snapshot.count(*ACTIVE))
        lines = [job_line(job) for job in paused]
        now_paused = _section(_("Paused"), lines, _SHARE, snapshot.count(State.PAUSED))
    room = _MAX_JOB_CHARS - len(now_running) - len(now_paused)
    lines = [_waiting_line(job, snapshot) for job in waiting]
    count = snapshot.count(State.QUEUED)
    pages = max(1, -(-count // MAX_LISTED))
    rest = count - snapshot.page * MAX_LISTED
    now_waiting = _section(_("Waiting"), lines, room, count, rest=min(rest, MAX_LISTED) if pages > 1 else rest)
    body = box(
        color,
        "\n".join(_head(snapshot)),
        now_running or (_nothing_runs(snapshot) if snapshot.page == 0 else None),
        now_waiting or _nothing_waits(snapshot),
        now_paused or None,
        "-# " + _("updated {when}", when=relative_time(snapshot.now)),
        row(*_page_buttons(snapshot.page, pages)),
    )
    return MessageContent(layout=layout(body))


def _page_buttons(page: int, pages: int) -> list[JobButton]:
    """◀ ▶ where there are pages, and Refresh; the number in the id of a button is that of its page."""
    turns = [(page - 1, "◀️"), (page + 1, "▶️")]
    found = [job_button(turned, QUEUE_PAGE, "", emoji=sign) for turned, sign in turns if 0 <= turned < pages]
    return [*found, job_button(page, QUEUE_PAGE, _("Refresh"), emoji="🔄")]


def job_list(title: str, jobs: Sequence[Job], now: datetime) -> MessageContent:
    """Jobs in the given order, a line each."""
    lines = first_lines([_dated_line(job, now) for job in jobs], characters=3000)
    text = "\n".join(lines) or _("No trainings yet: `/finetune` starts the first one.")
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


def _section(title: str, lines: Sequence[str], room: int, total: int, *, rest: int | None = None) -> str:
    """A section of `total` jobs; `rest`: so many of them belong to this page."""
    if not lines:
        return ""
    shown = first_lines(lines, most=MAX_LISTED, characters=room, total=total if rest is None else rest)
    return "\n".join([f"**{title}** ({total})", *shown])


def _nothing_runs(snapshot: BoardSnapshot) -> str:
    if any(slot.job_id is not None for slot in snapshot.slots):
        return _("No training of this server is running.")
    return _("No training is running.")


def _nothing_waits(snapshot: BoardSnapshot) -> str:
    is_held = snapshot.queue_pause or snapshot.why_closed
    if is_held or not any(slot.is_enabled and slot.job_id is None for slot in snapshot.slots):
        return _("Nothing is waiting.")
    return _("Nothing is waiting: `/finetune` would start right away.")


def _running_line(job: Job, snapshot: BoardSnapshot) -> str:
    if job.study is not None:
        return "\n".join([_study_line(job, snapshot), *_run_lines(job, snapshot)])
    line = job_line(job, now=snapshot.now)
    # The full names are shown above, beside the job that holds them.
    if names := [escape(name.partition(" · ")[0], 30) for name in job.slots]:
        line += " · " + _("on {slots}", slots=listed(names))
    left = time_left(job, snapshot.now)
    return f"{line} · {left}" if left else line


def _study_line(job: Job, snapshot: BoardSnapshot) -> str:
    runs = snapshot.runs.get(job.id, ())
    words = ngettext("{n} run is left", "{n} runs are left", len(runs)) if runs else _("creating its runs")
    return f"🔬 {job_name(job)} · {mention(job.owner_id)} · {_('study')}, {words}"


def _run_lines(job: Job, snapshot: BoardSnapshot) -> list[str]:
    """The runs of a study that run or wait, with their own positions in the queue."""
    runs = sorted(snapshot.runs.get(job.id, ()), key=lambda run: (not run.state.is_active, run.id))
    lines = []
    for run in runs:
        sign, words, _color = state_words(run)
        if run.state.is_active:
            words = f"{in_sentence(words)} · {percent(share_done(run, snapshot.now))}"
        else:
            position = snapshot.positions.get(run.id)
            words = position_words(position) if position else in_sentence(words)
        lines.append(f"-# {sign} {escape(run.child_name or run.name, 60)} · {words}")
    return first_lines(lines, most=_SHOWN_RUNS)


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
    lines = [entry_line(entry, names_job=job.is_sampling) for entry in entries]
    changes = first_lines(lines, most=20, characters=1500)
    body = box(
        Color.WAITING,
        f"### {_('History of #{job} {name}', job=job.id, name=escape(job.name))}",
        "\n".join([f"**{_('Starts')}**", *starts]) if starts else _("It was never started."),
        "\n".join([f"**{_('Changes')}**", *changes]) if changes else None,
    )
    return MessageContent(layout=layout(body))


def attempt_line(attempt: AttemptRecord) -> str:
    """`**2** · <t:…:f>, 12 min · GPU 0 · RTX 4090 · it waits to continue: the machine went down`."""
    # Not "2.": Discord makes a list of that and numbers it itself.
    number, started = f"**{attempt.number}**", date_time(attempt.started_at)
    slots = [escape(", ".join(attempt.slots), 80)] if attempt.slots else []
    if attempt.ended_at is None:
        return " · ".join([number, started, *slots, _("still running")])
    took = duration((attempt.ended_at - attempt.started_at).total_seconds())
    outcome = attempt.outcome or ""
    end = state_name(State(outcome)) if outcome in set(State) else escape(outcome, 60)
    end = _("back in line") if outcome == State.QUEUED else end
    why = f": {escape(end_reason_text(attempt.reason), 160)}" if attempt.reason else ""
    return " · ".join([number, f"{started}, {took}", *slots, end + why])


def entry_line(entry: AuditEntry, *, names_job: bool) -> str:
    """`<t:…:f> · <@1> cancelled #42: too slow`."""
    who = "Darkroom" if entry.actor_id is None else mention(entry.actor_id)
    job = f"#{entry.job_id}" if names_job and entry.job_id is not None else _("this training")
    line = (
        f"{date_time(entry.at)} · {_action_text(entry).format(who=who, job=job, after=escape(entry.after or '', 80))}"
    )
    why = priority_name(entry.why or "") if entry.verb == "bump" else audit_reason_text(entry.why or "")
    return f"{line}: {escape(why, 160)}" if why else line


def _action_text(entry: AuditEntry) -> str:
    """What was done, as a sentence with placeholders for `who`, `job` and `after`."""
    if entry.verb == "settle":
        return _ended(entry)
    if entry.verb.startswith("delete "):
        return _("{who} deleted files of {job} to free disk space")
    actions = {
        "submit": _("{who} queued {job}"),
        "claim": _("{who} gave {job} a place and began to load"),
        "begin": _("{job} began"),
        "cancel": _("{who} cancelled {job}"),
        "keep_best": _("{who} stopped {job} early, to keep its best epoch"),
        "pause": _("{who} paused {job}"),
        "requeue": _("{who} put {job} back in line"),
        "resume": _("{who} resumed {job}"),
        "retry": _("{who} retried {job}"),
        "extend": _("{who} gave {job} more epochs"),
        "choose epoch": _("{who} made another epoch the result of {job}"),
        "bump": _("{who} changed the priority of {job}"),
        "pin": _("{who} pinned {job}"),
        "unpin": _("{who} unpinned {job}"),
        "share": _("{who} shared {job}"),
        "unshare": _("{who} stopped sharing {job}"),
        "note": _("{who} wrote a note on {job}"),
        "publish": _("{who} had {job} uploaded to Hugging Face"),
        "queue pause": _("{who} paused the queue"),
        "queue drain": _("{who} began to empty the queue"),
        "queue resume": _("{who} resumed the queue"),
        "hide dataset": _("{who} made the dataset {after} private, or changed who else sees it"),
        "show dataset": _("{who} let everyone see the dataset {after}"),
        "end links": _("{who} ended links to web pages: {after}"),
        "limit role": _("{who} changed the limits of a role"),
        "slot on": _("{who} switched a GPU on"),
        "slot off": _("{who} switched a GPU off"),
    }
    return actions.get(entry.verb) or f"{{who}}: {_without_braces(entry.verb)}, {{job}}"


def _ended(entry: AuditEntry) -> str:
    """What an attempt led to."""
    ends = {
        State.QUEUED: _("{job} was interrupted and waits to continue"),
        State.PAUSED: _("{job} is paused"),
        State.SUCCEEDED: _("{job} is done"),
        State.STOPPED: _("{job} was stopped early and is done"),
        State.FAILED: _("{job} failed"),
        State.CANCELLED: _("{job} is cancelled"),
    }
    return ends.get(State(entry.after)) or _("{job} ended") if entry.after in set(State) else _("{job} ended")


def _without_braces(verb: str) -> str:
    return escape(verb, 60).replace("{", "").replace("}", "")


def priority_name(name: str) -> str:
    """The name of a `Priority` in words."""
    return {"LOW": _("low"), "NORMAL": _("normal"), "HIGH": _("high")}.get(name, name)
