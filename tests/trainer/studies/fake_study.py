"""The command line of studies with the fake trainer as their child, run as forks (`study_helpers.start_study`)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.__main__ import main as trainer_main
from trainer.report import charts, study_page  # noqa: F401 - each fork would import the page
from trainer.studies.child_runner import ChildRunner

#: The environment variable with the command of the fake trainer, as JSON.
TRAINER_VARIABLE = "FAKE_TRAINER_COMMAND"


def main(arguments: Sequence[str]) -> int:
    command = tuple(json.loads(os.environ[TRAINER_VARIABLE]))
    ChildRunner.__init__.__kwdefaults__["command"] = command  # type: ignore[index]
    vars(charts)["draw_study_chart"] = draw_nothing
    return trainer_main(arguments)


def draw_nothing(path: Path, **_drawn: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch()
