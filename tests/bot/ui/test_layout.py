"""Every message stays within Discord's limits, and hostile text in it notifies no one and is not rendered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from discord import ui

from bot.cogs.replies import opened
from bot.datasets import PendingUpload, UploadKind
from bot.datasets.decisions import review_questions
from bot.db.audit import AuditEntry
from bot.outbox import HoldReason, Notification, NotificationKind, Undelivered, UndeliveredReason
from bot.queue.domain.job import EndReason, EndReasonKind, Job, State
from bot.queue.store.history import AttemptRecord
from bot.queue.store.queue_control import PauseKind, QueuePause
from bot.queue.store.slots import Slot
from bot.ui.admin_news import BackupFailed, news_post
from bot.ui.admin_pages import slots_page
from bot.ui.buttons import DatasetButton
from bot.ui.dataset_cards import ReportView, dataset_list, delete_question, report_card
from bot.ui.discord_text import escape
from bot.ui.job_card import job_card
from bot.ui.job_endings import done_post, failed_post
from bot.ui.job_posts import (
    base_post,
    early_stop_post,
    epoch_post,
    files_reply,
    lost_post,
    paused_post,
    undelivered_post,
    warning_post,
)
from bot.ui.job_replies import receipt
from bot.ui.layout import (
    MAX_BYTES,
    MAX_CHARACTERS,
    FileToSend,
    MessageContent,
    image_gallery,
    layout,
    sendable,
    weight,
)
from bot.ui.plain_text import plain_text
from bot.ui.queue_pages import BoardSnapshot, audit_page, history_page, job_list, queue_board
from bot.ui.review_page import ReviewView, image_page, question_page
from bot.ui.upload_posts import (
    Unanswered,
    upload_failed,
    upload_incomplete,
    upload_post,
    upload_prepared,
    upload_refused,
)
from tests.bot.ui.examples import (
    LIMIT,
    NOW,
    OWNER,
    context,
    dataset,
    exported,
    finding,
    finished,
    image,
    job,
    progress,
    report,
    sampled,
    step_done,
)
from tests.bot.ui.rendering import HOSTILE, buttons, check_limits
from trainer.protocol.events import Failed, FailureKind, StoppedEarly, Warned
from trainer.protocol.report import CaptionStatistics, FindingKind, RefusalKind, Refused, WordCount
from trainer.protocol.spec import Spec, make_spec
from trainer.protocol.text import LANGUAGES, speaking

PAUSE = QueuePause(kind=PauseKind.DRAIN, by=OWNER, at=NOW, why=HOSTILE)


def worst_spec() -> Spec:
    return make_spec(
        {"name": "x" * 40, "dataset": "x", "preset": HOSTILE[:60], "base": {"source": HOSTILE[:500]},
         "training": {"epochs": 1000, "trigger": HOSTILE[:50]}}
    )  # fmt: skip


def worst_job() -> Job:
    return job(
        spec=worst_spec(),
        dataset_name=HOSTILE,
        progress=progress(1000, 1000, step=step_done(10**9, 1000)),
        end_reason=EndReason(kind=EndReasonKind.TRAINER_FAILED, message=HOSTILE),
    )


def job_messages(folder: Path) -> Iterator[MessageContent]:
    worst, here = worst_job(), context(folder)
    prompts = tuple(HOSTILE[:500].strip() for _ in range(8))
    failed = Failed(seq=1, time=0, kind=FailureKind.BUG, message=HOSTILE * 10, hint=HOSTILE * 10)
    early = StoppedEarly(
        seq=1, time=0, epoch=900, best_epoch=800, best_ratio=0.5, reason=HOSTILE * 9, epochs_saved=100,
        seconds_saved=1e9,
    )  # fmt: skip
    corrupt = finding(FindingKind.CORRUPT, "dropped", message=HOSTILE)
    skipped = report(
        *(image(n, corrupt, status="dropped", source=HOSTILE + str(n)) for n in range(3000)),
        refused=tuple(Refused(source=HOSTILE, kind=RefusalKind.LINK, reason=HOSTILE) for _ in range(300)),
    )
    queued = dataclasses.replace(worst, state=State.QUEUED)
    yield job_card(worst, here)
    yield job_card(dataclasses.replace(worst, state=State.FAILED), here)
    yield job_card(dataclasses.replace(queued, slots=(HOSTILE,) * 9), dataclasses.replace(here, queue_pause=PAUSE))
    yield job_card(queued, dataclasses.replace(here, why_closed=HOSTILE))
    yield base_post(worst, here, sampled(0, prompts), None)
    yield epoch_post(worst, here, sampled(3, prompts), worst.progress.epochs)
    yield early_stop_post(worst, here, early)
    yield warning_post(worst, here, Warned(seq=1, time=0, kind="diverging", message=HOSTILE * 50))
    yield lost_post(worst, here, HOSTILE * 20)
    yield paused_post(dataclasses.replace(worst, state=State.PAUSED), here, HOSTILE)
    yield done_post(worst, here, (exported(), exported("diffusers"), finished(comparison_alt=HOSTILE)))
    yield failed_post(worst, here, failed, HOSTILE)
    yield from files_reply(dataclasses.replace(worst, state=State.SUCCEEDED), here, (exported(), exported("diffusers")))
    about = Undelivered(reason=UndeliveredReason.HELD, hold=HoldReason.NO_ACCESS, channel_id=10**17)
    for kind in (NotificationKind.DONE, NotificationKind.ANSWER):
        undelivered = about.model_copy(update={"kind": kind})
        notification = Notification(
            kind=NotificationKind.UNDELIVERED, job_id=1, owner_id=OWNER, detail="x" * 3000, undelivered=undelivered
        )
        yield undelivered_post(notification, worst)
    yield receipt(worst, dataclasses.replace(here, position=10**6), skipped)


def pages() -> Iterator[MessageContent]:
    worst = worst_job()
    queued, paused = (dataclasses.replace(worst, state=state) for state in (State.QUEUED, State.PAUSED))
    slots = [Slot(id=str(n), device="", name=HOSTILE, job_id=n) for n in range(64)]
    entry = AuditEntry(at=NOW, job_id=1, actor_id=OWNER, verb=HOSTILE, before="a", after=HOSTILE, why=HOSTILE)
    attempt = AttemptRecord(
        number=1, started_at=NOW, ended_at=NOW, slots=(HOSTILE,), outcome="failed", reason=worst.end_reason
    )
    jobs = [worst] * 9 + [queued] * 300 + [paused] * 50
    yield queue_board(BoardSnapshot(now=NOW, jobs=jobs, slots=slots, queue_pause=PAUSE, why_closed=HOSTILE))
    yield job_list("Newest", [worst] * 300, NOW)
    yield audit_page("Audit", [entry] * 99)
    yield history_page(worst, [attempt] * 99, [entry] * 99)
    yield slots_page(slots, "A note.")
    detail = BackupFailed(error="long " * 3000).model_dump_json()
    yield news_post(Notification(kind=NotificationKind.NEWS, detail=detail))


def dataset_messages(folder: Path) -> Iterator[MessageContent]:
    findings = tuple(
        finding(kind, message=HOSTILE, measure=1e300, threshold=-1e300, other=HOSTILE) for kind in FindingKind
    )
    worst = image(1, *findings, source=HOSTILE, caption=HOSTILE, caption_source=HOSTILE, is_caption_automatic=True)
    captions = CaptionStatistics(
        distinct=10**9, median_tokens=1e9, longest_tokens=10**9, too_long=10**9, trigger=HOSTILE, with_trigger=10**9,
        words=tuple(WordCount(word=HOSTILE, images=10**9) for _ in range(50)),
    )  # fmt: skip
    found = report(
        *([worst] * 300),
        image(2, *findings, status="dropped", source=HOSTILE),
        captions=captions,
        refused=tuple(Refused(source=HOSTILE, kind=kind, reason=HOSTILE) for kind in RefusalKind),
        summary=HOSTILE * 20,
        advised_folds=5,
    )
    of = dataset(folder, found, id=10**17, name="x" * 40)
    view = ReportView(
        dataset=of, report=found, file_limit=LIMIT, sheet=1, note=HOSTILE, draft_id=10**17, spec=worst_spec(),
        fit=found.fit(2048),
    )  # fmt: skip
    yield report_card(view)
    yield report_card(dataclasses.replace(view, dataset=dataclasses.replace(of, is_pending=True)))
    yield report_card(dataclasses.replace(view, dataset=dataclasses.replace(of, is_private=True, guests=(OWNER,) * 25)))
    for question in review_questions(found):
        review = ReviewView(
            dataset=of, questions=review_questions(found), question=question, file_limit=LIMIT, note="✓"
        )
        yield question_page(review)
        yield image_page(review, question.images[0])
    yield dataset_list([dataclasses.replace(of, bytes=10**12)] * 10, page=3, count=10**6)
    yield delete_question(of)
    for kind in UploadKind:
        upload = PendingUpload(interaction_id=1, guild_id=1, channel_id=1, owner_id=OWNER, kind=kind, title=HOSTILE)
        why = Unanswered.EXPIRED
        for text in (
            upload_prepared(upload, dataclasses.replace(of, name=HOSTILE), why),
            upload_refused(upload, escape(HOSTILE * 20, 1500), why),
            upload_incomplete(upload),
            upload_failed(upload, why),
        ):
            notification = Notification(
                kind=NotificationKind.ANSWER, detail=text, owner_id=OWNER, draft_id=10**17, dataset_id=10**17
            )
            yield upload_post(notification)


def check_plain(content: MessageContent) -> None:
    """A message in plain text is one that Discord accepts, and each of its buttons has a word."""
    check_limits(content)
    signs = [each.custom_id for each in buttons(content) if isinstance(each, ui.Button) and not each.label]
    assert signs == []


@pytest.fixture(params=sorted(LANGUAGES))
def language(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each language in turn."""
    with speaking(request.param):
        yield request.param


@pytest.mark.usefixtures("language")
def test_messages_about_jobs_are_safe_with_the_worst_content(job_dir: Path) -> None:
    for content in job_messages(job_dir):
        check_limits(content)
        check_plain(plain_text(content))


@pytest.mark.usefixtures("language")
def test_pages_are_safe_with_the_worst_content() -> None:
    for content in pages():
        check_limits(content)
        check_plain(plain_text(content))


@pytest.mark.usefixtures("language")
def test_messages_about_datasets_are_safe_with_the_worst_content(dataset_dir: Path) -> None:
    for content in dataset_messages(dataset_dir):
        check_limits(content)
        check_plain(plain_text(content))
        for button in buttons(content):
            assert DatasetButton.__discord_ui_compiled_template__.fullmatch(button.custom_id), button.custom_id


def test_a_file_outside_of_its_folder_is_not_sent(tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.mkdir()
    (tmp_path / "secret").write_text("token")
    (job / "sheet.png").symlink_to(tmp_path / "secret")
    (job / "chart.png").write_bytes(b"png")
    named = ("sheet.png", "../secret", "/proc/self/environ", "x" * 5000, "chart.png")
    files = [FileToSend(folder=job, path=path, name="a.png") for path in named]

    assert sendable(files, 2**20) == (files[-1],)
    with pytest.raises(FileNotFoundError), opened(files):
        pass


def test_a_layout_that_is_too_long_is_shortened_at_its_longest_text() -> None:
    file = FileToSend(folder=Path(), path="a.png", name="a.png")
    view = layout("short", "long " * 2000, *(image_gallery(file, "🜲" * 900) for _ in range(8)))
    parts, characters, size = weight(view)
    assert (parts, characters <= MAX_CHARACTERS, size <= MAX_BYTES) == (10, True, True)
    texts = [item.content for item in view.children if isinstance(item, ui.TextDisplay)]
    assert texts[0] == "short"
    assert texts[1].endswith("…")
