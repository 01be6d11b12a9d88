"""Reads and writes the files by which the bot and `trainer study` exchange a study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from trainer.exchange.files import write_text
from trainer.protocol.frozen import Frozen
from trainer.protocol.study import STUDY_VERSION, EndedChild, StudyRequest, StudyRequestError, make_study_request
from trainer.protocol.text import _

REQUEST_FILE, ENDED_FILE = "study_request.json", "study_ended.json"


class _Ended(Frozen):
    version: Literal[1] = STUDY_VERSION
    children: tuple[EndedChild, ...] = ()


def write_study_request(job_dir: Path, request: StudyRequest) -> None:
    """Write `study_request.json` beside the `spec.json` of the study."""
    write_text(job_dir / REQUEST_FILE, request.model_dump_json(indent=1) + "\n")


def read_study_request(job_dir: Path) -> StudyRequest:
    """Read `study_request.json`.

    Raises:
        StudyRequestError: It is missing or invalid.
    """
    path = job_dir / REQUEST_FILE
    try:
        return make_study_request(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise StudyRequestError(
            _("{job_dir} has no {file}, so it is no study.", job_dir=job_dir, file=REQUEST_FILE)
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StudyRequestError(_("{path} is not JSON ({error}).", path=path, error=error)) from error


def write_study_ended(job_dir: Path, children: Sequence[EndedChild]) -> None:
    """Write `study_ended.json`: all children that will not run again. A child that is retried is left out."""
    write_text(job_dir / ENDED_FILE, _Ended(children=tuple(children)).model_dump_json(indent=1) + "\n")


def read_study_ended(job_dir: Path) -> tuple[EndedChild, ...]:
    """Read `study_ended.json`; empty if it does not exist.

    Raises:
        StudyRequestError: It cannot be read.
    """
    path = job_dir / ENDED_FILE
    try:
        return _Ended.model_validate_json(path.read_bytes()).children
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise StudyRequestError(_("{path} does not list the runs that ended: {why}.", path=path, why=why)) from error
