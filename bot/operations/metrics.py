"""Metrics for Prometheus on a local port; each scrape reads the database on a connection of its own.

Counters come from the database, so a restart of the bot resets only those of the connection to Discord. A scrape reads
every attempt ever made: 0.3 s for 100,000 on a busy machine, and nothing waits for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import MetricsSettings
from bot.db import open_to_read
from bot.errors import DarkroomError
from bot.health import ConnectionMonitor, HealthSnapshot, snapshot
from bot.queue import State
from bot.web.server import listen

#: Upper bounds of the histogram of attempt durations, seconds: a minute to two days.
_BUCKETS_S = (60, 300, 900, 3600, 14_400, 43_200, 86_400, 172_800)

#: One pass over all attempts: the outcome, and the bucket (NULL: longer than all, or still running).
_ATTEMPTS = f"""
SELECT COALESCE(outcome, 'running') AS outcome, CASE {
    " ".join(f"WHEN ended_at - started_at <= {end} THEN {index}" for index, end in enumerate(_BUCKETS_S))
} END AS bucket, COUNT(*) AS attempts, COUNT(ended_at) AS ended, SUM(MAX(ended_at - started_at, 0)) AS seconds
FROM attempt GROUP BY 1, 2
"""
_TOTALS = """
SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0) AS messages,
    (SELECT COALESCE(MAX(claim_number), 0) FROM job INDEXED BY job_claims WHERE claim_number IS NOT NULL) AS claims
"""


@dataclass(frozen=True, kw_only=True)
class MetricsSnapshot:
    """Everything that one scrape reports."""

    health: HealthSnapshot
    #: Attempts by the state that followed; "queued": the job was started again.
    attempts: Mapping[str, int]
    #: Attempts that ended within each of `_BUCKETS_S`, cumulative; then all that ended, and their total seconds.
    within: Sequence[int]
    ended: int
    seconds: float
    #: Messages ever put into the outbox, and claims ever made.
    messages: int
    claims: int
    #: Events ingested since the bot started; None without a running bot.
    events: int | None


async def read_metrics(
    database: Path,
    connection: ConnectionMonitor,
    *,
    min_free_bytes: int = 0,
    events_ingested: Callable[[], int] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> MetricsSnapshot:
    """Read the metrics of this moment.

    Raises:
        DataFolderError: The database cannot be read.
    """
    async with open_to_read(database) as db:
        # The integrity check reads the whole file: not for each scrape.
        health = await snapshot(
            db, connection=connection.stats, min_free_bytes=min_free_bytes, integrity=None, at=clock.time()
        )
        rows = await db.all(_ATTEMPTS)
        totals = await db.one(_TOTALS)
    assert totals is not None
    attempts: Counter[str] = Counter()
    buckets = [0] * len(_BUCKETS_S)
    for row in rows:
        attempts[row["outcome"]] += row["attempts"]
        if row["bucket"] is not None:
            buckets[row["bucket"]] += row["ended"]
    return MetricsSnapshot(
        health=health,
        attempts=attempts,
        within=list(accumulate(buckets)),
        ended=sum(row["ended"] for row in rows),
        seconds=sum(row["seconds"] or 0.0 for row in rows),
        messages=totals["messages"],
        claims=totals["claims"],
        events=None if events_ingested is None else events_ingested(),
    )


@asynccontextmanager
async def serve_metrics(
    settings: MetricsSettings,
    database: Path,
    connection: ConnectionMonitor,
    *,
    min_free_bytes: int = 0,
    events_ingested: Callable[[], int] | None = None,
) -> AsyncIterator[int | None]:
    """Answer `GET /metrics` while the body runs; yield the port, None if it is disabled or in use.

    A port in use is logged, and the bot runs without metrics.
    """
    if not settings.port:
        yield None
        return

    async def answer(request: web.Request) -> web.Response:
        try:
            metrics = await read_metrics(
                database, connection, min_free_bytes=min_free_bytes, events_ingested=events_ingested
            )
        except DarkroomError as error:
            return web.Response(status=503, text=f"{error}\n")
        registry = CollectorRegistry()
        registry.register(_Collector(metrics))
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    application = web.Application()
    application.router.add_get("/metrics", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    try:
        yield await listen(runner, settings.host, settings.port, what="metrics")
    finally:
        await runner.cleanup()


class _Collector:
    """Hands the metrics to prometheus_client."""

    def __init__(self, metrics: MetricsSnapshot) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        for name, help_text, value in _gauges(self._metrics.health):
            yield GaugeMetricFamily(f"darkroom_{name}", help_text, value=value)
        for name, help_text, count in _counters(self._metrics):
            yield CounterMetricFamily(f"darkroom_{name}", help_text, value=count)
        yield from _labeled(self._metrics)


def _gauges(health: HealthSnapshot) -> Iterator[tuple[str, str, float]]:
    yield "line_length", "Waiting jobs.", health.jobs.get(State.QUEUED, 0)
    yield "slots", "Enabled slots.", health.enabled_slots
    yield "slots_free", "Enabled slots that no job holds.", health.free_slots
    yield "queue_halted", "1 while the queue is paused or drained.", int(health.queue_pause is not None)
    yield "outbox_waiting", "Messages that wait to be sent.", health.outbox.waiting
    yield "outbox_cards", "Cards that show less than the newest state.", health.outbox.cards
    yield "outbox_oldest_seconds", "Age of the oldest waiting message.", health.outbox.oldest_s or 0.0
    yield "outbox_held_channels", "Channels that take no messages for now.", len(health.outbox.held)
    yield "outbox_dead_today", "Undeliverable messages of the last day.", health.outbox.dead
    yield "database_bytes", "Size of the database.", health.database_bytes
    yield "wal_bytes", "Size of its write-ahead log.", health.wal_bytes
    yield "free_disk_bytes", "Free disk space of the data folder.", health.free_disk_bytes
    yield "problems", "Problems in the health report.", len(health.problems)
    if health.connection is not None:
        yield "discord_connected", "1 while connected to the gateway.", int(health.connection.is_connected)


def _counters(metrics: MetricsSnapshot) -> Iterator[tuple[str, str, float]]:
    yield "claims", "Starts of jobs, studies included.", metrics.claims
    yield "notices", "Messages ever put into the outbox.", metrics.messages
    if metrics.events is not None:
        yield "events", "Events of trainers that were ingested.", metrics.events
    if (connection := metrics.health.connection) is not None:
        yield "discord_connects", "New sessions at the gateway.", connection.connects
        yield "discord_resumes", "Sessions resumed after a loss.", connection.resumes
        yield "discord_disconnects", "Lost connections.", connection.disconnects
        yield "discord_rate_limits", "Responses with status 429.", connection.rate_limits


def _labeled(metrics: MetricsSnapshot) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("darkroom_jobs", "Jobs by state.", labels=["state"])
    for state in State:
        jobs.add_metric([state], metrics.health.jobs.get(state, 0))
    heartbeats = GaugeMetricFamily("darkroom_heartbeat_age_seconds", "Since the last heartbeat.", labels=["job"])
    for job in metrics.health.running:
        if job.heartbeat_age_s is not None:
            heartbeats.add_metric([str(job.job_id)], job.heartbeat_age_s)
    help_text = 'Attempts by what followed; "queued": started again.'
    attempts = CounterMetricFamily("darkroom_starts", help_text, labels=["outcome"])
    for outcome, count in metrics.attempts.items():
        attempts.add_metric([outcome], count)
    durations = HistogramMetricFamily("darkroom_start_seconds", "Duration of ended attempts.")
    bounds = [(str(end), float(count)) for end, count in zip(_BUCKETS_S, metrics.within, strict=True)]
    durations.add_metric([], [*bounds, ("+Inf", metrics.ended)], metrics.seconds)
    yield from (jobs, heartbeats, attempts, durations)
