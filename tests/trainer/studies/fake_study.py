"""The trainer's command line with the fake trainer as the child of every study.

python fake_study.py kfold JOB_DIR --folds 3
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.__main__ import main
from trainer.studies.child_runner import ChildRunner

if __name__ == "__main__":
    fake_trainer = Path(__file__).parent / "fake_trainer.py"
    ChildRunner.__init__.__kwdefaults__["command"] = (sys.executable, str(fake_trainer))  # type: ignore[index]
    sys.exit(main())
