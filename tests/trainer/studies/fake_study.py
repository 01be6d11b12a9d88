"""The trainer's command line with the fake trainer as the child of every study.

python fake_study.py kfold JOB_DIR --folds 3
"""

from __future__ import annotations

import json
import os
import sys

from tests.trainer.studies.study_helpers import TRAINER_VARIABLE
from trainer.__main__ import main
from trainer.studies.child_runner import ChildRunner

if __name__ == "__main__":
    command = tuple(json.loads(os.environ[TRAINER_VARIABLE]))
    ChildRunner.__init__.__kwdefaults__["command"] = command  # type: ignore[index]
    sys.exit(main())
