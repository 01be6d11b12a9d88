"""Event files as the bot reads them: torn, flooded, full of garbage."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.runners.events import MAX_READ_BYTES, read_events
from tests.bot.fakes import finished, started
from trainer.protocol.events import MAX_LINE_BYTES


def test_a_torn_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    whole = started(1).model_dump_json().encode() + b"\n"
    path = tmp_path / "events.jsonl"
    for cut in range(len(whole)):
        path.write_bytes(whole + whole[:cut])
        said = read_events(tmp_path, 0)
        assert (len(said.lines), said.end) == (1, len(whole))
    path.write_bytes(whole * 2)
    assert [line.end for line in read_events(tmp_path, len(whole)).lines] == [2 * len(whole)]


def test_a_line_that_is_no_event_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [b'{"type": "sang", "seq": 1}', b"\xff\x00", b"", finished(2).model_dump_json().encode()]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    said = read_events(tmp_path, 0)

    assert [line.event.seq for line in said.lines] == [2]
    (warning,) = caplog.records
    assert "2 lines are no events" in warning.message


def test_a_flood_is_read_in_parts_and_nothing_of_it_is_missed(tmp_path: Path) -> None:
    line = started(1).model_dump_json().encode() + b"\n"
    count = 3 * MAX_READ_BYTES // len(line)
    (tmp_path / "events.jsonl").write_bytes(line * count)
    read = offset = 0
    while (said := read_events(tmp_path, offset)).end > offset:
        assert said.end - offset <= MAX_READ_BYTES
        read, offset = read + len(said.lines), said.end
    assert read == count


@pytest.mark.parametrize("garbage", [b"\xff" * 50_000_000, b"\0\r" * 25_000_000, b'{"' + b"a" * 5_000_000])
def test_garbage_without_an_end_is_passed_over(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(garbage)
    offset = 0
    while (said := read_events(tmp_path, offset)).end > offset:
        offset = said.end
    assert len(garbage) - offset <= MAX_LINE_BYTES
    with path.open("ab") as file:
        file.write(b"\n" + finished(2).model_dump_json().encode() + b"\n")
    said = read_events(tmp_path, offset)
    assert [each.event.seq for each in said.lines] == [2]
    assert said.end == path.stat().st_size


def test_no_file_is_no_events(tmp_path: Path) -> None:
    said = read_events(tmp_path, 0)
    assert (said.lines, said.end) == ((), 0)
