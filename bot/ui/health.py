"""How the bot is, for those who look after it (`/admin health`)."""

from __future__ import annotations

from collections.abc import Iterator

from bot.health import Health, Heartbeat
from bot.queue.store.queue_control import HaltKind
from bot.ui.layout import Colour, MessageContent, box, layout
from bot.ui.text import ago, counted, duration, shorten, size

_SHOWN = 10


def health_message(health: Health) -> MessageContent:
    """What is wrong first, then the numbers."""
    head = "### ✅ All is well" if not health.problems else f"### ⚠️ {counted(len(health.problems), 'problem')}"
    body = box(
        Colour.FAILED if health.problems else Colour.TRAINING,
        "\n".join([head, *(f"- {shorten(problem, 400)}" for problem in health.problems[:_SHOWN])]),
        "\n".join(_numbers(health)),
        "\n".join(_beat_line(beat) for beat in health.heartbeats[:_SHOWN]) or None,
        f"-# as of {ago(health.at)}",
    )
    return MessageContent(layout=layout(body), is_silent=True)


def _numbers(health: Health) -> Iterator[str]:
    integrity = "sound" if health.integrity == "ok" else "not checked" if health.integrity is None else "damaged"
    files = f"{size(health.database_bytes)}, log {size(health.wal_bytes)}"
    yield f"**Database** {integrity} · {files} · schema {health.schema}"
    yield f"**Disk** {size(health.free_disk_bytes)} free"
    yield f"**Jobs** {', '.join(f'{count:,} {state}' for state, count in health.jobs.items()) or 'none yet'}"
    yield f"**Slots** {health.free_slots} of {health.slots} free" + (
        f" · {health.lost_slots} gone and still held" if health.lost_slots else ""
    )
    if health.halt is not None:
        yield f"**Queue** {'paused' if health.halt.kind is HaltKind.PAUSE else 'draining'} {ago(health.halt.at)}"
    outbox = health.outbox
    oldest = "" if outbox.oldest_s is None else f", the oldest for {duration(outbox.oldest_s)}"
    yield f"**Outbox** {counted(outbox.waiting, 'message')} and {counted(outbox.cards, 'card')} wait{oldest}"
    if (gateway := health.gateway) is not None:
        lost = "" if gateway.disconnected_at is None else f", the last {ago(gateway.disconnected_at)}"
        yield (
            f"**Discord** {'connected' if gateway.is_connected else 'not connected'} · "
            f"connection lost {counted(gateway.disconnects, 'time')}{lost} · "
            f"{counted(gateway.resumes, 'resume')}"
        )
        limited = "" if gateway.rate_limited_at is None else f", the last {ago(gateway.rate_limited_at)}"
        yield f"**Rate limits** met {counted(gateway.rate_limits, 'time')} (429){limited}"


def _beat_line(beat: Heartbeat) -> str:
    sign = "no sign of life yet" if beat.beat_s is None else f"sign of life {duration(beat.beat_s)} ago"
    heard = "nothing said yet" if beat.heard_s is None else f"last word {duration(beat.heard_s)} ago"
    return f"`#{beat.job_id}` {beat.state} · {sign} · {heard}"
