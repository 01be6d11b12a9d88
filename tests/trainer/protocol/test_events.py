"""Events of version 1 can be read; anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from tests.trainer.protocol.golden_files import holds
from trainer.protocol.events import Event, parse_event
from trainer.protocol.report import DatasetReport

GOLDEN = Path(__file__).parent / "golden"
LINES = (GOLDEN / "events-v1.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_version_1_can_be_read(line: str) -> None:
    assert holds(json.loads(parse_event(line).model_dump_json()), json.loads(line))


def test_the_golden_file_has_every_kind_of_event() -> None:
    union, _ = get_args(Event)

    assert {json.loads(line)["type"] for line in LINES} == {
        kind.model_fields["type"].default for kind in get_args(union)
    }


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json",
        b'{"seq":1,"time":0.0,"type":"shrug"}',
        b'{"seq":1,"time":0.0,"type":"phase_began","phase":"loading","mood":"good"}',
        b'{"seq":0,"time":0.0,"type":"phase_began","phase":"loading"}',
    ],
)
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(ValidationError):
        parse_event(line)


def test_a_report_of_version_1_can_be_read() -> None:
    content = json.loads((GOLDEN / "report-v1.json").read_text(encoding="utf-8"))

    report = DatasetReport.model_validate(content)

    assert holds(json.loads(report.model_dump_json()), content)
