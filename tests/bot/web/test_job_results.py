"""The page of a job: what it shows, which files it gives, whole, in ranges and as one zip, and to whom."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import pytest

from bot.queue import NewJob
from bot.queue.store.sample_votes import Ballot
from bot.web import LinkKind
from tests.bot.conftest import GUILD
from tests.bot.fake_events import epoch_ended, started, was_tested
from tests.bot.web.conftest import ANA, BEN, LEAD, STRANGER, Pages, small_png, write_files
from trainer.protocol.events import (
    Event,
    Exported,
    ExportFormat,
    Finished,
    Reader,
    Sample,
    Sampled,
    ValidationLoss,
    Warned,
)
from trainer.protocol.sampling import SampledBase, SampledJob, SampledPrompt, SamplingSpec
from trainer.protocol.study import CompareRequest, StudyStep

SHARED = "report-shared.html"
WEIGHTS = bytes(range(256)) * 4096


def sampled(epoch: int) -> Event:
    samples = tuple(
        Sample(path=f"samples/e{epoch}-{n}.png", prompt=prompt, seed=7)
        for n, prompt in enumerate(("a fox", "<b>x</b>"))
    )
    return Sampled(seq=1, time=0, epoch=epoch, samples=samples, sheet=f"samples/e{epoch}.png")


def exported(path: str = "output/lora.safetensors", size: int = len(WEIGHTS)) -> Event:
    return Exported(
        seq=1,
        time=0,
        format=ExportFormat.KOHYA,
        path=path,
        bytes=size,
        sha256="ab" * 32,
        readers=(Reader.A1111,),
    )


def finished() -> Event:
    return Finished(
        seq=1,
        time=0,
        epochs=2,
        best_epoch=2,
        stopped_early=False,
        base_loss=1,
        best_loss=0.5,
        best_ratio=0.5,
        seconds=90,
        comparison="output/comparison.png",
        comparison_alt="",
        shared_report=SHARED,
    )


WHOLE: Sequence[Event] = (
    started(1), sampled(0), sampled(1), epoch_ended(1, 1), sampled(2), epoch_ended(1, 2), exported(), finished()
)  # fmt: skip
FILES = {
    **{f"samples/e{epoch}-{n}.png": small_png(50 * epoch) for epoch in range(3) for n in range(2)},
    "output/lora.safetensors": WEIGHTS,
    "output/comparison.png": small_png(),
    SHARED: b"<!doctype html><p>report</p><script>alert(1)</script>",
    "spec.json": b'{"dataset": "/home/ana"}',
    "trainer.log": b"secret path",
    "checkpoints/1/weights.safetensors": b"w",
}


@pytest.fixture
async def job_url(pages: Pages) -> str:
    job = await pages.job(WHOLE, FILES)
    return await pages.link(LinkKind.JOB, job.id)


async def test_a_finished_job_is_shown_with_all_it_drew_and_made(pages: Pages, job_url: str) -> None:
    status, text, headers = await pages.get(job_url)
    assert status == 200
    assert "10 %" in text, "the verdict of its best epoch"
    assert text.count("data-lightbox=") == 6
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "<b>x</b>" not in text
    assert "ab" * 32 in text
    assert "<svg" in text
    assert "data-refresh" not in text, "nothing changes any more"
    assert "script-src 'self'" in headers["Content-Security-Policy"]


async def test_a_test_that_was_repeated_after_a_loss_is_shown_as_it_was_last(pages: Pages) -> None:
    def measured(ratio: float) -> Event:
        return was_tested(1).model_copy(update={"test": ValidationLoss(loss=0.1, ratio=ratio, bands=())})

    job = await pages.job([*WHOLE[:-1], measured(0.8), measured(0.4), finished()], FILES)
    _status, text, _headers = await pages.get(await pages.link(LinkKind.JOB, job.id))
    assert "60 %" in text
    assert "20 %" not in text


async def test_the_page_of_a_running_job_asks_again_and_is_sent_once(pages: Pages) -> None:
    job = await pages.job([*WHOLE[:5], Warned(seq=1, time=0, kind="x", message="Few images & small.")], FILES)
    url = await pages.link(LinkKind.JOB, job.id)
    status, text, headers = await pages.get(url)
    assert status == 200
    assert 'data-refresh="15"' in text
    assert "Few images &amp; small." in text
    status, text, again = await pages.get(url, headers={"If-None-Match": headers["ETag"]})
    assert (status, text) == (304, "")
    assert again["ETag"] == headers["ETag"]


@pytest.mark.parametrize(
    "path",
    [
        "spec.json",
        "trainer.log",
        "checkpoints/1/weights.safetensors",
        "samples",
        "samples/",
        "samples/none.png",
        "samples/../spec.json",
        "samples/%2e%2e/spec.json",
        "samples/..%2fspec.json",
        "output/%2fetc%2fpasswd",
        "samples/a%00b.png",
        "output/link.txt",
        "output/inner/spec.json",
        "..%2f..%2f..%2fetc%2fpasswd",
        "report-shared.html",
    ],
)
async def test_nothing_but_what_the_page_offers_has_an_address(pages: Pages, path: str) -> None:
    job = await pages.job(WHOLE, FILES)
    job_dir = pages.site.jobs.job_dir(job)
    (job_dir / "output" / "link.txt").symlink_to(job_dir / "spec.json")
    (job_dir / "output" / "inner").symlink_to(job_dir)
    url = await pages.link(LinkKind.JOB, job.id)
    # As it stands: a client must not tidy it up.
    status, text = await raw_get(pages, url, f"/files/{path}")
    assert status == 404, text
    assert "home" not in text
    assert "secret" not in text


async def raw_get(pages: Pages, url: str, rest: str) -> tuple[int, str]:
    import asyncio
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET {parts.path}{rest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode(errors="replace")
    writer.close()
    return int(answer.split()[1]), answer


async def test_images_are_shown_and_all_else_is_downloaded(pages: Pages) -> None:
    hostile = {"output/x.html": b"<script>", "output/x.svg": b"<svg onload=1>", "output/rés \"u'lt.png": small_png()}
    job = await pages.job(WHOLE, {**FILES, **hostile})
    url = await pages.link(LinkKind.JOB, job.id)
    for path, kind, is_download in (
        ("samples/e1-0.png", "image/png", False),
        ("output/lora.safetensors", "application/octet-stream", True),
        ("output/x.html", "application/octet-stream", True),
        ("output/x.svg", "application/octet-stream", True),
        ("output/r%C3%A9s%20%22u'lt.png?download", "image/png", True),
    ):
        async with pages.browser.get(f"{url}/files/{path}") as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (200, kind), path
            assert ("attachment" in answer.headers.get("Content-Disposition", "")) is is_download, path
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.content_disposition is not None
    assert answer.content_disposition.filename == f"{job.name}-rés \"u'lt.png"


async def test_a_report_shows_itself_and_runs_nothing(pages: Pages, job_url: str) -> None:
    status, text, headers = await pages.get(f"{job_url}/report")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "report" in text
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("sandbox;")
    assert "script-src" not in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        ("bytes=0-9", 206, WEIGHTS[:10], "bytes 0-9/1048576"),
        ("bytes=1048570-", 206, WEIGHTS[-6:], "bytes 1048570-1048575/1048576"),
        ("bytes=-4", 206, WEIGHTS[-4:], "bytes 1048572-1048575/1048576"),
        ("bytes=-9999999", 206, WEIGHTS, "bytes 0-1048575/1048576"),
        ("bytes=1048575-9999999", 206, WEIGHTS[-1:], "bytes 1048575-1048575/1048576"),
        ("bytes=1048576-", 416, b"", "bytes */1048576"),
        ("bytes=5-2", 200, WEIGHTS, None),
        ("bytes=0-1,4-5", 200, WEIGHTS, None),
        ("lines=1-2", 200, WEIGHTS, None),
    ],
)
async def test_a_download_continues_where_it_was(
    pages: Pages, job_url: str, asked: str, status: int, content: bytes, content_range: str | None
) -> None:
    url = f"{job_url}/files/output/lora.safetensors"
    async with pages.browser.get(url, headers={"Range": asked}) as answer:
        body = await answer.read()
        assert answer.status == status
        assert answer.headers.get("Content-Range") == content_range
        assert status == 416 or body == content
        assert answer.headers["Accept-Ranges"] == "bytes" or status == 416


async def test_the_rest_of_a_file_that_has_changed_is_not_given(pages: Pages) -> None:
    job = await pages.job(WHOLE, FILES)
    url = f"{await pages.link(LinkKind.JOB, job.id)}/files/output/lora.safetensors"
    async with pages.browser.head(url) as answer:
        tag, changed_at = answer.headers["ETag"], answer.headers["Last-Modified"]
        assert answer.headers["Content-Length"] == str(len(WEIGHTS))
    for version in (tag, changed_at):
        async with pages.browser.get(url, headers={"Range": "bytes=5-", "If-Range": version}) as answer:
            assert (answer.status, await answer.read()) == (206, WEIGHTS[5:])
    write_files(pages.site.jobs.job_dir(job), {"output/lora.safetensors": b"other weights"})
    os.utime(pages.site.jobs.job_dir(job) / "output/lora.safetensors", (2e9, 2e9))
    for version in (tag, changed_at, f"W/{tag}"):
        async with pages.browser.get(url, headers={"Range": "bytes=5-", "If-Range": version}) as answer:
            assert (answer.status, await answer.read()) == (200, b"other weights")


async def test_a_file_that_a_browser_has_is_not_sent_again(pages: Pages, job_url: str) -> None:
    url = f"{job_url}/files/samples/e1-0.png"
    _status, _text, headers = await pages.get(
        f"{job_url}/files/output/lora.safetensors", headers={"Range": "bytes=0-0"}
    )
    assert headers["ETag"]
    async with pages.browser.get(url) as answer:
        known = answer.headers
    for asked in ({"If-None-Match": known["ETag"]}, {"If-Modified-Since": known["Last-Modified"]}):
        async with pages.browser.get(url, headers=asked) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
    async with pages.browser.get(url, headers={"If-None-Match": '"other"'}) as answer:
        assert answer.status == 200


async def test_the_zip_has_everything_once_and_nothing_else(pages: Pages, job_url: str) -> None:
    async with pages.browser.get(f"{job_url}/all.zip") as answer:
        assert answer.status == 200
        assert answer.content_disposition is not None
        assert answer.content_disposition.filename == "fox-1.zip"
        packed = zipfile.ZipFile(io.BytesIO(await answer.read()))
    assert packed.testzip() is None
    names = packed.namelist()
    assert len(names) == len(set(names))
    assert set(names) == {
        "fox-kohya.safetensors",
        "output/comparison.png",
        "report.html",
        *(name for name in FILES if name.startswith("samples/")),
    }
    assert packed.read("fox-kohya.safetensors") == WEIGHTS


async def test_a_folder_is_in_the_zip_without_what_its_links_lead_to(pages: Pages) -> None:
    folder = exported("output/pipeline", 4)
    job = await pages.job([*WHOLE[:6], folder, finished()], {**FILES, "output/pipeline/unet/config.json": b"{}"})
    (pages.site.jobs.job_dir(job) / "output/pipeline/secret").symlink_to(pages.site.jobs.job_dir(job) / "spec.json")
    url = await pages.link(LinkKind.JOB, job.id)
    async with pages.browser.get(f"{url}/all.zip") as answer:
        names = zipfile.ZipFile(io.BytesIO(await answer.read())).namelist()
    assert "pipeline/unet/config.json" in names
    assert not [name for name in names if "secret" in name]
    assert "a folder: it is in the zip" in (await pages.get(url))[1]


async def test_a_link_opens_only_what_it_was_made_for(pages: Pages) -> None:
    job = await pages.job(WHOLE, FILES)
    other = await pages.job(WHOLE, FILES, name="other", guild=GUILD + 1)
    assert (await pages.get(await pages.link(LinkKind.JOB, job.id, BEN)))[0] == 200
    assert (await pages.get(await pages.link(LinkKind.JOB, job.id, STRANGER)))[0] == 403
    # Of another server, by a member of this one.
    assert (await pages.get(await pages.link(LinkKind.JOB, other.id)))[0] == 404
    url = await pages.link(LinkKind.JOB, job.id)
    forged = url[:-4] + ("aaaa" if url[-4:] != "aaaa" else "bbbb")
    assert (await pages.get(forged))[0] == 404
    assert (await pages.get(url.replace("/j/", "/d/")))[0] == 404
    for rest in ("", "/report", "/all.zip", "/files/samples/e1-0.png"):
        assert (await pages.get(url + rest))[0] == 200
    await pages.site.links.revoke(LinkKind.JOB, job.id)
    for rest in ("", "/report", "/all.zip", "/files/samples/e1-0.png"):
        assert (await pages.get(url + rest))[0] == 410


async def test_an_expired_link_opens_nothing(pages: Pages, job_url: str) -> None:
    pages.clock.advance(8 * 86_400)
    for rest in ("", "/report", "/all.zip", "/files/samples/e1-0.png"):
        assert (await pages.get(job_url + rest))[0] == 410


async def test_deleted_files_are_told(pages: Pages) -> None:
    job = await pages.job(WHOLE, {})
    async with pages.site.jobs._db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET files_deleted_at = 1 WHERE id = ?", (job.id,))
    url = await pages.link(LinkKind.JOB, job.id)
    status, text, _headers = await pages.get(url)
    assert status == 200
    assert "deleted" in text
    assert (await pages.get(f"{url}/all.zip"))[0] == 404
    assert (await pages.get(f"{url}/report"))[0] == 404


async def test_only_reading_is_possible(pages: Pages, job_url: str) -> None:
    calls: Sequence[Any] = (pages.browser.post, pages.browser.put, pages.browser.delete)
    for call in calls:
        async with call(job_url) as answer:
            assert answer.status == 405


async def test_a_private_training_opens_for_those_who_may_see_its_images(pages: Pages) -> None:
    job = await pages.job(WHOLE, FILES)
    links = {who: await pages.link(LinkKind.JOB, job.id, who) for who in (ANA, BEN, LEAD)}
    await pages.site.datasets.set_privacy(1, by=1, is_private=True, guests=())
    for rest in ("", "/report", "/all.zip", "/files/samples/e1-0.png"):
        assert {who: (await pages.get(url + rest))[0] for who, url in links.items()} == {ANA: 200, BEN: 403, LEAD: 200}


async def test_the_runs_of_a_study_are_pages_below_its_own(pages: Pages) -> None:
    other = await pages.job(WHOLE, FILES, name="other")
    job = await pages.job(WHOLE, FILES)
    url = await pages.link(LinkKind.JOB, job.id)
    assert (await pages.get(f"{url}/runs/{other.id}"))[0] == 404, "no run of this one"
    async with pages.site.jobs._db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET parent_id = ? WHERE id = ?", (job.id, other.id))
    status, text, _headers = await pages.get(f"{url}/runs/{other.id}")
    assert (status, f"/runs/{other.id}/files/" in text) == (200, True)
    assert (await pages.get(f"{url}/runs/{other.id}/files/samples/e1-0.png"))[0] == 200
    assert (await pages.get(f"{url}/runs/{'9' * 18}"))[0] == 404


async def test_a_study_shows_the_samples_of_its_runs_beside_each_other(pages: Pages) -> None:
    step = StudyStep(
        page="results.html",
        report="results.md",
        samples="samples/runs.png",
        samples_alt="rank 8 (best) and <base>",
        samples_notes=("The best 3 of 4 are shown.",),
    )
    request = CompareRequest(vary=("method.rank=8,32",))
    job = await pages.job(WHOLE, FILES | {"samples/runs.png": small_png()})
    async with pages.site.jobs._db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET study = ?, study_step = ? WHERE id = ?",
            (request.model_dump_json(), step.model_dump_json(), job.id),
        )
    url = await pages.link(LinkKind.JOB, job.id)
    _status, text, _headers = await pages.get(url)
    assert '/files/samples/runs.png" alt="rank 8 (best) and &lt;base&gt;"' in text
    assert "The best 3 of 4 are shown." in text
    assert (await pages.get(f"{url}/files/samples/runs.png"))[0] == 200
    (pages.site.jobs.job_dir(job) / "samples" / "runs.png").unlink()
    assert "runs.png" not in (await pages.get(url))[1]


async def test_the_pages_speak_the_member_s_language(pages: Pages, job_url: str) -> None:
    await pages.site.languages.choose("zh_CN", person=ANA)
    for url in (job_url, await pages.link(LinkKind.GALLERY), await pages.link(LinkKind.JOB, 99)):
        _status, text, _headers = await pages.get(url, headers={"Accept": "text/html", "Accept-Language": "en"})
        assert 'lang="zh-CN"' in text
        shown = re.sub(r"<title>.*?</title>|<pre>.*?</pre>|<b>.*?</b>|<[^>]*>|“[^”]*”", "、", text, flags=re.DOTALL)
        assert re.findall(r"[A-Za-z]+(?: [A-Za-z]+){2,}", shown) == []


async def test_a_sampling_shows_what_is_drawn_by_prompt_and_seed(pages: Pages) -> None:
    models = (SampledBase(), SampledJob(label="fox #1", job_dir="/nowhere"))
    spec = SamplingSpec(models=models, prompts=(SampledPrompt(prompt="a fox", negative="blur"),), seeds=(1, 2))
    new = NewJob(interaction_id=77, guild_id=GUILD, channel_id=1, owner_id=ANA, dataset_id=0, spec=spec, title="grid")
    job = await pages.site.jobs.submit(new)
    drawn = spec.cells[:3]
    write_files(pages.site.jobs.job_dir(job), {cell.path: small_png() for cell in drawn})
    url = await pages.link(LinkKind.JOB, job.id)
    status, text, _headers = await pages.get(url)
    assert status == 200
    assert text.count("data-lightbox=") == 3
    assert "fox #1, strength 1" in text
    assert "without: blur" in text
    assert "/nowhere" not in text
    assert "👍" not in text
    for person, ballot, number in ((ANA, Ballot.IMAGE, 1), (BEN, Ballot.IMAGE, 1), (BEN, Ballot.MODEL, 1)):
        await pages.site.jobs.votes.vote(job, person, ballot, number)
    _status, text, _headers = await pages.get(url)
    assert "👍 2 votes</b>" in text.rpartition(drawn[1].path)[2].split("</figure>")[0]
    assert text.count("👍 2 votes") == 1
    assert "👍 Most liked: fox #1, with 1 vote." in text
    assert "👍 Most liked: image 2, with 2 votes." in text
    async with pages.browser.get(f"{url}/all.zip") as answer:
        names = zipfile.ZipFile(io.BytesIO(await answer.read())).namelist()
    assert sorted(names) == sorted(cell.path for cell in drawn)
