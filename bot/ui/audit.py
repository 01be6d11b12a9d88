"""What happened: lines of the audit, and the whole history of one job."""

from __future__ import annotations

from collections.abc import Sequence

from bot.queue.domain.job import Job
from bot.queue.store.attempts import Attempt
from bot.queue.store.audit import Entry
from bot.ui.layout import Colour, MessageContent, box, layout
from bot.ui.text import duration, first_lines, moment, person, plain


def audit_page(title: str, entries: Sequence[Entry]) -> MessageContent:
    """The newest lines first."""
    lines = first_lines([entry_line(entry, names_job=True) for entry in entries], most=25, characters=3000)
    text = "\n".join(lines) or "Nothing has happened yet."
    return MessageContent(layout=layout(box(Colour.WAITING, f"### {title}\n{text}")))


def history(job: Job, attempts: Sequence[Attempt], entries: Sequence[Entry]) -> MessageContent:
    """Starts and changes of one job, the newest first."""
    starts = first_lines([attempt_line(attempt) for attempt in reversed(attempts)], most=10, characters=1500)
    changes = first_lines([entry_line(entry, names_job=False) for entry in entries], most=20, characters=1500)
    body = box(
        Colour.WAITING,
        f"### History of #{job.id} {plain(job.name)}",
        "\n".join(["**Starts**", *starts]) if starts else "It was never started.",
        "\n".join(["**Changes**", *changes]) if changes else None,
    )
    return MessageContent(layout=layout(body))


def attempt_line(attempt: Attempt) -> str:
    """`**2** · <t:…:f>, 12 min · GPU 0 · RTX 4090 · queued: the machine went down`."""
    # Not "2.": Discord makes a list of that and numbers it anew.
    number = f"**{attempt.number}**"
    where = f" · {plain(', '.join(attempt.slots), 80)}" if attempt.slots else ""
    if attempt.ended_at is None:
        return f"{number} · {moment(attempt.started_at)}{where} · runs"
    took = duration((attempt.ended_at - attempt.started_at).total_seconds())
    why = f": {plain(attempt.why, 160)}" if attempt.why else ""
    return f"{number} · {moment(attempt.started_at)}, {took}{where} · then {attempt.outcome}{why}"


def entry_line(entry: Entry, *, names_job: bool) -> str:
    """`<t:…:f> · <@1> · cancel #42 · running → stopping · why`."""
    who = "Darkroom" if entry.actor_id is None else person(entry.actor_id)
    what = plain(entry.verb, 60) + (f" #{entry.job_id}" if names_job and entry.job_id is not None else "")
    parts = [moment(entry.at), who, what, _change(entry), plain(entry.why, 160) if entry.why else ""]
    return " · ".join(part for part in parts if part)


def _change(entry: Entry) -> str:
    before, after = plain(entry.before or "", 120), plain(entry.after or "", 120)
    if before == after:
        return ""
    return f"{before} → {after}" if before and after else after or f"{before} → gone"
