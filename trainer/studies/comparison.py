"""A comparison of candidates that differ in some settings: the worse end early, the winner becomes a job of its own.

The worse end by synchronous successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943): all candidates reach a
rung before any of them is ended there, so that the result does not depend on the order in which they ran. This costs a
restart for each survivor of a rung, which continues bit for bit from its checkpoint (docs/adr/0011).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from math import ceil
from pathlib import Path
from typing import ClassVar

from trainer.exchange.attempt import ATTEMPT_FILE, HEARTBEAT_FILE
from trainer.exchange.event_file import EVENTS_FILE
from trainer.exchange.job_dir import LOG_FILE, SPEC_FILE, read_spec, write_spec
from trainer.exchange.process import PROCESS_FILE
from trainer.protocol.advice import idle_settings
from trainer.protocol.events import EpochEnded, StoppedEarly, TerminalEvent
from trainer.protocol.spec import Spec
from trainer.protocol.study import ChildGoal, ChildState, CompareRequest, EndedChild, StudyStep
from trainer.protocol.text import _
from trainer.studies.child_specs import make_candidates, measured_spec, parse_axis
from trainer.studies.leaderboard import LeaderboardEntry, rank
from trainer.studies.results_page import WINNER_FOLDER, comparison_page, make_step
from trainer.studies.run_history import Child, RunHistory, child_of, read_child, read_history
from trainer.studies.run_samples import comparison_samples
from trainer.studies.study_folder import Rung, StudyFolder, StudyKind, dataset_report

CANDIDATES_FOLDER = "candidates"
#: The last two run to their end, so that the winner is compared with a rival of the same length.
MIN_SURVIVORS = 2
#: No candidate ends before this epoch: the first one says more about noise than about merit.
MIN_FIRST_RUNG = 2
#: Files of a candidate that its winner does not take over: they belong to a process, or are made again at the end.
_NOT_COPIED = ("lock", PROCESS_FILE, ATTEMPT_FILE, HEARTBEAT_FILE, LOG_FILE, "output", EVENTS_FILE, SPEC_FILE)


class ComparisonPlanner:
    """Plans a comparison.

    Raises:
        UsageError: a candidate cannot be trained; the sentence names each of them.
        DatasetError: the dataset is not prepared.
    """

    kind: ClassVar = StudyKind.COMPARE

    def __init__(self, spec: Spec, request: CompareRequest) -> None:
        self.spec = spec
        self._request = request
        self._candidates = {one.name: one for one in make_candidates(spec, [parse_axis(text) for text in request.vary])}
        self._first_rung = request.first_look or first_rung(spec)
        images = dataset_report(spec).images
        #: Near duplicates count as one observation: the group of an image by the hash of its pixels.
        self._groups = {
            image.pixels_sha256: image.group for image in images if image.pixels_sha256 and image.group is not None
        }

    @property
    def plan(self) -> str:
        """The request in words; `finishes` is not part of it, so that it may be added later."""
        labels = "; ".join(candidate.label for candidate in self._candidates.values())
        if self._request.keep_one_in is None:
            return _("{labels}; none ends early", labels=labels)
        return _("{labels}; 1 in {n} from {epoch}", labels=labels, n=self._request.keep_one_in, epoch=self._first_rung)

    def advance(self, folder: StudyFolder, ended: Mapping[str, EndedChild]) -> StudyStep:
        """Decide what can be decided, write the results so far, and return what must run now."""
        for name, candidate in self._candidates.items():
            folder.add_child(_folder_of(name), measured_spec(candidate.spec))
        histories = {name: read_history(folder.path / _folder_of(name)) for name in self._candidates}
        alive = self._run_rungs(folder, histories, ended)
        is_measured = not any(child.is_pending for child in alive.values())
        entries = rank(self._entries(folder, histories, ended, alive), self._groups)
        winner = self._winner(folder, entries[0], ended) if is_measured and entries[0].is_contender else None
        children = [*alive.values(), *([winner] if winner else [])]
        has_winner_failed = winner is not None and winner.state is ChildState.FAILED
        page = comparison_page(folder.path, self.spec, entries, winner, is_measured=is_measured, hints=self._hints())
        return make_step(
            folder.path,
            replace(page, samples=comparison_samples(folder.path, self.spec, entries)),
            [*(entry.child.row(entry.candidate.label) for entry in entries), *([winner.row()] if winner else [])],
            goals=[child.goal for child in children if child.state is ChildState.OPEN],
            has_failed=is_measured and (not entries[0].is_contender or has_winner_failed),
            result=WINNER_FOLDER if winner is not None and winner.state is ChildState.FINISHED else None,
        )

    def _run_rungs(
        self, folder: StudyFolder, histories: Mapping[str, RunHistory], ended: Mapping[str, EndedChild]
    ) -> dict[str, Child]:
        """Decide each rung that all have reached; return the candidates that are left, with their next goal."""
        while True:
            gone = {name for rung in folder.rungs for name in rung.ended}
            alive = {name: self._child(name, histories[name], ended) for name in self._candidates if name not in gone}
            alive = {name: child for name, child in alive.items() if child.state is not ChildState.FAILED}
            epoch = self._next_rung(len(folder.rungs)) if len(alive) > MIN_SURVIVORS else None
            if epoch is None:
                return alive
            alive = {name: self._child(name, histories[name], ended, until=epoch) for name in alive}
            if any(child.is_pending for child in alive.values()):
                return alive
            folder.add_rung(self._decide({name: histories[name] for name in alive}, epoch))

    def _child(
        self, name: str, history: RunHistory, ended: Mapping[str, EndedChild], until: int | None = None
    ) -> Child:
        epochs = self._candidates[name].spec.training.epochs
        until = until if until is not None and until < epochs else None
        return child_of(ChildGoal(name=name, folder=_folder_of(name), until_epoch=until), history, ended)

    def _next_rung(self, decided: int) -> int | None:
        if self._request.keep_one_in is None:
            return None
        epochs = max(candidate.spec.training.epochs for candidate in self._candidates.values())
        left = rungs(self._first_rung, self._request.keep_one_in, epochs)[decided:]
        return left[0] if left else None

    def _decide(self, histories: Mapping[str, RunHistory], epoch: int) -> Rung:
        assert self._request.keep_one_in is not None
        bests = {name: history.best_until(epoch) for name, history in histories.items()}
        ratios = {name: best.validation.ratio for name, best in bests.items() if best is not None}
        kept = survivors(ratios, self._request.keep_one_in) if ratios else ()
        return Rung(epoch=epoch, ratios=ratios, ended=tuple(name for name in ratios if name not in kept))

    def _entries(
        self,
        folder: StudyFolder,
        histories: Mapping[str, RunHistory],
        ended: Mapping[str, EndedChild],
        alive: Mapping[str, Child],
    ) -> list[LeaderboardEntry]:
        ended_after = {name: rung.epoch for rung in folder.rungs for name in rung.ended}
        entries = []
        for name, candidate in self._candidates.items():
            child = alive.get(name) or self._child(name, histories[name], ended)
            if name in ended_after:
                child = replace(child, state=ChildState.ENDED_EARLY, reason="")
            entries.append(LeaderboardEntry(candidate=candidate, child=child, ended_after=ended_after.get(name)))
        return entries

    def _winner(self, folder: StudyFolder, first: LeaderboardEntry, ended: Mapping[str, EndedChild]) -> Child | None:
        """Make the winner's folder; return its run if the study is to test and export it too."""
        candidate_spec = measured_spec(first.candidate.spec)
        make_winner(first.child.history.job_dir, folder.path / WINNER_FOLDER, self.spec, candidate_spec)
        if not self._request.finishes:
            return None
        return read_child(folder.path, ChildGoal(name=WINNER_FOLDER, folder=WINNER_FOLDER), ended)

    def _hints(self) -> tuple[str, ...]:
        """Varied settings that do nothing, each named with its candidate."""
        return tuple(
            dict.fromkeys(
                _("With {label}: {sentence}", label=candidate.label, sentence=sentence)
                for candidate in self._candidates.values()
                for sentence in idle_settings(candidate.spec)
                if any(setting in sentence for setting in candidate.values)
            )
        )


def _folder_of(name: str) -> str:
    return f"{CANDIDATES_FOLDER}/{name}"


def first_rung(spec: Spec) -> int:
    """The first epoch at which candidates may end: a fifth of the training, or early stopping's warm-up if longer.

    From a tenth on the best of 9 simulated candidates won in 65 % of studies, from a fifth in 82 %, for 76 epochs in
    place of 58; running all to their end takes 180 (`bench/halving.py`).
    """
    return max(MIN_FIRST_RUNG, spec.early_stopping.warmup_epochs, ceil(spec.training.epochs / 5))


def rungs(first: int, keep_one_in: int, epochs: int) -> tuple[int, ...]:
    """The epochs after which the worse end: `first`, and each `keep_one_in` times the one before."""
    found = []
    epoch = max(first, MIN_FIRST_RUNG)
    while epoch < epochs:
        found.append(epoch)
        epoch *= keep_one_in
    return tuple(found)


def survivors(ratios: Mapping[str, float], keep_one_in: int) -> tuple[str, ...]:
    """The candidates that continue, best first: one in `keep_one_in`, those that tie with the last, at least two."""
    order = sorted(ratios, key=lambda name: (ratios[name], name))
    worst_kept = ratios[order[max(len(order) // keep_one_in, 1) - 1]]
    kept = sum(ratio <= worst_kept for ratio in ratios.values())
    return tuple(order[: max(kept, MIN_SURVIVORS)])


def make_winner(candidate_dir: Path, winner_dir: Path, spec: Spec, candidate_spec: Spec) -> None:
    """Copy a candidate's folder to `winner_dir`, with the test and the samples of the job; do nothing if it exists.

    The winner of an earlier decision, made before a failed candidate was retried and won, is renamed to
    `winner-before-1` and so on. Checkpoints are linked, not copied: a trainer replaces them whole and never writes into
    one.
    """
    winner_spec = candidate_spec.model_copy(update={"validation": spec.validation, "samples": spec.samples})
    if winner_dir.exists():
        if read_spec(winner_dir) == winner_spec:
            return
        free = (winner_dir.with_name(f"{winner_dir.name}-before-{number}") for number in count(1))
        winner_dir.rename(next(path for path in free if not path.exists()))
    part = winner_dir.with_name(winner_dir.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(candidate_dir, part, ignore=shutil.ignore_patterns(*_NOT_COPIED), copy_function=_link_checkpoints)
    (part / EVENTS_FILE).write_bytes(_training_events(candidate_dir))
    write_spec(part, winner_spec)
    part.replace(winner_dir)


def _training_events(candidate_dir: Path) -> bytes:
    """The candidate's events up to its last epoch, without terminal events.

    They are numbered again and belong to no attempt, so that the attempts of the winner are counted from 1.
    """
    events = RunHistory(job_dir=candidate_dir).follow()
    last = max((i for i, event in enumerate(events) if isinstance(event, EpochEnded | StoppedEarly)), default=-1)
    kept = [event for event in events[: last + 1] if not isinstance(event, TerminalEvent)]
    return b"".join(
        event.model_copy(update={"seq": seq, "attempt": 0}).model_dump_json().encode() + b"\n"
        for seq, event in enumerate(kept, 1)
    )


def _link_checkpoints(source: str, target: str) -> None:
    """Hard-link the files of checkpoints and copy all others."""
    if "checkpoints" in Path(source).parts:
        try:
            os.link(source, target)
            return
        except OSError:
            # Another file system, or one without links.
            pass
    shutil.copy2(source, target)
