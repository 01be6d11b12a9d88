"""The summary of a report, and the errors for sources without usable images, in golden files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.golden import check_golden
from tests.trainer.report.sample_reports import count, found, report_image, report_of, statistics
from trainer.dataset.captions.labels import ImageLabels
from trainer.dataset.images.image_record import Assessment, ImageRecord
from trainer.dataset.preparing.summary import nothing_to_train_on, summarize
from trainer.protocol.report import FindingKind, Image, RefusalKind, Refused, Split

GOLDEN = Path(__file__).parent / "golden"
DROPPED = {kind: (found(kind, "dropped"),) for kind in FindingKind}


def images(number: int, start: int = 1, **fields: Any) -> list[Image]:
    return [image(each, **fields) for each in range(start, start + number)]


def image(number: int, side: Split | None = Split.TRAIN, **fields: Any) -> Image:
    """Large enough for every base."""
    return report_image(number, side, **({"width": 1200, "height": 1200} | fields))


def summary(held: list[Image], **fields: Any) -> str:
    refused = fields.get("refused", ())
    return summarize(report_of(held, counts=count(held, len(refused)), **fields))


def refused_as(*kinds: RefusalKind) -> tuple[Refused, ...]:
    return tuple(Refused(source=f"{kind}.bin", kind=kind, reason="it is odd") for kind in kinds)


def findings(number: int, *kinds: FindingKind, **fields: Any) -> Image:
    return image(number, findings=tuple(found(kind) for kind in kinds), **fields)


CASES: dict[str, str] = {
    "clean": summary([*images(8), *images(2, 9, side=Split.VALIDATION), image(11, Split.TEST)]),
    "to look at": summary(
        [
            *images(10),
            findings(11, FindingKind.BLUR, FindingKind.OUTLIER),
            findings(12, FindingKind.BLUR),
            findings(13, FindingKind.CAPTION_CONTRADICTORY),
        ]
    ),
    "dropped, and by hand": summary(
        [
            *images(10),
            findings(11, FindingKind.BLUR, decision="keep"),
            image(12, None, findings=DROPPED[FindingKind.CORRUPT] + DROPPED[FindingKind.TOO_SMALL]),
            image(13, None, findings=(found(FindingKind.BLUR), *DROPPED[FindingKind.BY_HAND]), decision="drop"),
            *images(2, 14, side=None, findings=DROPPED[FindingKind.EXACT_DUPLICATE]),
        ]
    ),
    "captions": summary(
        [
            *images(6),
            image(7, is_caption_automatic=True),
            findings(8, FindingKind.CAPTION_IDENTICAL),
            findings(9, FindingKind.CAPTION_IDENTICAL),
            findings(10, FindingKind.CAPTION_MISSING, caption=""),
            findings(11, FindingKind.CAPTION_EMPTY, caption=""),
            findings(12, FindingKind.CAPTION_UNREADABLE, caption=""),
        ],
        captions=statistics(too_long=2, trigger="momo", with_trigger=7),
    ),
    "trigger in every caption": summary(images(12), captions=statistics(trigger="momo", with_trigger=12)),
    "one enlarged": summary([*images(11), image(12, width=400, height=400)], resolutions=(512,)),
    "all enlarged": summary(images(12, width=400, height=400), resolutions=(512,)),
    "enlarged for some bases": summary([*images(11, width=800, height=800), image(12, width=600)]),
    "one cropped": summary([*images(11), image(12, width=12000)]),
    "many cropped": summary([*images(4, width=12000), *images(8, 5, width=2000, height=1400)]),
    "an imbalanced class": summary([*images(42, class_name="cat"), *images(7, 43, class_name="dog")]),
    "a class balanced by repeats": summary(
        [*images(42, class_name="cat"), *images(7, 43, class_name="dog", repeats=5)]
    ),
    "a class of few different images": summary(
        [*images(20, class_name="cat"), *images(9, 21, class_name="dog", group=99)]
    ),
    "many small classes": summary(
        [*images(20, class_name="cat"), *(image(30 + n, class_name=f"kind {n}") for n in range(9))]
    ),
    "two images": summary(images(2)),
    "nine images": summary(images(9)),
    "nine images, folds advised": summary(images(9), advised_folds=5),
    "near duplicates, masks and refused files": summary(
        [*images(12, mask="masks/a.png"), *images(3, 13, group=12)],
        refused=refused_as(RefusalKind.LINK, RefusalKind.RATIO, RefusalKind.OVERLAP, RefusalKind.LINK),
    ),
}


def test_the_summary_of_each_kind_of_report() -> None:
    check_golden(GOLDEN / "summary.txt", "\n".join(f"{name}: {text}" for name, text in CASES.items()))


@pytest.mark.parametrize(
    "kind",
    [FindingKind.UNSUPPORTED, FindingKind.NEAR_DUPLICATE, FindingKind.CAPTION_MISSING, FindingKind.CAPTION_TOO_LONG],
)
def test_findings_with_their_own_sentence_do_not_ask_for_a_look(kind: FindingKind) -> None:
    assert "to look at" not in summary(images(12, findings=(found(kind),)))


def test_a_set_of_ten_different_images_is_enough_to_hold_some_back() -> None:
    assert "held back" in summary(images(9))
    assert "held back" not in summary(images(10))


def dropped_record(kind: FindingKind) -> ImageRecord:
    labels = ImageLabels(caption=None, class_name="", repeats=1)
    return ImageRecord(number=1, source="a.png", labels=labels, assessment=Assessment(findings=DROPPED[kind]))


def test_the_error_for_sources_without_usable_images() -> None:
    corrupt, small = dropped_record(FindingKind.CORRUPT), dropped_record(FindingKind.TOO_SMALL)
    errors = [
        nothing_to_train_on(["hf://owner/name"], [], []),
        nothing_to_train_on(["a.png"], [corrupt], []),
        nothing_to_train_on(["a.zip"], [corrupt, small, small], []),
        nothing_to_train_on(["a.zip"], [corrupt, corrupt], []),
        nothing_to_train_on(["a.zip"], [], refused_as(RefusalKind.LINK, RefusalKind.LINK, RefusalKind.DAMAGED)),
        *(nothing_to_train_on(["a", "b"], [], refused_as(kind)) for kind in RefusalKind),
    ]
    check_golden(GOLDEN / "nothing_to_train_on.txt", "\n".join(map(str, errors)))
