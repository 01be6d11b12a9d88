"""What holds for all tests: one thread for each process that computes."""

from __future__ import annotations

import os

# Before anything imports torch, and handed on to child processes. Runs are compared to the bit; and threads of several
# processes that wait for each other on two cores cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
