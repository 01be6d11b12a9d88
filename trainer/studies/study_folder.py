"""The job folder of a study: its lock, and `study.json` with the decisions that survive a stop or a crash."""

from __future__ import annotations

import fcntl
import hashlib
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import ValidationError

from trainer.errors import DatasetError, JobFolderBusyError, UsageError
from trainer.exchange.dataset_dir import read_report
from trainer.exchange.files import write_text
from trainer.exchange.job_dir import SPEC_FILE, write_spec
from trainer.protocol.frozen import Frozen
from trainer.protocol.report import DatasetReport
from trainer.protocol.spec import Spec
from trainer.protocol.text import _

STATE_FILE, LOCK_FILE = "study.json", "study.lock"


class StudyKind(StrEnum):
    """The two kinds of studies."""

    KFOLD = "kfold"
    COMPARE = "compare"

    @property
    def label(self) -> str:
        """The kind as users call it."""
        return _("k-fold cross-validation") if self is StudyKind.KFOLD else _("comparison")


class Rung(Frozen):
    """One decision of a comparison: at an epoch, the worse candidates are ended (successive halving)."""

    #: The candidates are judged by their best epoch up to this one.
    epoch: int
    #: Best validation loss over the base model's, by candidate.
    ratios: dict[str, float]
    #: The candidates that were ended here.
    ended: tuple[str, ...]


class StudyState(Frozen):
    """The decisions of a study. What its runs did is in their own events."""

    version: Literal[1] = 1
    kind: StudyKind
    #: The request in words; another request needs another folder.
    plan: str
    spec_sha256: str
    rungs: tuple[Rung, ...] = ()


class StudyFolder:
    """Locks the folder of a study and keeps its state; use as a context manager.

    Raises:
        JobFolderBusyError: on entering, another process runs a study there.
        UsageError: on entering, the folder holds another study.
    """

    def __init__(self, path: Path, kind: StudyKind, plan: str, spec: Spec) -> None:
        self.path = path
        digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
        self._state = StudyState(kind=kind, plan=plan, spec_sha256=digest)

    def __enter__(self) -> Self:
        self._lock = (self.path / LOCK_FILE).open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise JobFolderBusyError(self.path) from None
        try:
            self._load()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._lock.close()

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The decisions so far."""
        return self._state.rungs

    def add_rung(self, rung: Rung) -> None:
        """Store one more decision before anything follows from it."""
        self._store(self._state.model_copy(update={"rungs": (*self.rungs, rung)}))

    def add_child(self, folder: str, spec: Spec) -> None:
        """Write the spec of a child unless it exists."""
        if not (self.path / folder / SPEC_FILE).exists():
            write_spec(self.path / folder, spec)

    def _store(self, state: StudyState) -> None:
        write_text(self.path / STATE_FILE, state.model_dump_json(indent=1) + "\n")
        self._state = state

    def _load(self) -> None:
        path = self.path / STATE_FILE
        if not path.exists():
            self._store(self._state)
            return
        try:
            known = StudyState.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise UsageError(
                _("{path} cannot be read.", path=path), _("Use another folder, or delete this study.")
            ) from error
        if (known.kind, known.plan) != (self._state.kind, self._state.plan):
            raise UsageError(
                _(
                    "{path} holds another study, a {kind} ({plan}).",
                    path=self.path,
                    kind=known.kind.label,
                    plan=known.plan,
                ),
                _("Repeat the same request to continue it, or use another job folder."),
            )
        if known.spec_sha256 != self._state.spec_sha256:
            raise UsageError(
                _("The spec.json in {path} was changed after the study began.", path=self.path),
                _("Restore it to continue, or use another job folder."),
            )
        self._state = known


def dataset_report(spec: Spec) -> DatasetReport:
    """Read the report of a job's dataset.

    Raises:
        DatasetError: the dataset is not prepared.
    """
    try:
        return read_report(Path(spec.dataset))
    except (OSError, ValueError) as error:
        raise DatasetError(
            _("{folder} is not a prepared dataset.", folder=spec.dataset),
            _("Make it with `python -m trainer prepare`."),
        ) from error
