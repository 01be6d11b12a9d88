"""Several finished or running jobs beside each other: their curves, samples of the same seeds, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.exchange.dataset_dir import read_report
from trainer.exchange.event_file import read_all_events
from trainer.exchange.job_dir import read_spec
from trainer.protocol.events import Sample, Sampled
from trainer.protocol.job_comparison import DifferingSetting, JobComparison
from trainer.protocol.spec import Spec
from trainer.protocol.text import _, gain, listed, ngettext, verdict
from trainer.report.charts import draw_study_chart
from trainer.report.gallery import MAX_COMPARED, ComparedColumn, draw_comparison
from trainer.report.run_page import setting_values
from trainer.report.study_page import RunCurve
from trainer.studies.leaderboard import compare_best
from trainer.studies.run_history import RunHistory, read_history
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
    has_chart, has_samples = _draw_chart(ranked, folder), _draw_samples(ranked, folder)
    return JobComparison(
        order=tuple(known.index(job) for job in ranked),
        verdict=tuple(_verdict(ranked)),
        settings=tuple(_differences(known)),
        chart=CHART if has_chart else None,
        chart_alt=_chart_alt(ranked),
        samples=SAMPLES if has_samples else None,
        samples_alt=_("The same prompts and seeds, drawn by {names}", names=listed([job.label for job in ranked])),
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


def _draw_samples(ranked: Sequence[_Job], folder: Path) -> bool:
    """Draw the samples that all jobs have of the same prompts and seeds, each at its best epoch."""
    drawn = [_samples_of(job) for job in ranked]
    shown = [(job, samples) for job, samples in zip(ranked, drawn, strict=True) if samples]
    if len(shown) < 2:
        return False
    common = [key for key in shown[0][1] if all(key in samples for _job, samples in shown)][:MAX_COMPARED]
    if not common:
        return False
    columns = [
        ComparedColumn(
            heading=job.label,
            note="" if job.ratio is None else gain(job.ratio),
            images=[_opened(job.job_dir / samples[key].path) for key in common],
        )
        for job, samples in shown
    ]
    draw_comparison(folder / SAMPLES, columns, [prompt or _("(no prompt)") for prompt, _seed in common])
    return True


def _samples_of(job: _Job) -> dict[tuple[str, int], Sample]:
    """The samples of the best epoch, else the newest, by prompt and seed; only those whose files are there."""
    sampled = [event for event in read_all_events(job.job_dir) if isinstance(event, Sampled) and event.epoch]
    best = job.history.best
    chosen = [event for event in sampled if best is not None and event.epoch == best.epoch] or sampled
    return {
        (each.prompt, each.seed): each
        for event in chosen[-1:]
        for each in event.samples
        if (job.job_dir / each.path).is_file()
    }


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
