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
from bot.health import ConnectionMonitor
from bot.operations.metrics import serve_metrics
from bot.outbox import Outbox
from bot.queue import JobStore
from tests.bot.conftest import Submit, claim
from tests.bot.fake_events import finished
from tests.bot.fakes import FakeClock


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


async def test_a_scrape_reports_the_database_and_the_connection(
    db: Database, store: JobStore, submit: Submit, clock: FakeClock, outbox: Outbox, settings: MetricsSettings
) -> None:
    for _ in range(3):
        await submit()
    await claim(store, 2)
    clock.advance(400)
    await store.attempts.ingest(1, 1, [finished(1)], 100)
    await claim(store, 2)
    await store.attempts.lost(2, 1)
    connection = ConnectionMonitor()
    connection.connected()
    connection.rate_limited(is_block=False)
    async with serve_metrics(settings, db.path, connection, events_ingested=lambda: 17):
        status, text = await scrape(settings)
    assert status == 200
    values_now = values(text)
    assert values_now["darkroom_jobs[succeeded]"] == 1
    assert values_now["darkroom_jobs[queued]"] == values_now["darkroom_line_length"] == 2
    assert values_now["darkroom_jobs[paused]"] == 0
    assert (values_now["darkroom_slots"], values_now["darkroom_slots_free"]) == (2, 2)
    assert values_now["darkroom_claims_total"] == 2
    assert (values_now["darkroom_starts_total[succeeded]"], values_now["darkroom_starts_total[queued]"]) == (1, 1)
    assert values_now["darkroom_start_seconds_bucket[60]"] == 1
    assert values_now["darkroom_start_seconds_bucket[900]"] == values_now["darkroom_start_seconds_count"] == 2
    assert values_now["darkroom_start_seconds_sum"] == 400
    assert values_now["darkroom_notices_total"] == 2
    assert values_now["darkroom_events_total"] == 17
    assert values_now["darkroom_discord_rate_limits_total"] == values_now["darkroom_discord_connected"] == 1
    assert values_now["darkroom_database_bytes"] > 0
    assert values_now["darkroom_free_disk_bytes"] > 0


async def test_an_empty_database_is_reported_without_counters_of_a_running_bot(
    db: Database, settings: MetricsSettings
) -> None:
    async with serve_metrics(settings, db.path, ConnectionMonitor()):
        values_now = values((await scrape(settings))[1])
    assert values_now["darkroom_start_seconds_count"] == values_now["darkroom_claims_total"] == 0
    assert "darkroom_events_total" not in values_now


async def test_open_metrics_is_served_on_request(db: Database, settings: MetricsSettings) -> None:
    async with serve_metrics(settings, db.path, ConnectionMonitor()):
        _, text = await scrape(settings, "application/openmetrics-text; version=1.0.0")
    assert "darkroom_jobs" in {family.name for family in parse_open(text)}


async def test_a_scrape_does_not_wait_for_a_writer(
    db: Database, store: JobStore, submit: Submit, settings: MetricsSettings
) -> None:
    await submit()
    async with serve_metrics(settings, db.path, ConnectionMonitor()), db.transaction():
        async with asyncio.timeout(60):
            status, _ = await scrape(settings)
    assert status == 200


async def test_a_missing_database_is_an_error(tmp_path: Path, settings: MetricsSettings) -> None:
    async with serve_metrics(settings, tmp_path / "nowhere.db", ConnectionMonitor()):
        status, text = await scrape(settings)
    assert status == 503
    assert "no such file" in text


async def test_the_port_is_free_afterwards_and_a_port_in_use_is_only_logged(
    db: Database, settings: MetricsSettings, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        async with serve_metrics(settings, db.path, ConnectionMonitor()) as port:
            assert port == settings.port
    with socket.socket() as taken, caplog.at_level(logging.WARNING):
        taken.bind(("127.0.0.1", settings.port))
        taken.listen()
        async with serve_metrics(settings, db.path, ConnectionMonitor()) as port:
            assert port is None
    assert "no metrics" in caplog.text


async def test_metrics_are_off_by_default(db: Database) -> None:
    async with serve_metrics(MetricsSettings(), db.path, ConnectionMonitor()) as port:
        assert port is None
