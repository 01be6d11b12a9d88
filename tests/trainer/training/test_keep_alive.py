"""Every phase emits keep-alives between its pieces of work, or the bot would kill the trainer as hung."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

import pytest

from tests.trainer.conftest import SMALL, draw_images
from tests.trainer.job_events import events_of
from trainer.dataset.preparing.prepare import prepare
from trainer.exchange.job_dir import write_spec
from trainer.protocol.events import (
    EXIT_FINISHED,
    BaseValidated,
    EpochEnded,
    Event,
    Exported,
    KeepAlive,
    Phase,
    PhaseBegan,
    PhaseProgress,
    Started,
    StepDone,
)
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.run_options import RunOptions
from trainer.training.run import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHANGES = {
    **SMALL,
    "training": {"epochs": 1, "batch_size": 2, "micro_batch_size": 1, "repeats": 1},
    "method": {"rank": 4},
    "prior": {"class_prompt": "an egg", "images": 4, "steps": 3},
    "samples": {"steps": 3, "prompts": ["a red egg"], "unrelated_prompts": ["a house"]},
}


def keep_alives_by_phase(events: Iterable[Event]) -> Counter[Phase]:
    counts: Counter[Phase] = Counter()
    phase = Phase.LOADING
    for event in events:
        if isinstance(event, PhaseBegan):
            phase = event.phase
        elif isinstance(event, KeepAlive):
            counts[phase] += 1
    return counts


def test_every_phase_emits_keep_alives_between_its_pieces_of_work(
    tmp_path: Path, random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if each piece took a minute.
    monkeypatch.setattr("trainer.reporter.KEEP_ALIVE_S", 0.0)
    monkeypatch.setattr("trainer.training.session.PROGRESS_INTERVAL_S", 0.0)
    # A dataset of its own, so that nothing is cached.
    prepare([draw_images(tmp_path / "images")], tmp_path / "prepared", resolutions=(64,))
    job_dir = tmp_path / "job"
    write_spec(
        job_dir, spec_from_preset("lora", dataset=str(tmp_path / "prepared"), base=str(random_base), changes=CHANGES)
    )
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED

    events = events_of(job_dir)
    counts = keep_alives_by_phase(events)
    # Four class images at once: one before them and one per step; latents of 12 and of 4 images; captions.
    assert counts[Phase.CACHING] == 1 + 3 + 12 + 4 + 1
    # None while a model is loaded; the bot waits longer then.
    assert {*counts} == {*Phase} - {Phase.LOADING}
    # Three steps each for the samples of the base and of the epoch; the diagnostics follow in the same phase.
    first_epoch = takewhile(lambda event: not isinstance(event, EpochEnded), events)
    assert keep_alives_by_phase(first_epoch)[Phase.SAMPLING] >= 3 + 3
    # One per micro-batch at least, and one before each file that is loaded back.
    assert counts[Phase.TRAINING] >= 16
    assert counts[Phase.EXPORTING] == sum(isinstance(event, Exported) for event in events)
    counted = [event for event in events if isinstance(event, PhaseProgress)]
    assert {each.phase for each in counted} == {*Phase} - {Phase.LOADING, Phase.TRAINING}
    # The four samples of one prompt are drawn together: each step is a part of all of them.
    drawn = [(each.done, each.total) for each in counted if each.phase is Phase.SAMPLING]
    assert drawn[:3] == [(1, 4), (2, 4), (4, 4)]
    exported = [(each.done, each.total) for each in counted if each.phase is Phase.EXPORTING]
    assert exported == [(number, len(exported)) for number in range(len(exported))]
    # Base, samples, test, diagnosis and export are part of the estimate from the first step on.
    first_step = next(event for event in events if isinstance(event, StepDone))
    finished_at, (base_ended,) = events[-1].time, [each.time for each in events if isinstance(each, BaseValidated)]
    assert first_step.eta_s is not None
    assert first_step.eta_s > 3 * 0.5 * (base_ended - next(each.time for each in events if isinstance(each, Started)))
    assert 0 < first_step.elapsed_s < finished_at - base_ended
