"""A scrape over HTTP, as Prometheus makes it."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from bot.config import MetricsSettings
from bot.db import Database
from bot.health import Counters
from bot.operations.metrics import serve_metrics
from bot.outbox import Outbox
from bot.queue import JobStore
from tests.bot.conftest import Submit, claim
from tests.bot.fakes import Clock, finished


@pytest.fixture
def settings() -> MetricsSettings:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return MetricsSettings(port=free.getsockname()[1])


async def scrape(settings: MetricsSettings, accept: str = "") -> tuple[int, str]:
    headers = {"Accept": accept} if accept else {}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{settings.port}/metrics", headers=headers) as response,
    ):
        return response.status, await response.text()


def values(text: str) -> dict[str, float]:
    """Sample name with its labels → value."""
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in parse(text)
        for sample in family.samples
    }


async def test_a_scrape_tells_what_the_database_and_the_connection_know(
    db: Database, store: JobStore, submit: Submit, clock: Clock, outbox: Outbox, settings: MetricsSettings
) -> None:
    for _ in range(3):
        await submit()
    await claim(store, 2)
    clock.advance(400)
    await store.runs.ingest(1, 1, [finished(1)], 100)
    await claim(store, 2)
    await store.runs.lost(2, 1)
    counters = Counters()
    counters.connected()
    counters.rate_limited(is_block=False)
    async with serve_metrics(settings, db.path, counters, heard=lambda: 17):
        status, text = await scrape(settings)
    assert status == 200
    told = values(text)
    assert told["darkroom_jobs[succeeded]"] == 1
    assert told["darkroom_jobs[queued]"] == told["darkroom_line_length"] == 2
    assert told["darkroom_jobs[paused]"] == 0
    assert (told["darkroom_slots"], told["darkroom_slots_free"]) == (2, 2)
    assert told["darkroom_claims_total"] == 2
    assert (told["darkroom_starts_total[succeeded]"], told["darkroom_starts_total[queued]"]) == (1, 1)
    assert told["darkroom_start_seconds_bucket[60]"] == 1
    assert told["darkroom_start_seconds_bucket[900]"] == told["darkroom_start_seconds_count"] == 2
    assert told["darkroom_start_seconds_sum"] == 400
    assert told["darkroom_notices_total"] == 2
    assert told["darkroom_events_total"] == 17
    assert told["darkroom_discord_rate_limits_total"] == told["darkroom_discord_connected"] == 1
    assert told["darkroom_database_bytes"] > 0
    assert told["darkroom_free_disk_bytes"] > 0


async def test_an_empty_database_is_told_too_and_nothing_is_told_that_nobody_counts(
    db: Database, settings: MetricsSettings
) -> None:
    async with serve_metrics(settings, db.path, Counters()):
        told = values((await scrape(settings))[1])
    assert told["darkroom_start_seconds_count"] == told["darkroom_claims_total"] == 0
    assert "darkroom_events_total" not in told


async def test_open_metrics_is_spoken_with_those_who_ask_for_it(db: Database, settings: MetricsSettings) -> None:
    async with serve_metrics(settings, db.path, Counters()):
        _, text = await scrape(settings, "application/openmetrics-text; version=1.0.0")
    assert "darkroom_jobs" in {family.name for family in parse_open(text)}


async def test_a_scrape_does_not_wait_for_a_writer(
    db: Database, store: JobStore, submit: Submit, settings: MetricsSettings
) -> None:
    await submit()
    async with serve_metrics(settings, db.path, Counters()), db.transaction():
        async with asyncio.timeout(5):
            status, _ = await scrape(settings)
    assert status == 200


async def test_a_database_that_is_gone_is_no_figure(tmp_path: Path, settings: MetricsSettings) -> None:
    async with serve_metrics(settings, tmp_path / "nowhere.db", Counters()):
        status, text = await scrape(settings)
    assert status == 503
    assert "no such file" in text


async def test_the_port_is_free_afterwards_and_one_that_is_taken_stops_nobody(
    db: Database, settings: MetricsSettings, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        async with serve_metrics(settings, db.path, Counters()) as port:
            assert port == settings.port
    with socket.socket() as taken, caplog.at_level(logging.WARNING):
        taken.bind(("127.0.0.1", settings.port))
        taken.listen()
        async with serve_metrics(settings, db.path, Counters()) as port:
            assert port is None
    assert "no metrics" in caplog.text


async def test_it_is_off_unless_somebody_wants_it(db: Database) -> None:
    async with serve_metrics(MetricsSettings(), db.path, Counters()) as port:
        assert port is None
