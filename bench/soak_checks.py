"""Checks the invariants after a soak in the database, the job folders, the locks and the Discord of the soak."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.soak_bot import SETTINGS
from bench.soak_trainer import EVENTS_FILE, OVERLAPS_FILE
from bot.db import DATABASE_FILE
from bot.queue.domain.job import ENDS, TRANSITIONS, State
from bot.runners.local import find_marked
from trainer.protocol.events import EpochEnded, parse_event


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the table."""

    what: str
    figure: str
    #: Whether the check passed; None: the figure is informative only.
    holds: bool | None = None


def findings(data_dir: Path, jobs: int, made: Counter[str], repeated: int) -> list[Finding]:
    """Return all findings; call it once all jobs have ended.

    Args:
        data_dir: The bot's data folder.
        jobs: How many were handed in.
        made: The number of messages in Discord by nonce.
        repeated: How many nonces Discord got again.
    """
    db = sqlite3.connect(data_dir / DATABASE_FILE)
    db.row_factory = sqlite3.Row
    try:
        return [*_jobs(db, jobs), *_messages(db, data_dir, made, repeated), *_attempts(db, data_dir), *_books(db)]
    finally:
        db.close()


def _jobs(db: sqlite3.Connection, jobs: int) -> list[Finding]:
    rows = db.execute("SELECT * FROM job").fetchall()
    states = Counter(State(row["state"]) for row in rows)
    ends = Counter(row[0] for row in db.execute(_ENDS))
    sent = Counter(int(row[0].split(":")[1]) for row in db.execute(_END_POSTS))
    rounds = {row["id"]: row["round"] for row in rows}
    failed = [
        row for row in rows if row["state"] == "failed" and row["attempt"] - row["uncounted"] < SETTINGS.max_attempts
    ]
    by_state = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return [
        _equal("jobs accepted", len(rows), jobs),
        Finding(what="ended, by state", figure=by_state, holds=set(states) <= ENDS),
        _equal("failed before all attempts were used up", len(failed), 0),
        _equal("ends in the audit (one a job and round)", ends.total(), sum(rounds.values()), ends == rounds),
        _equal("messages about an end (one a job and round)", sent.total(), sum(rounds.values()), sent == rounds),
    ]


_END_LIST = ", ".join(f"'{state}'" for state in ENDS)
_ENDS = f"SELECT job_id FROM audit WHERE after IN ({_END_LIST}) AND before IS NOT after"
_END_POSTS = "SELECT dedupe_key FROM outbox WHERE dedupe_key LIKE 'job:%:end' OR dedupe_key LIKE 'job:%:end:%'"


def _messages(db: sqlite3.Connection, data_dir: Path, made: Counter[str], repeated: int) -> list[Finding]:
    posts = {row["nonce"]: row["dedupe_key"] for row in db.execute("SELECT nonce, dedupe_key FROM outbox")}
    # Merged ones are shown by a later message.
    merged = {row[0] for row in db.execute("SELECT nonce FROM outbox WHERE state = 'merged'")}
    cards = {row[0] for row in db.execute("SELECT nonce FROM card")}
    epochs = {
        f"job:{folder.parent.name}:epoch:{epoch}" for folder in _event_files(data_dir) for epoch in _epochs(folder)
    }
    unsent = db.execute("SELECT COUNT(*) FROM outbox WHERE state NOT IN ('sent', 'merged')").fetchone()[0]
    return [
        _equal("messages in the outbox, by dedupe key", len(posts), len(set(posts.values()))),
        _equal("of them not sent", unsent, 0),
        _equal("messages and cards missing in Discord", len((set(posts) | cards) - set(made) - merged), 0),
        _equal("messages there twice", sum(count > 1 for count in made.values()), 0),
        _equal("messages there that are not in the outbox", len(set(made) - set(posts) - cards), 0),
        _equal("ended epochs without a message", len(epochs - set(posts.values())), 0),
        Finding(what="messages sent", figure=f"{made.total()} ({len(epochs)} of epochs)"),
        Finding(what="repeated sends, without a new message", figure=str(repeated)),
    ]


def _event_files(data_dir: Path) -> list[Path]:
    return list((data_dir / "jobs").glob(f"*/{EVENTS_FILE}"))


def _epochs(path: Path) -> set[int]:
    events = [parse_event(line) for line in path.read_bytes().splitlines()]
    return {event.epoch for event in events if isinstance(event, EpochEnded)}


def _attempts(db: sqlite3.Connection, data_dir: Path) -> list[Finding]:
    overlaps = data_dir / OVERLAPS_FILE
    met = len(overlaps.read_text().splitlines()) if overlaps.exists() else 0
    attempts = db.execute("SELECT * FROM attempt ORDER BY slots, started_at").fetchall()
    same = sum(a["slots"] == b["slots"] and (a["ended_at"] or 9e99) > b["started_at"] for a, b in pairwise(attempts))
    expected = db.execute("SELECT SUM(attempt) FROM job").fetchone()[0]
    held = db.execute("SELECT COUNT(*) FROM slot WHERE job_id IS NOT NULL").fetchone()[0]
    living = sum(len(find_marked(folder)) for folder in (data_dir / "jobs").iterdir())
    return [
        _equal("attempts (claims), each in the history", len(attempts), expected),
        _equal("attempts without an end", sum(attempt["ended_at"] is None for attempt in attempts), 0),
        _equal("two living trainers on one slot (its lock)", met, 0),
        _equal("two attempts on one slot at a time (history)", same, 0),
        _equal("slots still held", held, 0),
        _equal("trainers still alive", living, 0),
    ]


def _books(db: sqlite3.Connection) -> list[Finding]:
    audit = db.execute("SELECT * FROM audit WHERE job_id IS NOT NULL ORDER BY job_id, id").fetchall()
    broken = illegal = 0
    former: sqlite3.Row | None = None
    for row in audit:
        expected = former["after"] if former is not None and former["job_id"] == row["job_id"] else None
        broken += row["before"] != expected
        is_transition = row["before"] is not None and row["before"] != row["after"]
        illegal += is_transition and State(row["after"]) not in TRANSITIONS[State(row["before"])]
        former = row
    states = dict(db.execute("SELECT id, state FROM job").fetchall())
    last = {row["job_id"]: row["after"] for row in audit}
    return [
        _equal("lines of the audit that do not follow the one before", broken, 0),
        _equal("transitions that are not in the table", illegal, 0),
        _equal("jobs whose last line is not their state", sum(last.get(job) != states[job] for job in states), 0),
        Finding(what="lines of the audit", figure=str(len(audit))),
        _equal("integrity_check", db.execute("PRAGMA integrity_check").fetchone()[0], "ok"),
        _equal("foreign_key_check, rows", len(db.execute("PRAGMA foreign_key_check").fetchall()), 0),
    ]


def _equal(what: str, found: object, expected: object, holds: bool = True) -> Finding:
    is_ok = found == expected and holds
    return Finding(what=what, figure=str(found) if is_ok else f"{found}, not {expected}", holds=is_ok)
