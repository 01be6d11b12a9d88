"""Cards, reviews and lists of datasets: what they say, and Discord's limits whatever stands in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from discord import ui

from bot.datasets import Dataset
from bot.datasets.decisions import ToReview, is_settled, to_review, with_caption, with_decision, with_reviewed
from bot.ui.dataset_buttons import DatasetButton
from bot.ui.datasets import Shown, dataset_list, delete_question, report_card, report_file
from bot.ui.layout import MAX_BYTES, MAX_CHARACTERS, MAX_PARTS, MessageContent, weight
from bot.ui.review import review_page
from tests.bot.ui.examples import NOW, OWNER
from tests.bot.ui.test_layouts import HOSTILE, alt_texts, text_of
from trainer.protocol.edits import Edits
from trainer.protocol.report import (
    Bucket,
    CaptionStatistics,
    Counts,
    DatasetReport,
    Finding,
    FindingKind,
    Image,
    RefusalKind,
    Refused,
    Split,
    WordCount,
)
from trainer.protocol.spec import make_spec

LIMIT = 10 * 1024 * 1024


def finding(kind: FindingKind = FindingKind.BLUR, action: Any = "kept", **changes: Any) -> Finding:
    return Finding(kind=kind, action=action, message="the edges are wide", **changes)


def image(number: int, *findings: Finding, **changes: Any) -> Image:
    known: dict[str, Any] = {
        "source": f"fox.zip!{number}.png", "status": "kept", "split": Split.TRAIN, "caption": "a fox",
        "pixels_sha256": f"{number:064x}", "thumbnail": f"thumbnails/{number}.jpg", "findings": findings,
    }  # fmt: skip
    return Image(**{**known, **changes})


def report(*images: Image, **changes: Any) -> DatasetReport:
    kept = sum(each.status == "kept" for each in images)
    counts = Counts(
        images=len(images), kept=kept, dropped=len(images) - kept, refused=0, train=kept, validation=0, test=0,
        captioned=kept, automatic=sum(each.is_caption_automatic for each in images),
    )  # fmt: skip
    known: dict[str, Any] = {
        "digest": "d", "counts": counts, "summary": "Foxes.", "images": images, "resolution": 512,
        "sheets": ("sheets/1.png", "sheets/2.png", "sheets/3.png"),
    }  # fmt: skip
    return DatasetReport(**{**known, **changes})


def dataset(folder: Path, found: DatasetReport, **changes: Any) -> Dataset:
    known: dict[str, Any] = {
        "id": 12, "guild_id": 1, "owner_id": OWNER, "name": "fox", "sha256": "ab" * 32, "folder": folder,
        "earlier": "", "edits": Edits(), "is_pending": False, "counts": found.counts, "summary": found.summary,
        "created_at": NOW,
    }  # fmt: skip
    return Dataset(**{**known, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sheets/1.png", "sheets/2.png", "sheets/3.png", "thumbnails/1.jpg", "thumbnails/2.jpg", "report.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
    return tmp_path


def shown(folder: Path, found: DatasetReport, **changes: Any) -> Shown:
    of = {key: changes.pop(key) for key in ("edits", "is_pending") if key in changes}
    return Shown(dataset=dataset(folder, found, **of), report=found, file_limit=LIMIT, **changes)


def ids(content: MessageContent) -> list[str]:
    found = [item for item in content.layout.walk_children() if isinstance(item, DatasetButton)]
    return [str(item.item.custom_id) for item in found]


def labels(content: MessageContent) -> list[str | None]:
    found = [item for item in content.layout.walk_children() if isinstance(item, DatasetButton)]
    return [item.item.label for item in found if item.item.label]


# -- the card ------------------------------------------------------------------------------------------------------


def test_a_card_says_what_was_found_how_it_is_split_captioned_and_cropped(folder: Path) -> None:
    captions = CaptionStatistics(
        distinct=2, median_tokens=4, longest_tokens=90, too_long=1, trigger="ohwx", with_trigger=1,
        words=(WordCount(word="fox", images=2), WordCount(word="snow", images=1)),
    )  # fmt: skip
    buckets = (
        Bucket(width=512, height=512, images=1, mean_cropped=0.03),
        Bucket(width=448, height=576, images=2, mean_cropped=0.124),
    )
    found = report(
        image(1, finding(), finding(FindingKind.TOO_DARK)),
        image(2, finding()),
        image(3, finding(FindingKind.CORRUPT, "dropped"), status="dropped", pixels_sha256=None),
        captions=captions,
        buckets=buckets,
        advised_folds=5,
        refused=(Refused(source="a", kind=RefusalKind.NESTED_ARCHIVE, reason="b"),),
    )
    text = text_of(report_card(shown(folder, found)))
    assert "🖼️ fox · 2 pictures\n-# of <@555> · handed in <t:1772366400:R>" in text
    assert "Dropped: 1 corrupt\nTo look at: 2 blur, 1 too dark\nNot opened: 1 nested archive" in text
    assert "Split: 2 train / 0 validation / 0 test" in text
    assert "cross-validation in 5 parts" in text
    assert (
        "Captions: 2 of 2, 2 different · 4 tokens, the longest 90, 1 too long · “ohwx” in 1 · fox ×2, snow ×1" in text
    )
    assert "trained at 512 px, share cut away: 2 at 448×576 (12%), 1 at 512×512 (3%)" in text


def test_a_card_without_findings_says_so_and_offers_no_review(folder: Path) -> None:
    content = report_card(shown(folder, report(image(1))))
    assert "Nothing was found that would need a look." in text_of(content)
    assert labels(content) == ["Download report"]


def test_sheets_turn_within_their_number_and_have_words(folder: Path) -> None:
    found = report(image(1))
    assert ids(report_card(shown(folder, found)))[:2] == ["ds:12:sheet:0", "ds:12:sheet:1"]
    last = report_card(shown(folder, found, sheet=2, draft_id=7, spec=make_spec({"name": "fox", "dataset": "x"})))
    assert ids(last)[:2] == ["ds:12:sheet:1d7", "ds:12:sheet:3d7"]
    buttons = [item.item for item in last.layout.walk_children() if isinstance(item, DatasetButton)]
    assert [each.disabled for each in buttons[:2]] == [False, True]
    assert alt_texts(last)[0] == (
        "Contact sheet 3 of 3 of fox: its pictures with their numbers, 1 train / 0 validation / 0 test, then 0 dropped."
    )
    assert report_card(shown(folder, found, sheet=99)).files == ()


def test_a_request_asks_before_anything_is_queued(folder: Path) -> None:
    spec = make_spec({"name": "red-fox", "dataset": "x", "training": {"epochs": 3}})
    content = report_card(shown(folder, report(image(1, finding())), draft_id=7, spec=spec))
    assert "**red-fox** · 3 epochs, early stop · base tiny" in text_of(content)
    assert "Nothing is queued yet. **Go on** with this dataset?" in text_of(content)
    assert labels(content) == ["Fix: review 1 finding", "Download report", "Go on", "Cancel"]
    assert ids(content)[-2:] == ["ds:12:go:7", "ds:12:cancel:7"]


def test_a_sheet_that_the_server_does_not_take_is_left_out(folder: Path) -> None:
    found = report(image(1))
    content = report_card(dataclasses.replace(shown(folder, found), file_limit=50))
    assert (content.files, alt_texts(content)) == ((), [])


def test_a_report_goes_whole_if_it_may_else_in_words_else_not_at_all(folder: Path) -> None:
    of = dataset(folder, report(image(1)))
    packed = folder / "report.zip"
    packed.write_bytes(b"x" * 1000)
    chosen = [report_file(of, packed, limit) for limit in (1000, 999, 99)]
    assert [each and each.name for each in chosen] == ["fox-report.zip", "fox-report.md", None]


# -- the review ----------------------------------------------------------------------------------------------------


def test_what_can_be_decided_is_offered_for_review(folder: Path) -> None:
    copy = finding(FindingKind.EXACT_DUPLICATE, "dropped")
    found = report(
        image(1),
        image(2, finding()),
        image(3, finding(FindingKind.CORRUPT, "dropped"), status="dropped", pixels_sha256=None),
        image(4, copy, status="dropped", pixels_sha256=f"{1:064x}"),
        image(5, finding(FindingKind.NEAR_DUPLICATE, "dropped"), status="dropped"),
        image(6, is_caption_automatic=True),
        # Its other half was dropped by somebody, so this one can be told apart.
        image(7, copy, status="dropped"),
    )
    assert [each.number for each in to_review(found)] == [2, 5, 6, 7]


def test_a_page_shows_measures_decisions_and_whose_caption_it_is(folder: Path) -> None:
    found = report(
        image(1, finding(measure=1.523, threshold=1.0, other="fox.zip!9.png"), caption_source="fox.zip!1.txt"),
        image(2, is_caption_automatic=True, caption_source="blip"),
    )
    pictures = to_review(found)
    edits = with_decision(Edits(), pictures[0].sha256, "drop")
    first = review_page(dataset(folder, found, edits=edits), pictures, 0, file_limit=LIMIT)
    text = text_of(first)
    assert "Review of fox · 1 of 2\n**Picture 1** · fox.zip!1.png" in text
    assert "• **blur** · kept: the edges are wide (measured 1.52, limit 1) · other: fox.zip!9.png" in text
    assert "Caption: a fox\n-# 2 words · fox.zip!1.txt" in text
    assert "Decided: **drop**" in text
    assert "1 left to decide" in text
    assert labels(first) == ["Keep", "Drop", "Edit caption", "Done"]
    assert [file.name for file in first.files] == ["picture-1.jpg"]
    assert alt_texts(first) == ["Picture 1, fox.zip!1.png. Found: blur. Caption: a fox"]

    edits = with_reviewed(edits, pictures[1].sha256)
    second = review_page(dataset(folder, found, edits=edits), pictures, 1, file_limit=LIMIT)
    assert "-# 2 words · blip · looked at" in text_of(second)
    assert "All decided" in text_of(second)
    assert "Looks right" in labels(second)
    edits = with_caption(edits, pictures[1].sha256, "")
    assert "No caption." in text_of(review_page(dataset(folder, found, edits=edits), pictures, 1, file_limit=LIMIT))


@pytest.mark.parametrize(
    ("kinds", "is_automatic", "decision", "is_written", "is_reviewed", "is_settled_now"),
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
def test_a_picture_is_settled_once_all_about_it_is_decided(
    kinds: list[FindingKind],
    is_automatic: bool,
    decision: Any,
    is_written: bool,
    is_reviewed: bool,
    is_settled_now: bool,
) -> None:
    (each,) = to_review(report(image(1, *map(finding, kinds), is_caption_automatic=is_automatic)))
    edits = Edits() if decision is None else with_decision(Edits(), each.sha256, decision)
    edits = with_caption(edits, each.sha256, "words") if is_written else edits
    edits = with_reviewed(edits, each.sha256) if is_reviewed else edits
    assert is_settled(each, edits) is is_settled_now


def test_one_picture_alone_has_no_neighbours_and_ids_that_differ(folder: Path) -> None:
    found = report(image(1, finding(), thumbnail=None, is_caption_automatic=True))
    content = review_page(dataset(folder, found), to_review(found), 0, file_limit=LIMIT)
    assert len(set(ids(content))) == len(ids(content)) == 7
    assert content.files == ()


# -- limits --------------------------------------------------------------------------------------------------------


def everything(folder: Path) -> list[MessageContent]:
    """Each layout with the worst that it can be given."""
    findings = tuple(
        Finding(kind=kind, action="kept", message=HOSTILE, measure=1e300, threshold=-1e300, other=HOSTILE)
        for kind in FindingKind
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
        buckets=tuple(Bucket(width=2048, height=512, images=n, mean_cropped=1) for n in range(100)),
        summary=HOSTILE * 20,
        advised_folds=5,
    )
    of = dataset(folder, found, id=10**17, name="x" * 40, owner_id=OWNER)
    spec = make_spec({"name": "x" * 40, "dataset": "x", "preset": HOSTILE[:60], "base": {"source": HOSTILE[:500]}})
    pictures: tuple[ToReview, ...] = to_review(found)
    full = Shown(dataset=of, report=found, file_limit=LIMIT, sheet=1, note=HOSTILE, draft_id=10**17, spec=spec)
    return [
        report_card(full),
        report_card(dataclasses.replace(full, dataset=dataclasses.replace(of, is_pending=True))),
        review_page(of, pictures, 7, file_limit=LIMIT, note="✓"),
        dataset_list([(of, 10**12)] * 10, page=3, count=10**6),
        delete_question(of),
    ]


def test_no_layout_breaks_a_limit_whatever_stands_in_it(folder: Path) -> None:
    for content in everything(folder):
        parts, characters, size = weight(content.layout)
        assert (parts <= MAX_PARTS, characters <= MAX_CHARACTERS, size <= MAX_BYTES) == (True, True, True)
        assert all(len(alt or "") <= 1024 for alt in alt_texts(content))
        assert len(set(ids(content))) == len(ids(content))
        for row in (item for item in content.layout.walk_children() if isinstance(item, ui.ActionRow)):
            assert len(row.children) <= 5
        for custom_id in ids(content):
            assert len(custom_id) <= 100
            assert DatasetButton.__discord_ui_compiled_template__.fullmatch(custom_id), custom_id


def test_strangers_words_call_nobody_and_draw_nothing(folder: Path) -> None:
    for content in everything(folder):
        text = text_of(content).replace(f"<@{OWNER}>", "")
        for forbidden in ("@everyone", "<@", "<#3>", "**bold**", " [x](", "\n# big"):
            assert forbidden not in text, (forbidden, text)
