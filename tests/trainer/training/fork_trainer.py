"""`python -m trainer run`, again and again, by forks of one process that has its libraries: a start costs no seconds.

Reads `["JOB_DIR", "CRASH_POINT"]` a line, and answers each with the exit status.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from trainer.__main__ import main
from trainer.commands.wait import warm_up
from trainer.crashing import CRASH_VARIABLE


def run(job_dir: str, crash_at: str) -> int:
    """The exit status, of a process of its own; less than 0, the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        output = os.open(Path(job_dir) / "trainer.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ[CRASH_VARIABLE] = crash_at
        os._exit(main(["run", job_dir]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    warm_up()
    for line in sys.stdin:
        print(run(*json.loads(line)), flush=True)
