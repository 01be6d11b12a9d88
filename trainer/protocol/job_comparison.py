"""What `python -m trainer compare-jobs` finds when it lays several trainings beside each other."""

from __future__ import annotations

from typing import Literal

from trainer.protocol.frozen import Frozen, RelativePath


class DifferingSetting(Frozen):
    """A setting that is not the same in all of the jobs."""

    name: str
    #: One for each job, as they would be typed.
    values: tuple[str, ...]


class JobComparison(Frozen):
    """Several jobs beside each other; files are relative to the folder that was asked for."""

    version: Literal[1] = 1
    #: Positions of the jobs, the best first.
    order: tuple[int, ...]
    #: The findings, one sentence each, the most important first.
    verdict: tuple[str, ...] = ()
    settings: tuple[DifferingSetting, ...] = ()
    #: Curves of all jobs (PNG); None: none has ended an epoch.
    chart: RelativePath | None = None
    chart_alt: str = ""
    #: Their samples of the same prompts and seeds beside each other (PNG); None: they have none in common.
    samples: RelativePath | None = None
    samples_alt: str = ""
