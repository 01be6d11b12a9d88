"""What is told of files that an earlier bot had taken in: it calls their owner only, and fits whatever stands in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.datasets import PendingUpload, UploadKind
from bot.outbox import Notice, NoticeKind
from bot.ui.layout import MAX_BYTES, MAX_CHARACTERS, MAX_PARTS, weight
from bot.ui.uploads import examined_words, failed_words, not_arrived_words, refused_words, upload_post
from tests.bot.ui.examples import OWNER
from tests.bot.ui.test_dataset_layouts import dataset, report
from tests.bot.ui.test_layouts import HOSTILE, labels, text_of


def upload(kind: UploadKind) -> PendingUpload:
    return PendingUpload(interaction_id=1, guild_id=1, channel_id=1, owner_id=OWNER, kind=kind, title=HOSTILE)


@pytest.mark.parametrize("kind", UploadKind)
def test_strangers_words_call_nobody_and_fit(kind: UploadKind) -> None:
    files = upload(kind)
    for words in (
        examined_words(files, dataset(Path(), report(), name=HOSTILE)),
        refused_words(files, HOSTILE * 20),
        not_arrived_words(files),
        failed_words(files),
    ):
        notice = Notice(
            kind=NoticeKind.UPLOAD, job_id=0, detail=words, owner_id=OWNER, draft_id=10**17, dataset_id=10**17
        )
        post = upload_post(notice, "3fa8c1d2")
        parts, characters, size = weight(post.layout)
        assert (parts <= MAX_PARTS, characters <= MAX_CHARACTERS, size <= MAX_BYTES) == (True, True, True)
        assert post.mentions == OWNER
        text = text_of(post)
        assert text.startswith(f"<@{OWNER}> I was restarted")
        assert "-# Darkroom · 3fa8c1d2" in text
        assert "<@" not in text.replace(f"<@{OWNER}>", "")
        assert "@everyone" not in text
        assert labels(post) == ["Show my request"]


def test_no_button_is_shown_where_nothing_waits() -> None:
    words = not_arrived_words(upload(UploadKind.FINETUNE))
    post = upload_post(Notice(kind=NoticeKind.UPLOAD, job_id=0, detail=words, owner_id=OWNER), "3fa8c1d2")
    assert labels(post) == []
