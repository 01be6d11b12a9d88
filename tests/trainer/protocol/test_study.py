"""What a study and the queue that runs its children say to each other: what was written once is read for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.protocol.golden_files import holds
from trainer.protocol.spec import allowed_range
from trainer.protocol.study import (
    ChildEnd,
    ChildState,
    CompareOrder,
    GivenUp,
    KfoldOrder,
    StudyOrder,
    StudyOrderError,
    StudyStep,
    make_study_order,
    read_study_ended,
    read_study_order,
    write_study_ended,
    write_study_order,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "study-v1.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("order", GOLDEN["study_order.json"], ids=lambda order: str(order["kind"]))
def test_an_order_of_version_1_means_the_same_today(tmp_path: Path, order: dict[str, object]) -> None:
    (tmp_path / "study_order.json").write_text(json.dumps(order), encoding="utf-8")
    assert holds(json.loads(read_study_order(tmp_path).model_dump_json()), order)


def test_those_given_up_in_version_1_are_the_same_today(tmp_path: Path) -> None:
    (tmp_path / "study_ended.json").write_text(json.dumps(GOLDEN["study_ended.json"]), encoding="utf-8")
    read = [json.loads(one.model_dump_json()) for one in read_study_ended(tmp_path)]
    assert holds(read, GOLDEN["study_ended.json"]["children"])


@pytest.mark.parametrize("step", GOLDEN["step"])
def test_a_step_of_version_1_means_the_same_today(step: dict[str, object]) -> None:
    assert holds(json.loads(StudyStep.model_validate(step).model_dump_json()), step)


def test_the_golden_file_holds_every_state_of_a_child() -> None:
    assert {row["state"] for step in GOLDEN["step"] for row in step["table"]} == set(ChildState)


@pytest.mark.parametrize(
    "order", [KfoldOrder(folds=3), CompareOrder(vary=("method.rank=4,8",), keep_one_in=None, finishes=False)]
)
def test_an_order_is_read_as_it_was_written(tmp_path: Path, order: StudyOrder) -> None:
    write_study_order(tmp_path, order)
    assert read_study_order(tmp_path) == order


def test_who_is_given_up_is_read_as_it_was_written_and_nobody_is_without_a_file(tmp_path: Path) -> None:
    assert read_study_ended(tmp_path) == ()
    one = ChildEnd(name="c01", end=GivenUp.FAILED, reason="The disk is full.")
    write_study_ended(tmp_path, [one])
    assert read_study_ended(tmp_path) == (one,)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "A study is of kind kfold or compare, not None."),
        ({"kind": ["kfold"]}, "not ['kfold']"),
        ({"kind": "kfold", "folds": 1}, "folds 1 is outside 2 – 20."),
        ({"kind": "compare"}, "vary is missing."),
        ({"kind": "compare", "vary": ["a=1,2"], "keep_one_in": 1}, "keep_one_in 1 is outside 2 – 64."),
        ({"kind": "compare", "vary": ["a=1,2"], "first_look": 1}, "first_look 1 is outside 2 – 1000."),
        (
            {"kind": "compare", "vary": ["a=1,2"], "first_lok": 3},
            "first_lok is not a setting; did you mean first_look?",
        ),
        ({"kind": "kfold", "version": 2}, "version 2 is not one of 1."),
    ],
)
def test_what_is_no_order_is_refused_in_words(content: object, why: str) -> None:
    with pytest.raises(StudyOrderError) as refused:
        make_study_order(content)
    assert why in str(refused.value)


def test_a_damaged_list_of_those_given_up_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "study_ended.json").write_text('{"children": [{"name": "c01", "end": "lost"}]}', encoding="utf-8")
    with pytest.raises(StudyOrderError, match="does not say which runs were given up"):
        read_study_ended(tmp_path)


def test_folds_have_the_range_that_a_split_has() -> None:
    low, high = allowed_range("split.folds")
    assert make_study_order({"kind": "kfold", "folds": int(low)}).kind == "kfold"
    assert make_study_order({"kind": "kfold", "folds": int(high)}).kind == "kfold"
    with pytest.raises(StudyOrderError):
        make_study_order({"kind": "kfold", "folds": int(high) + 1})
