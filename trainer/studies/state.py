"""What a study must remember to go on after a stop or a crash: `study.json`, written by rename, one study at a time."""

from __future__ import annotations

import fcntl
import hashlib
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.errors import JobFolderBusyError, UsageError
from trainer.protocol.spec import Spec

STATE_FILE, LOCK_FILE = "study.json", "study.lock"


class StudyKind(StrEnum):
    KFOLD = "kfold"
    COMPARE = "compare"

    @property
    def words(self) -> str:
        return {StudyKind.KFOLD: "k-fold cross-validation", StudyKind.COMPARE: "comparison"}[self]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rung(_Frozen):
    """One decision of a comparison: who was looked at after which epoch, and who was ended there."""

    epoch: int
    #: Best ratio so far of each that was looked at.
    ratios: dict[str, float]
    ended: tuple[str, ...]


class StudyState(_Frozen):
    """A study as it stands. What its runs did stands in their own events."""

    version: Literal[1] = 1
    kind: StudyKind
    #: What was asked for, in words; a study that asks for something else needs a folder of its own.
    plan: str
    spec_sha256: str
    #: The device that each child was last started on, as in CUDA_VISIBLE_DEVICES; empty on a CPU.
    devices: dict[str, str] = {}
    rungs: tuple[Rung, ...] = ()


class Study:
    """Holds a study's folder and its state; use as a context manager.

    Raises:
        JobFolderBusyError: on entering, another process runs a study there.
        UsageError: on entering, the folder holds another study.
    """

    def __init__(self, folder: Path, kind: StudyKind, plan: str, spec: Spec) -> None:
        self.folder = folder
        digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
        self.state = StudyState(kind=kind, plan=plan, spec_sha256=digest)

    def __enter__(self) -> Self:
        self._lock = (self.folder / LOCK_FILE).open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise JobFolderBusyError(self.folder) from None
        try:
            self._load()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._lock.close()

    def remember(self, **changes: object) -> None:
        """Change the state; durable before the call returns."""
        self.state = self.state.model_copy(update=changes)
        part = self.folder / f"{STATE_FILE}.part"
        part.write_text(self.state.model_dump_json(indent=1) + "\n", encoding="utf-8")
        part.replace(self.folder / STATE_FILE)

    def _load(self) -> None:
        path = self.folder / STATE_FILE
        if not path.exists():
            self.remember()
            return
        try:
            known = StudyState.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise UsageError(f"{path} cannot be read.", "Take another folder, or delete this study.") from error
        if (known.kind, known.plan) != (self.state.kind, self.state.plan):
            raise UsageError(
                f"{self.folder} holds another study, a {known.kind.words} ({known.plan}).",
                "Ask for the same again to go on with it, or take another job folder.",
            )
        if known.spec_sha256 != self.state.spec_sha256:
            raise UsageError(
                f"The spec.json in {self.folder} was changed after the study began.",
                "Put it back to go on, or take another job folder.",
            )
        self.state = known
