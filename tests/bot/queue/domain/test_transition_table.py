"""The table of states and moves in docs/reliability.md is the one of the code."""

from __future__ import annotations

from pathlib import Path

from bot.queue import ENDS, TRANSITIONS, State

PAGE = Path(__file__).parents[4] / "docs" / "reliability.md"


def table() -> str:
    rows = [f"| from \\ to | {' | '.join(State)} |", f"|---|{':-:|' * len(State)}"]
    for before in State:
        cells = ("●" if after in TRANSITIONS[before] else "" for after in State)
        rows.append(f"| {before} | {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_page_shows_the_moves_of_the_code() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")


def test_every_state_can_be_reached_and_every_job_can_end() -> None:
    reached, ending = {State.QUEUED}, set(ENDS)
    for _ in State:
        reached |= {after for before in reached for after in TRANSITIONS[before]}
        ending |= {before for before in State if TRANSITIONS[before] & ending}
    assert reached == ending == set(State)
