"""Answers for a screen reader: the same facts, from top to bottom, without boxes, signs and bars."""

from __future__ import annotations

import re
from pathlib import Path

from discord import ui

from bot.datasets.decisions import review_questions
from bot.queue.domain.job import State
from bot.ui.dataset_cards import report_card
from bot.ui.job_card import job_card
from bot.ui.job_endings import done_post
from bot.ui.job_replies import samples_reply, stop_question
from bot.ui.layout import MessageContent
from bot.ui.plain_text import plain_text
from bot.ui.review_page import ReviewView, question_page
from tests.bot.ui.examples import NOW, context, dataset, finding, finished, image, job, report, sampled
from tests.bot.ui.rendering import alt_texts, check_limits, check_messages, ids, text_of
from tests.bot.ui.test_dataset_cards import view

GOLDEN = Path(__file__).parent / "golden"


def messages(job_dir: Path, dataset_dir: Path) -> dict[str, MessageContent]:
    found = report(image(1, finding()))
    shown = ReviewView(
        dataset=dataset(dataset_dir, found),
        questions=review_questions(found),
        question=review_questions(found)[0],
        file_limit=10**7,
    )
    done = job(state=State.SUCCEEDED, terminal_event=finished())
    return {
        "card": job_card(job(), context(job_dir)),
        "dataset": report_card(view(dataset_dir, found)),
        "review": question_page(shown),
        "samples": samples_reply(job(), context(job_dir), sampled(5)),
        "stop": stop_question(job(), NOW),
        "done": done_post(done, context(job_dir), [sampled(5), finished()]),
    }


def words_of(text: str) -> list[str]:
    """Letters and digits: what is left of a text without signs."""
    return re.findall(r"\w+", text)


def test_plain_answers(job_dir: Path, dataset_dir: Path) -> None:
    plain = {name: plain_text(content) for name, content in messages(job_dir, dataset_dir).items()}
    for content in plain.values():
        check_limits(content)
        assert {type(item) for item in content.layout.children} <= {ui.TextDisplay, ui.ActionRow, ui.File}
        assert not re.search("[█░┌│]", text_of(content))
    check_messages(GOLDEN / "plain_text.txt", plain, job_dir)


def test_nothing_is_left_out(job_dir: Path, dataset_dir: Path) -> None:
    for name, content in messages(job_dir, dataset_dir).items():
        texts, described, pressed = text_of(content), alt_texts(content), ids(content)
        files = [file.name for file in content.files]
        plain = plain_text(content)
        said = words_of(text_of(plain))
        for part in (texts, *described):
            missing = [word for word in words_of(part or "") if word not in said]
            assert not missing, (name, missing, text_of(plain))
        assert ids(plain) == pressed, name
        assert [file.name for file in plain.files] == files
        attached = [item.media.url for item in plain.layout.children if isinstance(item, ui.File)]
        assert attached == [f"attachment://{each}" for each in files], name
