"""Several finished or running jobs beside each other: their curves, samples of the same seeds, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.exchange.dataset_dir import read_report
from trainer.exchange.job_dir import read_spec
from trainer.protocol.job_comparison import DifferingSetting, JobComparison
from trainer.protocol.spec import Spec
from trainer.protocol.text import _, gain, ngettext, verdict
from trainer.report.charts import draw_study_chart
from trainer.report.run_page import setting_values
from trainer.report.study_page import RunCurve
from trainer.studies.leaderboard import compare_best
from trainer.studies.run_history import RunHistory, read_history
from trainer.studies.run_samples import SampledRun, draw_samples, gain_note
from trainer.training.intervals import Interval

CHART, SAMPLES = "curves.png", "samples.png"
#: Settings that are of the job's own, and say nothing about why one is better.
_OWN = frozenset({"version", "name", "dataset", "preset"})


@dataclass(frozen=True, kw_only=True)
class _Job:
    label: str
    job_dir: Path
    spec: Spec
    history: RunHistory

    @property
    def ratio(self) -> float | None:
        """Best validation loss over the base model's; None before the first epoch."""
        best = self.history.best
        return None if best is None else best.validation.ratio


def compare_jobs(jobs: Mapping[str, Path], folder: Path) -> JobComparison:
    """Lay jobs beside each other, and draw chart and samples into `folder`.

    Args:
        jobs: Their folders by what they are called: `#12 fox`.
        folder: Must exist.

    Raises:
        OSError, SpecError, ValueError: One is no job folder.
    """
    known = [
        _Job(label=label, job_dir=path, spec=read_spec(path), history=read_history(path))
        for label, path in jobs.items()
    ]
    ranked = sorted(known, key=lambda job: (job.ratio is None, job.ratio or 0.0))
    has_chart = _draw_chart(ranked, folder)
    runs = [
        SampledRun(name=job.label, heading=job.label, note=gain_note(job.history), history=job.history)
        for job in ranked
    ]
    sheet = draw_samples(folder / SAMPLES, runs, most=len(runs), with_base=False)
    return JobComparison(
        order=tuple(known.index(job) for job in ranked),
        verdict=tuple(filter(None, (*_verdict(ranked), sheet.missing_words))),
        settings=tuple(_differences(known)),
        chart=CHART if has_chart else None,
        chart_alt=_chart_alt(ranked),
        samples=SAMPLES if sheet.is_drawn else None,
        samples_alt=sheet.alt,
    )


# -- words --------------------------------------------------------------------------------------------------------


def _verdict(ranked: Sequence[_Job]) -> Iterator[str]:
    """Which is best, and how sure that is."""
    measured = [job for job in ranked if job.history.best is not None]
    if not measured:
        yield _("None of them has ended an epoch yet.")
        return
    for job in measured:
        best = job.history.best
        assert best is not None
        yield _(
            "{name}: {verdict}, after epoch {epoch}.",
            name=job.label,
            verdict=verdict(best.validation.ratio),
            epoch=best.epoch,
        )
    first, *others = measured
    for other in others:
        yield _beside(first, other)


def _beside(first: _Job, other: _Job) -> str:
    """How much better the first is than another, by the same images."""
    names = {"first": first.label, "other": other.label}
    if first.spec.base.source != other.spec.base.source:
        return _(
            "{first} and {other} have different base models, and each number is about its own: judge by the samples.",
            **names,
        )
    interval = _interval(first, other)
    if interval is None:
        return _(
            "{first} and {other} were not measured on the same images, so their numbers are only roughly comparable.",
            **names,
        )
    if interval.high >= 1:
        return _("{first} is not clearly better than {other}: on the same images it may be chance.", **names)
    values = {"low": f"{100 * (1 - interval.high):.0f}", "high": f"{100 * (1 - interval.low):.0f}"}
    return _(
        "{first} is better than {other}: on the same images its error is {low} to {high} % smaller.", **names, **values
    )


def _interval(first: _Job, other: _Job) -> Interval | None:
    until = max(first.history.last_epoch, other.history.last_epoch)
    return compare_best(first.history, other.history, _groups(first.spec), until_epoch=until)


def _groups(spec: Spec) -> dict[str, int]:
    """The group of near duplicates of each image; none if the dataset was deleted."""
    with suppress(OSError, ValueError):
        return {
            image.pixels_sha256: image.group
            for image in read_report(Path(spec.dataset)).images
            if image.pixels_sha256 and image.group is not None
        }
    return {}


def _differences(jobs: Sequence[_Job]) -> Iterator[DifferingSetting]:
    """Each setting that is not the same in all jobs."""
    values = [dict(setting_values(job.spec)) for job in jobs]
    for name in dict.fromkeys(name for each in values for name in each):
        typed = [each.get(name, "–") for each in values]
        if name not in _OWN and len(set(typed)) > 1:
            yield DifferingSetting(name=name, values=tuple(typed))
    if len({job.spec.dataset for job in jobs}) > 1:
        yield DifferingSetting(name="dataset", values=tuple(_dataset_name(job) for job in jobs))


def _dataset_name(job: _Job) -> str:
    """The images of a job by their number: their folder's name is a hash."""
    with suppress(OSError, ValueError):
        counts = read_report(Path(job.spec.dataset)).counts
        return _("{n} images", n=counts.kept)
    return "–"


# -- pictures -----------------------------------------------------------------------------------------------------


def _draw_chart(ranked: Sequence[_Job], folder: Path) -> bool:
    curves = [
        RunCurve(name=job.label, ratios=job.history.ratios, best_epoch=job.history.best.epoch, is_first=index == 0)
        for index, job in enumerate(ranked)
        if job.history.best is not None
    ]
    if curves:
        draw_study_chart(folder / CHART, title=ngettext("{n} training", "{n} trainings", len(curves)), curves=curves)
    return bool(curves)


def _chart_alt(ranked: Sequence[_Job]) -> str:
    parts = [
        _("{name}: best at epoch {epoch}, {verdict}", name=job.label, epoch=best.epoch, verdict=gain(job.ratio))
        for job in ranked
        if (best := job.history.best) is not None and job.ratio is not None
    ]
    return _("Loss by epoch. {jobs}", jobs="; ".join(parts))
