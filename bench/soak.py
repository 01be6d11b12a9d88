"""Soaks the queue: many users' jobs, while the bot and the trainers are killed and frozen; then checks the result.

    python -m bench.soak                          # 200 jobs of 20 users on 4 slots
    python -m bench.soak --jobs 12 --users 3 --seed 7
    python -m bench.soak --claims                 # 8 processes compete for 8,000 jobs; each is claimed once

Bot and database are real; the trainer trains nothing (`soak_trainer`), and Discord is a file (`soak_bot`).
The exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

from bench.soak_bot import DISCORD_FILE
from bench.soak_checks import Finding, findings
from bench.soak_claims import COUNTS, claim_all
from bench.soak_trainer import SLOTS_FOLDER
from bot.config import LimitSettings, SamplingSettings
from bot.db import DATABASE_FILE, Database, open_db
from bot.outbox import Outbox
from bot.queue import JobStore, NewJob, Slot
from bot.queue.domain.job import ACTIVE, State, StopIntent
from bot.queue.store.sample_votes import Ballot
from trainer.exchange.process import ProcessIdentity, read_process_file
from trainer.protocol.run_options import JobKind
from trainer.protocol.sampling import make_sampling_spec
from trainer.protocol.spec import make_spec

_ROOT = Path(__file__).parents[1]
_GUILD, _FIRST_CHANNEL, _CHANNELS = 10, 100, 4
_TICK_S = 0.1
_SPEC = make_spec({"name": "fox", "dataset": "/nowhere"})
_SAMPLING = make_sampling_spec({"models": [{"kind": "base"}], "prompts": [{"prompt": "a fox"}]})
#: Every so many jobs draw with what was trained.
_SAMPLINGS_EVERY = 4
#: What users do with their jobs; "retry" is a cancel and then a retry.
_ACTIONS = {"": 0.55, "cancel": 0.1, "keep_best": 0.1, "pause": 0.15, "retry": 0.1}
#: How probable a vote on a drawn sampling is in a round.
_VOTES = 0.02
_INTENTS = {"cancel": StopIntent.CANCEL, "retry": StopIntent.CANCEL, "keep_best": StopIntent.KEEP_BEST,
            "pause": StopIntent.PAUSE}  # fmt: skip


@dataclass
class Bot:
    """The bot's process."""

    data_dir: Path
    process: subprocess.Popen[bytes] | None = None
    #: Offset of the current process's part of the log.
    log_begin: int = 0

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}
        argv = [sys.executable, "-m", "bench.soak_bot", str(self.data_dir)]
        with self.log.open("ab") as log:
            self.log_begin = log.tell()
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, env=environment)

    @property
    def log(self) -> Path:
        return self.data_dir / "bot.log"

    def is_at_work(self) -> bool:
        """True once the process has logged a line; a kill during its imports tests nothing."""
        return self.log.stat().st_size > self.log_begin

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass
class Users:
    """Simulated users, in another process than the bot, who submit, stop, pause, resume and retry jobs."""

    store: JobStore
    db: Database
    chance: random.Random
    jobs: int
    users: int
    submitted: int = 0
    done: Counter[str] = field(default_factory=Counter)
    #: The image that each user likes of each sampling.
    votes: dict[tuple[int, int], int | None] = field(default_factory=dict)
    #: The planned action of each job.
    plans: dict[int, str] = field(default_factory=dict)

    async def act(self) -> bool:
        """Do one round of actions; return False once all jobs have ended and nothing is planned."""
        for _ in range(min(self.chance.choice((0, 0, 1, 5)), self.jobs - self.submitted)):
            await self._submit()
        rows = await self.db.all("SELECT id, state, kind FROM job")
        for row in rows:
            await self._act_on(row["id"], State(row["state"]))
            if row["kind"] == JobKind.SAMPLE and row["state"] == State.SUCCEEDED and self.chance.random() < _VOTES:
                await self._vote(row["id"])
        is_over = all(State(row["state"]).is_end for row in rows) and "again" not in self.plans.values()
        return self.submitted < self.jobs or not is_over

    async def _submit(self) -> None:
        self.submitted += 1
        is_sampling = self.submitted % _SAMPLINGS_EVERY == 0
        self.done["samplings"] += is_sampling
        new = NewJob(
            interaction_id=self.submitted,
            guild_id=_GUILD,
            channel_id=_FIRST_CHANNEL + self.submitted % _CHANNELS,
            owner_id=1 + self.submitted % self.users,
            dataset_id=0 if is_sampling else 1,
            # Of the first training.
            source_id=1 if is_sampling else None,
            spec=_SAMPLING if is_sampling else _SPEC,
            title="fox",
            max_running=1 if is_sampling else None,
            max_waiting=self.jobs,
        )
        job = await self.store.submit(new)
        if self.chance.random() < 0.2:
            self.done["submitted twice"] += 1
            assert (await self.store.submit(new)).id == job.id
        self.plans[job.id] = self.chance.choices(list(_ACTIONS), list(_ACTIONS.values()))[0]

    async def _act_on(self, job_id: int, state: State) -> None:
        plan = self.plans.get(job_id, "")
        if state is State.PAUSED and self.chance.random() < 0.1:
            await self._do("resumed", self.store.resume(job_id, by=1))
        elif state is State.CANCELLED and plan == "again" and self.chance.random() < 0.1:
            self.plans[job_id] = ""
            await self._do("retried", self.store.retry(job_id, by=1))
        elif plan in _INTENTS and self.chance.random() < (0.3 if state in ACTIVE else 0.003):
            self.plans[job_id] = ""
            job = await self.store.request_stop(job_id, by=1, intent=_INTENTS[plan])
            self.done[f"{_INTENTS[plan]} asked for"] += 1
            if plan == "retry" and job.state in ACTIVE | {State.CANCELLED}:
                self.plans[job_id] = "again" if job.state is State.CANCELLED else "cancelling"
        elif plan == "cancelling" and state.is_end:
            # The job may have finished just before the stop.
            self.plans[job_id] = "again" if state is State.CANCELLED else ""

    async def _vote(self, job_id: int) -> None:
        """Vote for an image, or for another one, or take the vote back."""
        user_id, image = self.chance.randint(1, self.users), self.chance.randint(0, 1)
        has_vote = await self.store.votes.vote(await self.store.get(job_id), user_id, Ballot.IMAGE, image)
        self.votes[job_id, user_id] = image if has_vote else None
        self.done["votes given, changed or taken back"] += 1

    async def _do(self, what: str, work: Awaitable[object]) -> None:
        await work
        self.done[what] += 1


@dataclass
class FaultInjector:
    """Sends SIGKILL, SIGSTOP and SIGCONT to the bot and the trainers at random times."""

    store: JobStore
    bot: Bot
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    thaws: set[asyncio.Task[None]] = field(default_factory=set)
    due: dict[str, float] = field(default_factory=dict)

    async def act(self) -> None:
        """Inject the faults that are due."""
        is_at_work = self.bot.is_at_work()
        if is_at_work and self._is_due("bot", 1.5, 4.0):
            self.bot.kill()
            self.bot.start()
            self.done["bot killed"] += 1
        if is_at_work and self._is_due("frozen bot", 3.0, 8.0):
            assert self.bot.process is not None
            self._freeze(self.bot.process.pid, None)
            self.done["bot frozen"] += 1
        for what, verb in (("trainer", "killed"), ("frozen trainer", "frozen")):
            if self._is_due(what, 0.5, 2.0) and (trainer := await self._trainer()) is not None:
                self.done[f"trainer {verb}"] += 1
                if verb == "killed":
                    _signal(trainer.pid, signal.SIGKILL)
                else:
                    self._freeze(trainer.pid, trainer)

    async def wait_until_thawed(self) -> None:
        """Wait until no process is frozen."""
        await asyncio.gather(*self.thaws)

    def _is_due(self, what: str, least_s: float, most_s: float) -> bool:
        is_due = time.monotonic() >= self.due.setdefault(what, time.monotonic() + self.chance.uniform(least_s, most_s))
        if is_due:
            del self.due[what]
        return is_due

    async def _trainer(self) -> ProcessIdentity | None:
        holders = [read_process_file(self.store.job_dir(job)) for job in await self.store.attempts.active()]
        living = [holder for holder in holders if holder is not None and holder.is_alive()]
        return self.chance.choice(living) if living else None

    def _freeze(self, pid: int, identity: ProcessIdentity | None) -> None:
        _signal(pid, signal.SIGSTOP)
        process = self.bot.process

        async def thaw() -> None:
            await asyncio.sleep(self.chance.uniform(0.1, 1.5))
            # A trainer's PID may have been reused; the bot's is reserved until it is waited for.
            if identity.is_alive() if identity is not None else process is self.bot.process:
                _signal(pid, signal.SIGCONT)

        task = asyncio.create_task(thaw())
        self.thaws.add(task)
        task.add_done_callback(self.thaws.discard)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


async def soak(data_dir: Path, options: argparse.Namespace) -> list[Finding]:
    """Run the users, the bot and the faults until all jobs have ended; return the findings."""
    chance, begin = random.Random(options.seed), time.monotonic()
    (data_dir / SLOTS_FOLDER).mkdir()
    async with open_db(data_dir / DATABASE_FILE) as db:
        outbox = Outbox(db)
        store = JobStore(
            db,
            outbox,
            data_dir=data_dir,
            limits=LimitSettings(max_jobs_per_user=100),
            sampling=SamplingSettings(max_waiting_per_user=100, max_waiting=1000),
        )
        await _prepare(db, store, options.slots)
        bot = Bot(data_dir)
        users = Users(store, db, chance, options.jobs, options.users)
        faults = FaultInjector(store, bot, chance)
        bot.start()
        try:
            while await users.act() or await outbox.depth():
                if time.monotonic() - begin > 60 * options.minutes:
                    faults.done["timed out before all jobs had ended"] += 1
                    break
                await faults.act()
                await asyncio.sleep(_TICK_S)
        finally:
            # Also after an error, or a process would stay frozen.
            await faults.wait_until_thawed()
            bot.kill()
        votes = {(row["job_id"], row["user_id"]): row["number"] for row in await db.all("SELECT * FROM sample_vote")}
        await db.checkpoint()
    log = bot.log.read_text(encoding="utf-8", errors="replace")
    lines = [json.loads(line) for line in (data_dir / DISCORD_FILE).read_text(encoding="utf-8").splitlines()]
    made = Counter(line["nonce"] for line in lines if line["text"])
    return [
        *findings(data_dir, options.jobs, made, len(lines) - made.total()),
        Finding(
            what="votes that count",
            figure=str(len(votes)),
            holds=votes == {voter: image for voter, image in users.votes.items() if image is not None},
        ),
        Finding(what="errors in the bot's log", figure=str(log.count("Traceback")), holds="Traceback" not in log),
        *(Finding(what=what, figure=str(number)) for what, number in sorted((users.done + faults.done).items())),
        Finding(what="seconds", figure=f"{time.monotonic() - begin:.0f}"),
    ]


async def _prepare(db: Database, store: JobStore, slots: int) -> None:
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            """INSERT INTO dataset (id, guild_id, owner_id, name, sha256, digest, counts, summary, created_at)
               VALUES (1, ?, 1, 'foxes', 'a', 'd', ?, '', 0)""",
            (_GUILD, COUNTS),
        )
    names = [f"fake-{number}" for number in range(slots)]
    await store.slots.set([Slot(id=f"gpu:{name}", device=name, name=name) for name in names])


def table(found: list[Finding]) -> str:
    """Render the findings as a Markdown table."""
    marks = {None: "", True: "holds", False: "**BROKEN**"}
    rows = [f"| {each.what} | {each.figure} | {marks[each.holds]} |" for each in found]
    return "\n".join(["| what | found | |", "|---|---|---|", *rows, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak the queue while its processes are killed.")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0, help="time limit")
    parser.add_argument("--folder", type=Path, default=None, help="new folder to keep all data in")
    parser.add_argument("--claims", action="store_true", help="run only the claims")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = options.folder or Path(scratch) / "data"
        # Never reuse a folder: surviving trainers are found by its path.
        folder.mkdir(parents=True)
        found = claim_all(folder) if options.claims else asyncio.run(soak(folder.absolute(), options))
    sys.stdout.write(table(found))
    return int(any(each.holds is False for each in found))


if __name__ == "__main__":
    sys.exit(main())
