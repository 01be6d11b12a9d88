"""Events of version 1 can be read; anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


#: The paths of events, and an event with each; those that early events of version 1 lack have a default.
PATHS = {"path", "sheet", "chart", "report", "comparison", "checkpoint", "augmentation_sheet"}
LATER = {"started": {"augmentation_sheet": "a.png"}, "finished": {"report": "a.html"}, "tested": {"chart": "a.png"}}
#: Outside of its folder, or nothing that a file is called.
NOT_INSIDE = ("/proc/self/environ", "../../../etc/passwd", "samples/../../x", "", "a\0b", "a\nb", "x" * 5000)


def _places(value: object) -> Iterator[dict[str, object]]:
    """Every object in a value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _places(part)


@pytest.mark.parametrize("path", NOT_INSIDE)
def test_a_path_that_leaves_the_job_folder_is_no_event(path: str) -> None:
    changed = set()
    for line in LINES:
        content = json.loads(line)
        content |= LATER.get(content["type"], {})
        for place in _places(content):
            for name in place.keys() & PATHS:
                kept, place[name] = place[name], path
                with pytest.raises(ValidationError):
                    parse_event(json.dumps(content))
                place[name] = kept
                changed.add(name)
        parse_event(json.dumps(content))
    assert changed == PATHS


@pytest.mark.parametrize("path", NOT_INSIDE)
def test_a_report_names_only_files_of_its_folder(path: str) -> None:
    content = json.loads((GOLDEN / "report-v1.json").read_text(encoding="utf-8"))
    image = content["images"][0]
    for place, changed in (
        *((image, {name: path}) for name in ("path", "thumbnail", "mask")),
        *((content, {name: [path]}) for name in ("sheets", "pages")),
    ):
        before = dict(place)
        place.update(changed)
        with pytest.raises(ValidationError):
            DatasetReport.model_validate(content)
        place.clear()
        place.update(before)


def test_a_report_of_version_1_can_be_read() -> None:
    content = json.loads((GOLDEN / "report-v1.json").read_text(encoding="utf-8"))

    report = DatasetReport.model_validate(content)

    assert holds(json.loads(report.model_dump_json()), content)
