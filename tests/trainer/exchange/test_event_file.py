"""Event files as the bot reads them: torn, flooded, or full of garbage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bot.fake_events import finished, started
from trainer.exchange.event_file import MAX_READ_BYTES, read_events
from trainer.protocol.events import MAX_LINE_BYTES


def test_a_torn_line_is_left_until_it_is_complete(tmp_path: Path) -> None:
    whole = started(1).model_dump_json().encode() + b"\n"
    path = tmp_path / "events.jsonl"
    for cut in range(len(whole)):
        path.write_bytes(whole + whole[:cut])
        batch = read_events(tmp_path, 0)
        assert (len(batch.lines), batch.end) == (1, len(whole))
    path.write_bytes(whole * 2)
    assert [line.end for line in read_events(tmp_path, len(whole)).lines] == [2 * len(whole)]


def test_a_line_that_is_not_an_event_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [b'{"type": "sang", "seq": 1}', b"\xff\x00", b"", finished(2).model_dump_json().encode()]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    batch = read_events(tmp_path, 0)

    assert [line.event.seq for line in batch.lines] == [2]
    assert len(caplog.records) == 1


def test_a_large_file_is_read_in_parts_and_no_event_is_missed(tmp_path: Path) -> None:
    line = started(1).model_dump_json().encode() + b"\n"
    count = 3 * MAX_READ_BYTES // len(line)
    (tmp_path / "events.jsonl").write_bytes(line * count)
    read = offset = 0
    while (batch := read_events(tmp_path, offset)).end > offset:
        assert batch.end - offset <= MAX_READ_BYTES
        read, offset = read + len(batch.lines), batch.end
    assert read == count


@pytest.mark.parametrize("garbage", [b"\xff" * 50_000_000, b"\0\r" * 25_000_000, b'{"' + b"a" * 5_000_000])
def test_garbage_without_a_line_break_is_skipped(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(garbage)
    offset = 0
    while (batch := read_events(tmp_path, offset)).end > offset:
        offset = batch.end
    assert len(garbage) - offset <= MAX_LINE_BYTES
    with path.open("ab") as file:
        file.write(b"\n" + finished(2).model_dump_json().encode() + b"\n")
    batch = read_events(tmp_path, offset)
    assert [each.event.seq for each in batch.lines] == [2]
    assert batch.end == path.stat().st_size


def test_a_missing_file_has_no_events(tmp_path: Path) -> None:
    batch = read_events(tmp_path, 0)
    assert (batch.lines, batch.end) == ((), 0)
