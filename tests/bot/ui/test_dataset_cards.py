"""Report cards, reviews and lists of datasets, and the posts about interrupted uploads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bot.datasets import PendingUpload, UploadKind
from bot.datasets.decisions import images_to_review, is_settled, with_caption, with_decision, with_reviewed
from bot.outbox import Notification, NotificationKind
from bot.queue.planning.estimates import Estimate
from bot.ui.dataset_cards import ReportView, dataset_list, delete_question, report_card, report_file, report_reply
from bot.ui.layout import FileToSend, MessageContent
from bot.ui.review_page import review_page
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
from trainer.protocol.edits import Edits
from trainer.protocol.report import (
    Bucket,
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


def view(folder: Path, found: DatasetReport, **changes: Any) -> ReportView:
    of = {key: changes.pop(key) for key in ("edits", "is_pending") if key in changes}
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
        buckets=(
            Bucket(width=512, height=512, images=1, mean_cropped=0.03),
            Bucket(width=448, height=576, images=2, mean_cropped=0.124),
        ),
        advised_folds=5,
        refused=(Refused(source="a", kind=RefusalKind.NESTED_ARCHIVE, reason="b"),),
    )


# -- the card -----------------------------------------------------------------------------------------------------


def test_the_report_card(dataset_dir: Path) -> None:
    spec = make_spec({"name": "red-fox", "dataset": "x", "training": {"epochs": 3}})
    one = report(image(1, finding()))
    kept = with_decision(Edits(), "0001" * 16, "keep")
    estimate = Estimate(seconds=2880, low_s=2460, high_s=3720, usual_error=0.15, runs=5)
    cards = {
        "with findings": view(dataset_dir, rich_report(), note="These files were uploaded before, as fox."),
        "without findings": view(dataset_dir, report(image(1))),
        "decided": view(dataset_dir, one, edits=kept, is_pending=True),
        "with a draft": view(dataset_dir, one, draft_id=7, spec=spec, estimate=estimate),
        "with a draft of a study": view(dataset_dir, one, draft_id=7, spec=spec, study=KfoldRequest(folds=3)),
    }
    check_messages(GOLDEN / "report_cards.txt", {name: report_card(each) for name, each in cards.items()}, dataset_dir)


def test_sheets_are_turned_within_their_number(dataset_dir: Path) -> None:
    found = report(image(1))
    assert ids(report_card(view(dataset_dir, found)))[:2] == ["ds:12:sheet:0", "ds:12:sheet:1"]

    spec = make_spec({"name": "fox", "dataset": "x"})
    last = report_card(view(dataset_dir, found, sheet=2, draft_id=7, spec=spec))

    assert ids(last)[:2] == ["ds:12:sheet:1d7", "ds:12:sheet:3d7"]
    assert [button.disabled for button in buttons(last)[:2]] == [False, True]
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
        "report as zip": report_reply(of, FileToSend(folder=dataset_dir, path="report.zip", name="fox-report.zip")),
        "report as text": report_reply(of, FileToSend(folder=dataset_dir, path="report.md", name="fox-report.md")),
    }
    check_messages(GOLDEN / "dataset_pages.txt", pages, dataset_dir)


# -- the review ---------------------------------------------------------------------------------------------------


def test_images_that_can_be_decided_are_reviewed() -> None:
    copy = finding(FindingKind.EXACT_DUPLICATE, "dropped")
    found = report(
        image(1),
        image(2, finding()),
        image(3, finding(FindingKind.CORRUPT, "dropped"), status="dropped", pixels_sha256=None),
        image(4, copy, status="dropped", pixels_sha256="0001" * 16),
        image(5, finding(FindingKind.NEAR_DUPLICATE, "dropped"), status="dropped"),
        image(6, is_caption_automatic=True),
        # Unlike image 4, it does not share its hash with a kept image.
        image(7, copy, status="dropped"),
    )
    assert [each.number for each in images_to_review(found)] == [2, 5, 6, 7]


def test_the_pages_of_a_review(dataset_dir: Path) -> None:
    found = report(
        image(1, finding(measure=1.523, threshold=1.0, other="fox.zip!9.png"), caption_source="fox.zip!1.txt"),
        image(2, is_caption_automatic=True, caption_source="blip"),
    )
    images = images_to_review(found)
    dropped = with_decision(Edits(), images[0].sha256, "drop")
    reviewed = with_reviewed(dropped, images[1].sha256)
    uncaptioned = with_caption(reviewed, images[1].sha256, "")

    def page(edits: Edits, index: int) -> Any:
        return review_page(dataset(dataset_dir, found, edits=edits), images, index, file_limit=LIMIT)

    pages = {
        "dropped": page(dropped, 0),
        "automatic caption": page(dropped, 1),
        "reviewed caption": page(reviewed, 1),
        "no caption": page(uncaptioned, 1),
    }
    check_messages(GOLDEN / "review_pages.txt", pages, dataset_dir)
    assert verbs(pages["dropped"]) == ["keep", "drop", "caption", "prev", "next", "done"]
    assert "right" in verbs(pages["automatic caption"])
    assert file_names(pages["dropped"]) == ["image-1.jpg"]


def test_a_single_image_has_no_neighbors_and_distinct_ids(dataset_dir: Path) -> None:
    found = report(image(1, finding(), thumbnail=None, is_caption_automatic=True))
    page = review_page(dataset(dataset_dir, found), images_to_review(found), 0, file_limit=LIMIT)
    assert len(set(ids(page))) == len(ids(page)) == 7
    assert page.files == ()


@pytest.mark.parametrize(
    ("kinds", "is_automatic", "decision", "is_written", "is_reviewed", "expected"),
    [
        ([FindingKind.BLUR], False, None, False, False, False),
        ([FindingKind.BLUR], False, "keep", False, False, True),
        ([FindingKind.BLUR], False, None, True, False, False),
        ([FindingKind.CAPTION_MISSING], False, None, False, False, False),
        ([FindingKind.CAPTION_MISSING], False, None, True, False, True),
        ([FindingKind.CAPTION_MISSING], False, "keep", False, False, True),
        ([FindingKind.CAPTION_MISSING, FindingKind.BLUR], False, None, True, False, False),
        ([], True, None, False, False, False),
        ([], True, None, False, True, True),
        ([], True, None, True, False, True),
        ([], True, "drop", False, False, True),
        ([FindingKind.BLUR], True, "keep", False, False, False),
        ([FindingKind.BLUR], True, None, False, True, False),
    ],
)
def test_an_image_is_settled_once_everything_about_it_is_decided(
    kinds: list[FindingKind], is_automatic: bool, decision: Any, is_written: bool, is_reviewed: bool, expected: bool
) -> None:
    (each,) = images_to_review(report(image(1, *map(finding, kinds), is_caption_automatic=is_automatic)))
    edits = Edits() if decision is None else with_decision(Edits(), each.sha256, decision)
    edits = with_caption(edits, each.sha256, "words") if is_written else edits
    edits = with_reviewed(edits, each.sha256) if is_reviewed else edits
    assert is_settled(each, edits) is expected


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
    post = upload_post(notification, "3fa8c1d2")
    assert post.mentions == OWNER
    assert ids(post) == expected
