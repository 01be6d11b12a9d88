"""What the page of a training shows, gathered from its spec, its events and the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from trainer.protocol.events import (
    EpochEnded,
    Event,
    Exported,
    Failed,
    Finished,
    Sampled,
    StageBegan,
    Started,
    StepDone,
    Stopped,
    Tested,
    Warned,
)
from trainer.protocol.settings import TaskKind
from trainer.protocol.spec import Spec
from trainer.report.insights import Insight, NeverLearnt
from trainer.report.loading_words import how_to_load, readers_of
from trainer.report.run_epochs import EpochRow, epoch_columns, epoch_rows
from trainer.report.run_words import bytes_in_words, duration, headline, ratio_words, setting_words
from trainer.report.said import all_of, best_of, last_of


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that is read first."""

    value: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One sample of an epoch; the base's is of epoch 0."""

    epoch: int
    label: str
    path: str
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One prompt and seed through all epochs."""

    prompt: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True)
class Setting:
    name: str
    value: str
    default: str


@dataclass(frozen=True, kw_only=True)
class File:
    path: str
    readers: str
    loading: str
    size: str
    sha256: str
    difference: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A picture that never learnt, with its ratio and the median one's as points of an SVG."""

    picture: NeverLearnt
    own: str
    usual: str
    #: Height of the base's loss.
    one: float
    last: str


@dataclass(frozen=True, kw_only=True)
class RunContents:
    """Everything on the page, in the order in which it is read."""

    title: str
    spec: Spec
    is_classifier: bool
    verdict: tuple[str, ...]
    #: `running`, or the type of the last word.
    state: str
    figures: tuple[Figure, ...]
    #: PNG files relative to the job's folder; None where there is none.
    chart: str | None
    bands_chart: str | None
    comparison: str | None
    comparison_alt: str
    test_chart: str | None
    augmentation_sheet: str | None
    strips: tuple[Strip, ...]
    #: Label and path of each epoch's sheet.
    sheets: tuple[tuple[str, str], ...]
    stages: tuple[StageBegan, ...]
    epoch_columns: tuple[str, ...]
    epochs: tuple[EpochRow, ...]
    insight: Insight
    curves: tuple[Curve, ...]
    data: tuple[Mapping[str, Any], ...]
    data_words: str
    started: Started | None
    settings: tuple[Setting, ...]
    #: In ASCII: with its line breaks, and without signs that act on what stands around them.
    spec_json: str
    files: tuple[File, ...]
    warnings: tuple[str, ...]
    machine: tuple[tuple[str, str], ...]


def contents_of_run(job_dir: Path, spec: Spec, events: Sequence[Event], insight: Insight) -> RunContents:
    """Everything on the page of a job, whatever it has come to."""
    last = events[-1] if events else None
    ended, started = all_of(events, EpochEnded), last_of(events, Started)
    finished, tested = last_of(events, Finished), last_of(events, Tested)
    best_epoch = ended[-1].best_epoch if ended else 0

    def there(path: str | None) -> str | None:
        return path if path and (job_dir / path).is_file() else None

    return RunContents(
        title=spec.name,
        spec=spec,
        is_classifier=spec.task is TaskKind.CLASSIFICATION,
        verdict=headline(spec, events),
        state=last.type if isinstance(last, Finished | Stopped | Failed) else "running",
        figures=tuple(_figures(events)),
        chart=there(ended[-1].chart) if ended else None,
        bands_chart=there(BANDS_CHART),
        comparison=there(finished.comparison) if finished else there("output/comparison.png"),
        comparison_alt=finished.comparison_alt if finished else "",
        test_chart=there(tested.chart) if tested else None,
        augmentation_sheet=there(started.augmentation_sheet) if started else None,
        strips=_strips(events, best_epoch),
        sheets=tuple((_epoch_name(each.epoch), each.sheet) for each in all_of(events, Sampled) if there(each.sheet)),
        stages=all_of(events, StageBegan),
        epoch_columns=epoch_columns(ended, spec),
        epochs=tuple(epoch_rows(events, spec)),
        insight=insight,
        curves=tuple(_curve(picture, insight) for picture in insight.never_learnt),
        data=_data(job_dir),
        data_words=started.data_words if started else "",
        started=started,
        settings=tuple(changed_settings(spec)),
        spec_json=json.dumps(spec.model_dump(mode="json"), indent=2),
        files=tuple(_files(events, spec)),
        warnings=tuple(dict.fromkeys(each.message for each in all_of(events, Warned))),
        machine=tuple(_machine(events)),
    )


#: Ratios in each band of timesteps, drawn for the page.
BANDS_CHART = "charts/bands.png"


def changed_settings(spec: Spec) -> Iterator[Setting]:
    """Every setting that is not at its default, by its dotted name."""
    defaults = Spec(dataset=spec.dataset).model_dump(mode="json")
    for name, value, default in _differences(spec.model_dump(mode="json"), defaults, ""):
        yield Setting(name=name, value=setting_words(value), default=setting_words(default))


def _differences(values: Mapping[str, Any], defaults: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any, Any]]:
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict) and default:
            yield from _differences(value, default, f"{before}{name}.")
        elif value != default:
            yield f"{before}{name}", value, default


def _figures(events: Sequence[Event]) -> Iterator[Figure]:
    ended, tested = all_of(events, EpochEnded), last_of(events, Tested)
    if ended:
        best = best_of(ended)
        interval = ratio_words(best.validation, with_ratio=False)
        yield Figure(value=f"{best.validation.ratio:.2f}", label=f"of the base's validation loss{interval}")
        yield Figure(value=f"{best.epoch}", label=f"best epoch, of {ended[-1].epoch} trained")
    if tested:
        yield Figure(value=f"{tested.test.ratio:.2f}", label=f"on the test pictures{ratio_words(tested.test, False)}")
        for name, value in tested.metrics.items():
            yield Figure(value=f"{value:.2f}", label=f"{name.replace('_', ' ')}, test")
    if ended and (gap := best_of(ended).gap) is not None:
        yield Figure(value=f"{gap:+.0%}", label="gap to the training pictures")
    if ended:
        yield Figure(value=duration(_seconds(events)), label="in all")


def _strips(events: Sequence[Event], best_epoch: int) -> tuple[Strip, ...]:
    """Samples by their place, which is one prompt and seed in every epoch."""
    drawn = all_of(events, Sampled)
    places = max((len(each.samples) for each in drawn), default=0)
    strips = []
    for place in range(places):
        with_it = [each for each in drawn if place < len(each.samples)]
        frames = tuple(
            Frame(
                epoch=each.epoch,
                label=_epoch_name(each.epoch),
                path=each.samples[place].path,
                is_best=each.epoch == best_epoch and each.epoch > 0,
            )
            for each in with_it
        )
        strips.append(Strip(prompt=with_it[-1].samples[place].prompt, frames=frames))
    return tuple(strips)


def _curve(picture: NeverLearnt, insight: Insight) -> Curve:
    """Ratios over epochs in a box of 120 by 36, the highest at the top."""
    lines = [{0: 1.0, **picture.ratios}, {0: 1.0, **insight.usual_ratios}]
    heights = [ratio for line in lines for ratio in line.values()]
    low, high = min(heights), max(heights)
    last = max((epoch for line in lines for epoch in line), default=1) or 1

    def height(ratio: float) -> float:
        return round(34 - 32 * (ratio - low) / max(high - low, 1e-6), 1)

    own, usual = (
        " ".join(f"{round(120 * epoch / last, 1)},{height(line[epoch])}" for epoch in sorted(line)) for line in lines
    )
    return Curve(
        picture=picture, own=own, usual=usual, one=height(1.0), last=f"{picture.ratios[max(picture.ratios)]:.2f}"
    )


def _data(job_dir: Path) -> tuple[Mapping[str, Any], ...]:
    path = job_dir / "data.json"
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ()


def _files(events: Sequence[Event], spec: Spec) -> Iterator[File]:
    for each in all_of(events, Exported):
        yield File(
            path=each.path,
            readers=readers_of(each.format),
            loading=how_to_load(each.format, each.path, spec.method.kind),
            size=bytes_in_words(each.bytes),
            sha256=each.sha256,
            difference=f"{each.max_difference:.1g}",
        )


def _machine(events: Sequence[Event]) -> Iterator[tuple[str, str]]:
    started, steps = last_of(events, Started), all_of(events, StepDone)
    if started is None:
        return
    yield "device", started.device + (f", {started.processes} processes" if started.processes > 1 else "")
    yield "precision", started.precision
    yield "resolution", f"{started.resolution} px"
    yield "trained weights", f"{started.trainable_parameters:,}"
    if started.batch_size:
        yield "pictures at once", f"{started.micro_batch_size}, {started.batch_size} for a step"
    if steps and started.batch_size:
        yield "pictures a second", f"{median(step.steps_per_s for step in steps) * started.batch_size:.1f}"
    if steps:
        yield "memory at its peak", bytes_in_words(max(step.peak_memory_bytes for step in steps))
    yield "runs", f"{len(all_of(events, Started))}"


def _seconds(events: Sequence[Event]) -> float:
    """Of the job so far; what was lost between runs does not count."""
    finished = last_of(events, Finished)
    return finished.seconds if finished else sum(each.seconds for each in all_of(events, EpochEnded))


def _epoch_name(epoch: int) -> str:
    return "base" if epoch == 0 else str(epoch)
