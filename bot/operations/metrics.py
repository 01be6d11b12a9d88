"""Numbers for Prometheus on a local port: read for each scrape, on a connection of its own, and forgotten.

Everything that the database knows is counted there, so a restart of the bot resets nothing; only what the connection to
Discord went through begins anew. A scrape passes over every start there ever was: 0.3 s for 100,000, on a busy machine,
and nobody waits for it.
"""

from __future__ import annotations

import logging
import time
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

from bot.config import MetricsSettings
from bot.db import Database, open_to_read
from bot.errors import DarkroomError
from bot.health import Counters, GatewayHealth, Health, examine
from bot.queue import State

log = logging.getLogger(__name__)

#: Upper ends of the classes of how long a start ran, seconds: a minute to two days.
_BUCKETS_S = (60, 300, 900, 3600, 14_400, 43_200, 86_400, 172_800)

#: One pass over all starts: what followed, in which class they ended (NULL: longer than all, or still running).
_STARTS = f"""
SELECT COALESCE(outcome, 'running') AS outcome, CASE {
    " ".join(f"WHEN ended_at - started_at <= {end} THEN {place}" for place, end in enumerate(_BUCKETS_S))
} END AS place, COUNT(*) AS starts, COUNT(ended_at) AS ended, SUM(MAX(ended_at - started_at, 0)) AS seconds
FROM attempt GROUP BY 1, 2
"""
_POSTS = "SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0)"
_CLAIMS = "SELECT COALESCE(MAX(claim_number), 0) FROM job INDEXED BY job_claims WHERE claim_number IS NOT NULL"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All that one scrape tells."""

    health: Health
    #: Starts by the state that followed; "queued": it was started again.
    starts: Mapping[str, int]
    #: Starts that ended within each of `_BUCKETS_S`; then how many ended at all, and their seconds together.
    within: Sequence[int]
    ended: int
    seconds: float
    #: Posts that were ever to be sent, and jobs that were ever claimed.
    posts: int
    claims: int
    #: Events heard since the bot started; None: nobody counts them.
    events: int | None


async def measure(
    database: Path,
    counters: Counters,
    *,
    min_free_bytes: int = 0,
    heard: Callable[[], int] | None = None,
    now: Callable[[], float] = time.time,
) -> Figures:
    """The figures of this moment.

    Raises:
        DataFolderError: the database cannot be read.
    """
    async with open_to_read(database) as db:
        # The check of integrity reads the whole file: not for each scrape.
        health = await examine(db, counters=counters, min_free_bytes=min_free_bytes, checks_integrity=False, at=now())
        rows = await db.all(_STARTS)
        posts, claims = await _number(db, _POSTS), await _number(db, _CLAIMS)
    starts: Counter[str] = Counter()
    for row in rows:
        starts[row["outcome"]] += row["starts"]
    classes = [sum(row["ended"] for row in rows if row["place"] == place) for place in range(len(_BUCKETS_S))]
    return Figures(
        health=health,
        starts=starts,
        within=list(accumulate(classes)),
        ended=sum(row["ended"] for row in rows),
        seconds=sum(row["seconds"] or 0.0 for row in rows),
        posts=posts,
        claims=claims,
        events=None if heard is None else heard(),
    )


@asynccontextmanager
async def serve_metrics(
    settings: MetricsSettings,
    database: Path,
    counters: Counters,
    *,
    min_free_bytes: int = 0,
    heard: Callable[[], int] | None = None,
) -> AsyncIterator[int | None]:
    """Answer `GET /metrics` until the block ends; yields the port, None where it is switched off or taken.

    A port that is taken is no reason not to train: it is logged, and the bot goes on without.
    """
    if not settings.port:
        yield None
        return

    async def answer(request: web.Request) -> web.Response:
        try:
            figures = await measure(database, counters, min_free_bytes=min_free_bytes, heard=heard)
        except DarkroomError as error:
            return web.Response(status=503, text=f"{error}\n")
        registry = CollectorRegistry()
        registry.register(_Collected(figures))
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    application = web.Application()
    application.router.add_get("/metrics", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    try:
        yield await _listen(runner, settings)
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: MetricsSettings) -> int | None:
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        log.warning("no metrics: %s:%d cannot be used (%s)", settings.host, settings.port, error.strerror or error)
        return None
    log.info("metrics on http://%s:%d/metrics", settings.host, settings.port)
    return settings.port


async def _number(db: Database, query: str) -> int:
    row = await db.one(query)
    assert row is not None
    return int(row[0])


class _Collected:
    """prometheus_client's way to hand over figures that were read before."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        yield from _of_queue(self._figures)
        yield from _of_machine(self._figures.health)
        if self._figures.health.gateway is not None:
            yield from _of_gateway(self._figures.health.gateway)


def _of_queue(figures: Figures) -> Iterator[Metric]:
    health = figures.health
    jobs = {str(state): health.jobs.get(state, 0) for state in State}
    yield _labelled(GaugeMetricFamily, "darkroom_jobs", "Jobs by state.", "state", jobs)
    yield _gauge("darkroom_line_length", "Jobs that wait.", health.jobs.get(State.QUEUED, 0))
    yield _gauge("darkroom_slots", "Slots that may be given away.", health.slots)
    yield _gauge("darkroom_slots_free", "Slots that no job holds.", health.free_slots)
    yield _gauge("darkroom_queue_halted", "1 while the queue is paused or drained.", int(health.halt is not None))
    beats = {str(beat.job_id): beat.beat_s for beat in health.heartbeats if beat.beat_s is not None}
    yield _labelled(GaugeMetricFamily, "darkroom_heartbeat_age_seconds", "Since the last sign of life.", "job", beats)
    yield _counter("darkroom_claims", "Starts of jobs, studies included.", figures.claims)
    help_text = 'Starts by what followed; "queued": started again.'
    yield _labelled(CounterMetricFamily, "darkroom_starts", help_text, "outcome", figures.starts)
    took = HistogramMetricFamily("darkroom_start_seconds", "How long starts ran that have ended.")
    ends = [(str(end), float(count)) for end, count in zip(_BUCKETS_S, figures.within, strict=True)]
    took.add_metric([], [*ends, ("+Inf", figures.ended)], figures.seconds)
    yield took
    if figures.events is not None:
        yield _counter("darkroom_events", "Events of trainers that were written down.", figures.events)
    outbox = health.outbox
    yield _gauge("darkroom_outbox_waiting", "Posts that wait to be sent.", outbox.waiting)
    yield _gauge("darkroom_outbox_cards", "Cards that show less than the newest state.", outbox.cards)
    yield _gauge("darkroom_outbox_oldest_seconds", "Age of the oldest post that waits.", outbox.oldest_s or 0.0)
    yield _gauge("darkroom_outbox_dead_today", "Posts of the last day that cannot be delivered.", outbox.dead)
    yield _counter("darkroom_notices", "Posts that were ever to be sent.", figures.posts)


def _of_machine(health: Health) -> Iterator[Metric]:
    yield _gauge("darkroom_database_bytes", "Size of the database.", health.database_bytes)
    yield _gauge("darkroom_wal_bytes", "Size of its write-ahead log.", health.wal_bytes)
    yield _gauge("darkroom_free_disk_bytes", "Free room for the data folder.", health.free_disk_bytes)
    yield _gauge("darkroom_problems", "Sentences in the health report.", len(health.problems))


def _of_gateway(gateway: GatewayHealth) -> Iterator[Metric]:
    yield _gauge("darkroom_discord_connected", "1 while connected to the gateway.", int(gateway.is_connected))
    yield _counter("darkroom_discord_connects", "New sessions at the gateway.", gateway.connects)
    yield _counter("darkroom_discord_resumes", "Sessions that went on after a loss.", gateway.resumes)
    yield _counter("darkroom_discord_disconnects", "Losses of the connection.", gateway.disconnects)
    yield _counter("darkroom_discord_rate_limits", "Answers of 429.", gateway.rate_limits)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(name, help_text, value=value)


def _labelled(
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    help_text: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    made = family(name, help_text, labels=[label])
    for value, number in values.items():
        made.add_metric([value], number)
    return made
