"""The files and the answer that a study and its queue exchange: every version that was written can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden import check_sentences
from tests.trainer.protocol.golden_files import holds
from trainer.exchange.study_dir import read_study_ended, read_study_request, write_study_ended, write_study_request
from trainer.protocol.spec import allowed_range
from trainer.protocol.study import (
    ChildOutcome,
    ChildState,
    CompareRequest,
    EndedChild,
    KfoldRequest,
    StudyRequest,
    StudyRequestError,
    StudyStep,
    make_study_request,
)

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "study-v1.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("request_", GOLDEN["study_request.json"], ids=lambda request_: str(request_["kind"]))
def test_a_request_of_version_1_is_read_unchanged(tmp_path: Path, request_: dict[str, object]) -> None:
    (tmp_path / "study_request.json").write_text(json.dumps(request_), encoding="utf-8")
    assert holds(json.loads(read_study_request(tmp_path).model_dump_json()), request_)


def test_ended_children_of_version_1_are_read_unchanged(tmp_path: Path) -> None:
    (tmp_path / "study_ended.json").write_text(json.dumps(GOLDEN["study_ended.json"]), encoding="utf-8")
    read = [json.loads(one.model_dump_json()) for one in read_study_ended(tmp_path)]
    assert holds(read, GOLDEN["study_ended.json"]["children"])


@pytest.mark.parametrize("step", GOLDEN["step"])
def test_a_step_of_version_1_is_read_unchanged(step: dict[str, object]) -> None:
    assert holds(json.loads(StudyStep.model_validate(step).model_dump_json()), step)


def test_the_golden_file_holds_every_state_of_a_child() -> None:
    assert {row["state"] for step in GOLDEN["step"] for row in step["table"]} == set(ChildState)


@pytest.mark.parametrize(
    "request_", [KfoldRequest(folds=3), CompareRequest(vary=("method.rank=4,8",), keep_one_in=None, finishes=False)]
)
def test_a_request_is_read_as_it_was_written(tmp_path: Path, request_: StudyRequest) -> None:
    write_study_request(tmp_path, request_)
    assert read_study_request(tmp_path) == request_


def test_ended_children_are_read_as_they_were_written_and_are_none_without_a_file(tmp_path: Path) -> None:
    assert read_study_ended(tmp_path) == ()
    one = EndedChild(name="c01", outcome=ChildOutcome.FAILED, reason="The disk is full.")
    write_study_ended(tmp_path, [one])
    assert read_study_ended(tmp_path) == (one,)


#: Requests that are refused; the golden file has the sentence of each.
REFUSED: list[object] = [
    None,
    {"kind": ["kfold"]},
    {"kind": "kfold", "folds": 1},
    {"kind": "compare"},
    {"kind": "compare", "vary": ["a=1,2"], "keep_one_in": 1},
    {"kind": "compare", "vary": ["a=1,2"], "first_look": 1},
    {"kind": "compare", "vary": ["a=1,2"], "first_lok": 3},
    {"kind": "kfold", "version": 2},
]


def test_invalid_requests_are_refused_with_the_reason() -> None:
    sentences = {}
    for content in REFUSED:
        with pytest.raises(StudyRequestError) as refusal:
            make_study_request(content)
        sentences[json.dumps(content)] = refusal.value
    check_sentences(FOLDER / "refused_study_requests.txt", sentences)


def test_a_damaged_list_of_ended_children_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study_ended.json").write_text('{"children": [{"name": "c01", "end": "lost"}]}', encoding="utf-8")
    with pytest.raises(StudyRequestError):
        read_study_ended(tmp_path)


def test_folds_have_the_same_range_as_in_a_split() -> None:
    low, high = allowed_range("split.folds")
    assert make_study_request({"kind": "kfold", "folds": int(low)}).kind == "kfold"
    assert make_study_request({"kind": "kfold", "folds": int(high)}).kind == "kfold"
    with pytest.raises(StudyRequestError):
        make_study_request({"kind": "kfold", "folds": int(high) + 1})
