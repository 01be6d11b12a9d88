"""Report cards, reviews and lists of datasets, and the posts about interrupted uploads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bot.datasets import PendingUpload, UploadKind
from bot.datasets.decisions import (
    ReviewQuestion,
    review_questions,
    undecided_images,
    with_caption,
    with_decisions,
    with_reviewed,
)
from bot.outbox import Notification, NotificationKind
from bot.queue.planning.estimates import Estimate
from bot.ui.dataset_cards import (
    ReportView,
    captions_card,
    dataset_list,
    delete_question,
    report_card,
    report_file,
    report_reply,
)
from bot.ui.layout import FileToSend, MessageContent
from bot.ui.review_page import ReviewView, image_page, question_page
from bot.ui.training_plan import StudyPlan
from bot.ui.upload_posts import (
    Unanswered,
    unanswered_words,
    upload_failed,
    upload_incomplete,
    upload_post,
    upload_prepared,
    upload_refused,
)
from tests.bot.ui.examples import LIMIT, OWNER, dataset, finding, image, report
from tests.bot.ui.rendering import alt_texts, buttons, check_messages, file_names, ids, verbs
from trainer.protocol.bucket_shapes import fit_images
from trainer.protocol.edits import Edits
from trainer.protocol.report import (
    CaptionStatistics,
    DatasetReport,
    FindingKind,
    RefusalKind,
    Refused,
    WordCount,
)
from trainer.protocol.spec import make_spec
from trainer.protocol.study import KfoldRequest

GOLDEN = Path(__file__).parent / "golden"


_OF_DATASET = ("edits", "is_pending", "is_private", "guests")


def view(folder: Path, found: DatasetReport, **changes: Any) -> ReportView:
    of = {key: changes.pop(key) for key in _OF_DATASET if key in changes}
    return ReportView(dataset=dataset(folder, found, **of), report=found, file_limit=LIMIT, **changes)


def rich_report() -> DatasetReport:
    captions = CaptionStatistics(
        distinct=2, median_tokens=4, longest_tokens=90, too_long=1, trigger="ohwx", with_trigger=1,
        words=(WordCount(word="fox", images=2), WordCount(word="snow", images=1)),
    )  # fmt: skip
    return report(
        image(1, finding(), finding(FindingKind.TOO_DARK)),
        image(2, finding()),
        image(3, finding(FindingKind.CORRUPT, "dropped"), status="dropped", pixels_sha256=None),
        captions=captions,
        advised_folds=5,
        refused=(Refused(source="a", kind=RefusalKind.NESTED_ARCHIVE, reason="b"),),
    )


# -- the card -----------------------------------------------------------------------------------------------------


def test_the_report_card(dataset_dir: Path) -> None:
    spec = make_spec({"name": "red-fox", "dataset": "x", "training": {"epochs": 3}})
    one = report(image(1, finding()))
    kept = with_decisions(Edits(), ["0001" * 16], "keep")
    estimate = Estimate(seconds=2880, low_s=2460, high_s=3720, usual_error=0.15, runs=5)
    cards = {
        "with findings": view(dataset_dir, rich_report(), note="These files were uploaded before, as fox."),
        "without findings": view(dataset_dir, report(image(1))),
        "of another member": view(dataset_dir, rich_report(), may_change=False),
        "decided": view(dataset_dir, one, edits=kept, is_pending=True),
        "with a draft": view(dataset_dir, one, draft_id=7, spec=spec, estimate=estimate, fit=one.fit(64)),
        "with a draft of a larger base": view(
            dataset_dir,
            one,
            draft_id=7,
            spec=spec,
            fit=fit_images([(300, 300), (2000, 1024), (500, 500)], 1024),
            memory=9 * 2**30,
        ),
        "with a draft of a study": view(
            dataset_dir,
            one,
            draft_id=7,
            spec=spec,
            study=KfoldRequest(folds=3),
            study_plan=StudyPlan(runs=4, seconds=9000, gpus=2, left_h=12.5),
        ),
        "private": view(dataset_dir, one, is_private=True, guests=(8, 9)),
        "private, with a draft of its owner": view(dataset_dir, one, draft_id=7, spec=spec, is_private=True),
        "private, with a draft of a guest": view(
            dataset_dir, one, draft_id=7, spec=spec, is_private=True, is_own=False, may_change=False
        ),
    }
    check_messages(GOLDEN / "report_cards.txt", {name: report_card(each) for name, each in cards.items()}, dataset_dir)


def test_sheets_are_turned_within_their_number(dataset_dir: Path) -> None:
    found = report(image(1))
    assert ids(report_card(view(dataset_dir, found)))[:2] == ["ds:12:sheet:0", "ds:12:sheet:1"]

    spec = make_spec({"name": "fox", "dataset": "x"})
    last = report_card(view(dataset_dir, found, sheet=2, draft_id=7, spec=spec))

    assert ids(last)[:4] == ["ds:12:go:7", "ds:12:edit:7", "ds:12:advanced:7", "ds:12:cancel:7"]
    assert ids(last)[4:6] == ["ds:12:sheet:1d7", "ds:12:sheet:3d7"]
    assert [button.disabled for button in buttons(last)[4:6]] == [False, True]
    assert (alt_texts(last)[0] or "").startswith("Contact sheet 3 of 3 of fox")
    assert report_card(view(dataset_dir, found, sheet=99)).files == ()


def test_a_sheet_that_is_too_large_is_left_out(dataset_dir: Path) -> None:
    card = report_card(dataclasses.replace(view(dataset_dir, report(image(1))), file_limit=50))
    assert (card.files, alt_texts(card)) == ((), [])


def test_the_report_is_sent_in_the_largest_form_that_fits(dataset_dir: Path) -> None:
    of = dataset(dataset_dir, report(image(1)))
    packed = dataset_dir / "report.zip"
    packed.write_bytes(b"x" * 1000)
    chosen = [report_file(of, packed, limit) for limit in (1000, 999, 99)]
    assert [each and each.name for each in chosen] == ["fox-report.zip", "fox-report.md", None]


def test_the_other_pages_about_a_dataset(dataset_dir: Path) -> None:
    of = dataset(dataset_dir, rich_report())
    pages = {
        "list": dataset_list([of], page=0, count=11),
        "empty list": dataset_list([], page=0, count=0),
        "delete": delete_question(of),
        "captions": captions_card(
            dataclasses.replace(of, counts=of.counts.model_copy(update={"captioned": 1, "automatic": 1})),
            can_write=True,
        ),
        "captions without a model": captions_card(of, can_write=False),
        "report as zip": report_reply(of, FileToSend(folder=dataset_dir, path="report.zip", name="fox-report.zip")),
        "report as text": report_reply(of, FileToSend(folder=dataset_dir, path="report.md", name="fox-report.md")),
    }
    check_messages(GOLDEN / "dataset_pages.txt", pages, dataset_dir)


# -- the review ---------------------------------------------------------------------------------------------------


def test_what_is_found_is_decided_by_kind() -> None:
    copy, bare = finding(FindingKind.EXACT_DUPLICATE, "dropped"), finding(FindingKind.CAPTION_MISSING)
    found = report(
        image(1),
        image(2, finding()),
        image(3, finding(FindingKind.CORRUPT, "dropped"), status="dropped", pixels_sha256=None),
        image(4, copy, status="dropped", pixels_sha256="0001" * 16),
        image(5, finding(FindingKind.TOO_DARK, "dropped"), status="dropped"),
        image(6, is_caption_automatic=True),
        # Unlike image 4, it does not share its hash with a kept image.
        image(7, copy, status="dropped"),
        image(8, bare, finding(), is_caption_automatic=True),
        image(9, bare),
        image(10, finding(FindingKind.TOO_DARK), finding()),
    )
    questions = review_questions(found)
    assert {each.key: [image.number for image in each.images] for each in questions} == {
        "too_dark": [10],
        "blur": [2, 8],
        "automatic": [6, 8],
        "caption_missing": [9],
        "dropped_exact_duplicate": [7],
        "dropped_too_dark": [5],
    }
    assert [each.needs_decision for each in questions] == [True, True, True, False, False, False]
    # An image that is in two questions counts once.
    assert undecided_images(questions, Edits()) == 4


def test_the_pages_of_a_question(dataset_dir: Path) -> None:
    found = report(
        *(image(n, finding(measure=1.523, threshold=1.0)) for n in range(1, 13)),
        *(image(n, is_caption_automatic=True, caption_source="blip") for n in (13, 14)),
    )
    blur, automatic = review_questions(found)
    one = with_decisions(Edits(), ["0003" * 16], "drop")
    every = with_decisions(one, [each.sha256 for each in blur.images], "keep")

    def page(edits: Edits, question: ReviewQuestion = blur) -> MessageContent:
        of = dataset(dataset_dir, found, edits=edits, is_pending=edits != Edits())
        return question_page(ReviewView(dataset=of, questions=(blur, automatic), question=question, file_limit=LIMIT))

    pages = {
        "open": page(Edits()),
        "with an exception": page(one),
        "decided": page(with_reviewed(every, *(each.sha256 for each in automatic.images))),
        "automatic captions": page(Edits(), automatic),
    }
    check_messages(GOLDEN / "review_questions.txt", pages, dataset_dir)
    assert all(len(set(ids(page))) == len(ids(page)) for page in pages.values())


def test_the_pages_of_an_image(dataset_dir: Path) -> None:
    found = report(
        image(1, finding(measure=1.523, threshold=1.0, other="fox.zip!9.png"), caption_source="fox.zip!1.txt"),
        image(2, is_caption_automatic=True, caption_source="blip"),
        image(3, finding(FindingKind.TOO_DARK, "dropped"), status="dropped"),
    )
    questions = review_questions(found)
    images = [question.images[0] for question in questions]
    dropped = with_decisions(Edits(), [images[0].sha256], "drop")
    reviewed = with_reviewed(dropped, images[1].sha256)
    uncaptioned = with_caption(reviewed, images[1].sha256, "")

    def page(edits: Edits, index: int) -> MessageContent:
        # A question about one image shows the image.
        of = dataset(dataset_dir, found, edits=edits, is_pending=True)
        return question_page(ReviewView(dataset=of, questions=questions, question=questions[index], file_limit=LIMIT))

    pages = {
        "dropped": page(dropped, 0),
        "automatic caption": page(dropped, 1),
        "reviewed caption": page(reviewed, 1),
        "no caption": page(uncaptioned, 1),
        "dropped by its finding": page(reviewed, 2),
    }
    check_messages(GOLDEN / "review_pages.txt", pages, dataset_dir)
    assert verbs(pages["dropped"]) == ["keep", "drop", "caption", "prev", "next", "done"]
    assert verbs(pages["automatic caption"]) == ["right", "drop", "caption", "prev", "next", "done"]
    assert file_names(pages["dropped"]) == ["image-1.jpg"]


def test_an_image_without_a_file_has_distinct_ids(dataset_dir: Path) -> None:
    found = report(*(image(n, finding(), thumbnail=None, is_caption_automatic=True) for n in (1, 2)))
    questions = review_questions(found)
    of = dataset(dataset_dir, found)
    page = image_page(
        ReviewView(dataset=of, questions=questions, question=questions[0], file_limit=LIMIT), questions[0].images[0]
    )
    assert len(set(ids(page))) == len(ids(page)) == 7
    assert page.files == ()


@pytest.mark.parametrize(
    ("kind", "decision", "is_written", "is_reviewed", "expected"),
    [
        (FindingKind.BLUR, None, False, False, False),
        (FindingKind.BLUR, "keep", False, False, True),
        (FindingKind.BLUR, None, True, True, False),
        (FindingKind.CAPTION_MOJIBAKE, None, False, False, False),
        (FindingKind.CAPTION_MOJIBAKE, None, True, False, True),
        (FindingKind.CAPTION_MOJIBAKE, "keep", False, False, True),
        (None, None, False, False, False),
        (None, None, False, True, True),
        (None, None, True, False, True),
        (None, "drop", False, False, True),
        (None, "keep", False, False, False),
    ],
)
def test_an_image_is_settled_once_the_question_about_it_is_answered(
    kind: FindingKind | None, decision: Any, is_written: bool, is_reviewed: bool, expected: bool
) -> None:
    found = () if kind is None else (finding(kind),)
    (question,) = review_questions(report(image(1, *found, is_caption_automatic=kind is None)))
    (each,) = question.images
    edits = Edits() if decision is None else with_decisions(Edits(), [each.sha256], decision)
    edits = with_caption(edits, each.sha256, "words") if is_written else edits
    edits = with_reviewed(edits, each.sha256) if is_reviewed else edits
    assert question.is_settled(each, edits) is expected


# -- uploads ------------------------------------------------------------------------------------------------------


def upload(kind: UploadKind, **changes: Any) -> PendingUpload:
    known = {"interaction_id": 1, "guild_id": 1, "channel_id": 1, "owner_id": OWNER, "kind": kind, "title": "fox.zip"}
    return PendingUpload(**{**known, **changes})


_WHYS = (Unanswered.RESTARTED, Unanswered.EXPIRED, Unanswered.UNREACHABLE)


def test_the_outcomes_of_interrupted_uploads() -> None:
    of = dataset(Path(), report(image(1)))
    texts: dict[str, MessageContent | str] = {}
    for kind in UploadKind:
        texts |= {
            **{f"{kind}, prepared, {why}": upload_prepared(upload(kind), of, why) for why in _WHYS},
            f"{kind}, incomplete": upload_incomplete(upload(kind)),
            f"{kind}, failed": upload_failed(upload(kind), Unanswered.RESTARTED),
        }
    texts["finetune at once, prepared"] = upload_prepared(
        upload(UploadKind.FINETUNE, is_at_once=True), of, Unanswered.RESTARTED
    )
    for why in _WHYS:
        texts[f"refused, {why}"] = upload_refused(upload(UploadKind.IMPORT), "fox.zip contains no images.", why)
    check_messages(GOLDEN / "upload_outcomes.txt", texts)


def test_what_is_posted_in_place_of_an_answer() -> None:
    texts: dict[str, MessageContent | str] = {}
    for why in (Unanswered.EXPIRED, Unanswered.UNREACHABLE):
        texts |= {
            f"carried out, {why}": unanswered_words("`/dataset captions`", why, "", is_carried_out=True),
            f"refused, {why}": unanswered_words("`/job pin`", why, "There is no job #7 here.", is_carried_out=True),
            f"not begun, {why}": unanswered_words("", why, "", is_carried_out=False),
        }
    check_messages(GOLDEN / "unanswered.txt", texts)


@pytest.mark.parametrize(("draft_id", "expected"), [(7, ["ds:12:request:7"]), (0, [])])
def test_an_upload_post_notifies_its_owner_and_shows_a_waiting_draft(draft_id: int, expected: list[str]) -> None:
    notification = Notification(
        kind=NotificationKind.ANSWER, detail="It is ready.", owner_id=OWNER, draft_id=draft_id, dataset_id=12
    )
    post = upload_post(notification)
    assert post.mentions == (OWNER,)
    assert ids(post) == expected
