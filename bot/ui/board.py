"""The queue board: what runs where, who waits, when it is whose turn, and what holds everybody up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from bot.queue.domain.job import ACTIVE, Job, Priority, State
from bot.queue.planning.forecast import Forecast
from bot.queue.store.queue_control import Halt
from bot.queue.store.slots import Slot
from bot.ui.layout import Colour, MessageContent, box, layout
from bot.ui.receipts import job_line
from bot.ui.text import ago, first_lines, listed, plain, point
from bot.ui.waiting import halt_words, start_words

#: Characters for all jobs of the board: what a layout may hold, less the most that stands above and below them.
_ROOM = 2_200
#: Those that train or are paused take a third each at most; those that wait get what is left.
_SHARE = _ROOM // 3


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The whole queue at one moment, as a server sees it."""

    now: datetime
    #: Jobs of this server that have not ended, those that wait in the order in which they will start.
    jobs: Sequence[Job]
    #: Places in the line of all servers.
    places: Mapping[int, int] = field(default_factory=dict)
    forecasts: Mapping[int, Forecast] = field(default_factory=dict)
    slots: Sequence[Slot] = ()
    #: Who switched the queue off; None: it runs.
    halt: Halt | None = None
    #: Why nothing starts at this hour (training windows, a full disk), in a sentence; empty: it may.
    why_closed: str = ""

    def of(self, *states: State) -> list[Job]:
        return [job for job in self.jobs if job.state in states]


def board(scene: Scene) -> MessageContent:
    """Running, waiting and paused ones, under what holds them up."""
    running, waiting, paused = scene.of(*ACTIVE), scene.of(State.QUEUED), scene.of(State.PAUSED)
    colour = Colour.STOPPING if scene.halt else Colour.TRAINING if running else Colour.WAITING
    now_training = "\n".join(_listed("Training", [_running_line(job) for job in running], _SHARE))
    now_paused = "\n".join(_listed("Paused", [job_line(job) for job in paused], _SHARE))
    room = _ROOM - len(now_training) - len(now_paused)
    body = box(
        colour,
        "\n".join(_head(scene)),
        now_training or _nobody_trains(scene),
        "\n".join(_listed("Waiting", [_waiting_line(job, scene) for job in waiting], room)) or _nobody_waits(scene),
        now_paused or None,
        f"-# updated {ago(scene.now)}",
    )
    return MessageContent(layout=layout(body))


def job_list(title: str, jobs: Sequence[Job], now: datetime) -> MessageContent:
    """Jobs in the order in which they are given, a line each."""
    lines = first_lines([_with_time(job, now) for job in jobs], characters=3000)
    text = "\n".join(lines) or "No jobs yet: `/finetune` makes the first."
    return MessageContent(layout=layout(box(Colour.WAITING, f"### {title}\n{text}")))


def _with_time(job: Job, now: datetime) -> str:
    if job.ended_at:
        return f"{job_line(job)} · {ago(job.ended_at)}"
    return job_line(job) + _not_before(job, now)


def _not_before(job: Job, now: datetime) -> str:
    if job.state is not State.QUEUED or job.run_after is None or job.run_after <= now:
        return ""
    return f" · not before {point(job.run_after, now)}"


def _head(scene: Scene) -> list[str]:
    lines = ["### Queue"]
    if scene.halt is not None:
        lines.append(f"⛔ {halt_words(scene.halt)}")
    if scene.why_closed:
        lines.append(f"🌙 {plain(scene.why_closed, 300)}")
    if scene.slots:
        lines += first_lines([f"-# {_slot_words(slot)}" for slot in scene.slots], most=8, characters=600)
    return lines


def _slot_words(slot: Slot) -> str:
    name = plain(slot.name, 60)
    if slot.job_id is not None:
        return f"{name} · #{slot.job_id}" + ("" if slot.is_enabled else ", then switched off")
    return f"{name} · {'free' if slot.is_enabled else 'switched off'}"


def _listed(title: str, lines: Sequence[str], room: int) -> list[str]:
    return [f"**{title}** ({len(lines)})", *first_lines(lines, characters=room)] if lines else []


def _nobody_trains(scene: Scene) -> str:
    is_taken = any(slot.job_id is not None for slot in scene.slots)
    return "Nothing of this server is training." if is_taken else "Nothing is training."


def _nobody_waits(scene: Scene) -> str:
    if scene.halt or scene.why_closed or not any(slot.is_enabled and slot.job_id is None for slot in scene.slots):
        return "Nobody waits."
    return "Nobody waits: `/finetune` starts at once."


def _running_line(job: Job) -> str:
    step = job.progress.step
    # The whole name stands above, beside the job that holds it.
    names = [plain(name.partition(" · ")[0], 30) for name in job.slots]
    where = f" · on {listed(names)}" if names else ""
    if step is None or step.eta_s is None or job.progress.heard_at is None:
        return f"{job_line(job)}{where}"
    return f"{job_line(job)}{where} · ends {ago(job.progress.heard_at + timedelta(seconds=step.eta_s))}"


def _waiting_line(job: Job, scene: Scene) -> str:
    priority = "" if job.priority is Priority.NORMAL else f" · {job.priority.name.lower()} priority"
    line = job_line(job, scene.places.get(job.id), is_among_waiting=True) + priority
    if delay := _not_before(job, scene.now):
        return f"{line}{delay}"
    forecast = scene.forecasts.get(job.id)
    if forecast is None or forecast.starts_at is None:
        return line
    return f"{line} · {start_words(datetime.fromtimestamp(forecast.starts_at, UTC), scene.now)}"
