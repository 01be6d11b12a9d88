"""`/j/{token}`: the results of a job: its verdict, the curve, what it drew, its files, one by one or as a zip."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from aiohttp import web

from bot.errors import JobFilesDeleted, NoSuchJob
from bot.queue import Job
from bot.queue.domain.verbs import require_open
from bot.queue.store.sample_votes import Ballot
from bot.ui.end_reasons import end_reason_text
from bot.ui.job_card import best_of, headline, result_verdict, share_done, standing_words, state_words
from bot.ui.sample_pages import liked_lines, votes_words
from bot.web.links import LinkKind
from bot.web.rendering import render
from bot.web.served_files import ServedFile, send_file, send_report, send_zip
from bot.web.site import Visit, page_of
from trainer.protocol.events import (
    EpochEnded,
    Event,
    Exported,
    Failed,
    Finished,
    Sampled,
    SamplingFinished,
    Tested,
    Warned,
    all_of,
    last_of,
)
from trainer.protocol.exported_files import loading_code, name_of, newest_files
from trainer.protocol.settings import TINY
from trainer.protocol.study import StudyStep
from trainer.protocol.text import _, duration, verdict

#: What a page offers of a job's folder; its log, settings and checkpoints name paths of the machine, or train on.
_OFFERED = frozenset({"samples", "charts", "output"})
#: The curve, px; it is drawn as text, so that it follows the colors of the page.
_CURVE = (640, 220)
_MARGIN = (68, 14, 12, 34)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One drawn image in a row of others."""

    path: str
    words: str
    #: Of the epoch that is kept.
    is_best: bool = False
    #: How many members like it most: `2 votes`.
    votes: str = ""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Images of one prompt and seed, by epoch, or by model and strength."""

    prompt: str
    seed: int
    negative: str = ""
    frames: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True)
class OfferedFile:
    """A file for other programs, as the page lists it."""

    exported: Exported
    file: ServedFile
    is_folder: bool

    @property
    def what(self) -> str:
        """Which epoch it is of, and which programs open it."""
        which = _("epoch {epoch}", epoch=self.exported.epoch) if self.exported.epoch else _("the best epoch")
        if not self.exported.readers:
            return which
        return _("{which}, for {programs}", which=which, programs=", ".join(self.exported.readers))

    @property
    def code(self) -> tuple[str, ...]:
        """How Python loads it."""
        return loading_code(self.exported, self.file.name)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The validation loss over that of the base model, by epoch, as points of an SVG."""

    line: str
    #: Around it: where the true value probably is; empty if it was not measured.
    band: str
    #: Height of the base model's loss, and of each label of the scale.
    base_y: float
    scale: tuple[tuple[float, str], ...]
    #: Of the epoch that is kept: where it is, and its number.
    best: tuple[float, float, int] | None
    last_epoch: int
    size: tuple[int, int] = _CURVE
    left: int = _MARGIN[0]


@page_of(LinkKind.JOB)
async def job_page(visit: Visit) -> web.StreamResponse:
    """The page; status 304 for a browser that has this version."""
    job = await _job(visit)
    events = await visit.site.jobs.events(job.id)
    files = await asyncio.to_thread(_offered_files, visit, job, events)
    step = await visit.site.jobs.study_step(job.id) if job.study is not None else None
    votes = await visit.site.jobs.votes.counts(job.id) if job.is_sampling else {}
    response = render(
        visit.request,
        "job.html.j2",
        job=job,
        path=_path(visit),
        sentences=[
            *_sentences(job, events),
            *(liked_lines(job.sampling, votes) if votes else ()),
            *(step.verdict if step else ()),
        ],
        share=share_done(job) if job.state.is_active and job.progress.step else None,
        is_changing=not job.state.is_end,
        curve=_curve(all_of(events, EpochEnded)),
        epochs=[(each, verdict(each.validation.ratio)) for each in all_of(events, EpochEnded)],
        strips=await asyncio.to_thread(_strips, visit, job, events, votes.get(Ballot.IMAGE, {})),
        comparison=last_of(events, Finished),
        study=step,
        has_study_samples=await asyncio.to_thread(_has_study_samples, visit, job, step),
        sheets=[sheet for event in all_of(events, SamplingFinished) for sheet in event.sheets],
        warnings=list(dict.fromkeys(event.message for event in all_of(events, Warned))),
        files=files,
        total_bytes=sum(file.exported.bytes for file in files),
        has_report=_report(visit, job, events) is not None,
        trigger="" if job.is_sampling else job.spec.training.trigger,
        facts=_facts(job),
        expires_at=visit.link.expires_at,
        runs=await visit.site.jobs.studies.children(job.id) if job.study is not None else [],
        state_words=lambda run: state_words(run)[1],
        duration=duration,
    )
    return _unless_known(visit.request, response)


@page_of(LinkKind.JOB)
async def job_file(visit: Visit) -> web.StreamResponse:
    """A file of the job; `?download` offers it under a name with the job's in it."""
    job = await _job(visit)
    path = visit.request.match_info["path"]
    top, _slash, rest = path.partition("/")
    if top not in _OFFERED or not rest:
        raise web.HTTPNotFound
    # Not `job_dir / path`: a link in one of the folders must not lead to what is beside them.
    folder = visit.site.jobs.job_dir(job) / top
    name = f"{job.name}-{PurePosixPath(rest).name}"
    file = ServedFile(folder=folder, path=rest, name=name)
    return await send_file(visit.request, file, is_download="download" in visit.request.query)


@page_of(LinkKind.JOB)
async def job_report(visit: Visit) -> web.StreamResponse:
    """The trainer's own report."""
    job = await _job(visit)
    report = _report(visit, job, await visit.site.jobs.events(job.id))
    if report is None:
        raise web.HTTPNotFound
    return await send_report(visit.request, report)


@page_of(LinkKind.JOB)
async def job_zip(visit: Visit) -> web.StreamResponse:
    """Everything that the page shows, as one zip."""
    job = await _job(visit)
    events = await visit.site.jobs.events(job.id)
    files = await asyncio.to_thread(_zip_files, visit, job, events)
    if not files:
        raise web.HTTPNotFound
    return await send_zip(visit.request, f"{job.name}-{job.id}.zip", files)


def job_routes() -> list[web.RouteDef]:
    """The addresses of these pages; the runs of a study are below its own."""
    return [
        route
        for page in ("/j/{token}", "/j/{token}/runs/{run:[0-9]{1,18}}")
        for route in (
            web.get(page, job_page),
            web.get(page + "/files/{path:.+}", job_file),
            web.get(page + "/report", job_report),
            web.get(page + "/all.zip", job_zip),
        )
    ]


async def _job(visit: Visit) -> Job:
    """The job of the link; only of the server that the link was made in, and if its member may still see it."""
    job = await visit.site.jobs.get_in(visit.link.guild_id, visit.link.subject_id)
    require_open(job, user_id=visit.visitor.user_id, can_manage=visit.visitor.can_manage)
    if (run := visit.request.match_info.get("run")) is None:
        return job
    child = await visit.site.jobs.get_in(visit.link.guild_id, int(run))
    if child.parent_id != job.id:
        raise NoSuchJob(job_id=int(run))
    return child


def _path(visit: Visit) -> Callable[..., str]:
    """Addresses below the page of the job, or of the run of a study."""
    run = visit.request.match_info.get("run")
    return visit.path if run is None else partial(visit.path, "runs", run)


def _unless_known(request: web.Request, response: web.Response) -> web.Response:
    """The page, or that it has not changed: a page of a running job is asked for again and again."""
    assert response.text is not None
    tag = hashlib.sha256(response.text.encode()).hexdigest()[:32]
    response.etag = tag
    response.headers["Cache-Control"] = "private, no-cache"
    known = request.if_none_match or ()
    if any(each.value == tag for each in known):
        return web.Response(
            status=304, headers={"ETag": response.headers["ETag"], "Cache-Control": "private, no-cache"}
        )
    return response


def _sentences(job: Job, events: Sequence[Event]) -> list[str]:
    """How it stands: the state, the verdict, and what follows from them."""
    lines = [state_words(job)[1]]
    if job.state.is_end:
        lines += _end_sentences(job, events)
    elif not job.is_sampling and (line := headline(job, datetime.now(UTC))):
        lines.append(line)
    elif job.is_sampling and job.progress.images:
        drawn = job.progress.drawn
        lines.append(_("{n} of {all} images are drawn.", n=drawn, all=job.progress.images))
    if job.note:
        lines.append(_("Note: {note}", note=job.note))
    if job.are_files_deleted:
        lines.append(str(JobFilesDeleted(job_id=job.id)))
    return lines


def _end_sentences(job: Job, events: Sequence[Event]) -> Iterator[str]:
    match job.terminal_event:
        case Finished() as finished:
            yield _("It is {verdict}.", verdict=result_verdict(job, finished))
            kept = {"epoch": finished.best_epoch, "epochs": finished.epochs, "time": duration(finished.seconds)}
            if finished.stopped_early:
                yield _("It stopped early, after {epochs} epochs; epoch {epoch} is kept. It took {time}.", **kept)
            else:
                yield _("Epoch {epoch} of {epochs} is kept. It took {time}.", **kept)
        case Failed() as failed:
            yield failed.message
            if failed.hint:
                yield failed.hint
        case _ if not job.is_sampling and job.progress.epochs:
            yield _("So far: {result}", result=standing_words(job))
    if tested := last_of(events, Tested):
        yield _("On images that it has never seen, it is {verdict}.", verdict=verdict(tested.test.ratio))
    if job.end_reason:
        yield end_reason_text(job.end_reason)


def _facts(job: Job) -> list[tuple[str, str]]:
    """The settings that people ask for, by name."""
    if job.is_sampling:
        spec = job.sampling
        return [
            (_("Base model"), _base_words(spec.base.source)),
            (_("Steps"), str(spec.steps)),
            (_("Guidance"), f"{spec.guidance:g}"),
        ]
    training = job.spec.training
    rows = [
        (_("Dataset"), job.dataset_name),
        (_("Base model"), _base_words(job.spec.base.source)),
        (_("Preset"), job.spec.preset),
        (_("Method"), str(job.spec.method.kind)),
        (_("Rank"), str(job.spec.method.rank) if job.spec.method.kind.has_rank else ""),
        (_("Learning rate"), ", ".join(dict.fromkeys(f"{stage.learning_rate:g}" for stage in job.spec.plan))),
        (_("Epochs"), str(training.epochs)),
        (_("Seed"), str(training.seed)),
    ]
    return [(name, value) for name, value in rows if value]


def _base_words(source: str) -> str:
    # The last part only: a page is passed on to others.
    return _("toy model for the demo") if source == TINY else Path(source).name


# -- what it drew ----------------------------------------------------------------------------------------------------


def _strips(visit: Visit, job: Job, events: Sequence[Event], votes: Mapping[int, int] | None = None) -> list[Strip]:
    if job.are_files_deleted or job.study is not None:
        return []
    job_dir = visit.site.jobs.job_dir(job)
    found = _drawn_strips(job, votes or {}) if job.is_sampling else _epoch_strips(job, events)
    there = [
        Strip(
            prompt=strip.prompt,
            seed=strip.seed,
            negative=strip.negative,
            frames=tuple(frame for frame in strip.frames if (job_dir / frame.path).is_file()),
        )
        for strip in found
    ]
    return [strip for strip in there if strip.frames]


def _has_study_samples(visit: Visit, job: Job, step: StudyStep | None) -> bool:
    """True if the samples of a study's runs lie beside each other on a sheet."""
    if step is None or step.samples is None or job.are_files_deleted:
        return False
    return (visit.site.jobs.job_dir(job) / step.samples).is_file()


def _epoch_strips(job: Job, events: Sequence[Event]) -> Iterator[Strip]:
    """The samples of one prompt and seed in all epochs; an epoch that was repeated after a loss counts once."""
    drawn = {event.epoch: event for event in all_of(events, Sampled)}
    best = best_of(job.progress.epochs)
    for index in range(max((len(event.samples) for event in drawn.values()), default=0)):
        with_it = [drawn[epoch] for epoch in sorted(drawn) if index < len(drawn[epoch].samples)]
        newest = with_it[-1].samples[index]
        frames = tuple(
            Frame(
                path=event.samples[index].path,
                words=_("epoch {epoch}", epoch=event.epoch) if event.epoch else _("the base model"),
                is_best=best is not None and event.epoch == best.epoch,
            )
            for event in with_it
        )
        yield Strip(prompt=newest.prompt, seed=newest.seed, frames=frames)


def _drawn_strips(job: Job, votes: Mapping[int, int]) -> Iterator[Strip]:
    """The images of one prompt and seed, by model and strength."""
    spec = job.sampling
    for number, prompt in enumerate(spec.prompts):
        for seed in spec.seeds:
            cells = [cell for cell in spec.cells if cell.prompt == number and cell.seed == seed]
            frames = tuple(
                Frame(
                    path=cell.path,
                    words=_cell_words(spec.models[cell.model].label, cell.strength),
                    votes=votes_words(votes.get(cell.index, 0)),
                )
                for cell in cells
            )
            yield Strip(prompt=prompt.prompt, negative=prompt.negative, seed=seed, frames=frames)


def _cell_words(label: str, strength: float | None) -> str:
    if strength is None:
        return _("the base model")
    return _("{model}, strength {strength}", model=label, strength=f"{strength:g}")


# -- its files -------------------------------------------------------------------------------------------------------


def _offered_files(visit: Visit, job: Job, events: Sequence[Event]) -> list[OfferedFile]:
    if job.are_files_deleted:
        return []
    job_dir = visit.site.jobs.job_dir(job)
    found = []
    for event in newest_files(events):
        path = PurePosixPath(event.path)
        file = ServedFile(folder=job_dir, path=event.path, name=name_of(event, job.name))
        # Of the files of epochs only the newest are kept.
        if path.parts[0] in _OFFERED and (job_dir / path).exists():
            found.append(OfferedFile(exported=event, file=file, is_folder=(job_dir / path).is_dir()))
    return found


def _report(visit: Visit, job: Job, events: Sequence[Event]) -> ServedFile | None:
    """The trainer's report as one page; None if there is none."""
    finished = last_of(events, Finished)
    if finished is None or finished.shared_report is None or job.are_files_deleted:
        return None
    report = ServedFile(folder=visit.site.jobs.job_dir(job), path=finished.shared_report, name=f"{job.name}.html")
    return None if report.bytes is None else report


def _zip_files(visit: Visit, job: Job, events: Sequence[Event]) -> list[ServedFile]:
    """All that the page offers, with the names that they have there."""
    if job.are_files_deleted:
        return []
    job_dir = visit.site.jobs.job_dir(job)
    files: list[ServedFile] = []
    for each in _offered_files(visit, job, events):
        if each.is_folder:
            files += _folder_files(job_dir, each.file.path)
        else:
            files.append(each.file)
    for strip in _strips(visit, job, events):
        files += [ServedFile(folder=job_dir, path=frame.path, name=frame.path) for frame in strip.frames]
    files += [
        ServedFile(folder=job_dir, path=sheet.path, name=sheet.path)
        for event in all_of(events, SamplingFinished)
        for sheet in event.sheets
    ]
    if finished := last_of(events, Finished):
        files.append(ServedFile(folder=job_dir, path=finished.comparison, name=finished.comparison))
    if report := _report(visit, job, events):
        files.append(ServedFile(folder=report.folder, path=report.path, name="report.html"))
    readme = ServedFile(folder=job_dir, path="output/README.md", name="README.md")
    files = [*files, readme]
    # Two events may name one file, and a zip has each name once.
    return list({file.name: file for file in files if file.bytes is not None}.values())


def _folder_files(job_dir: Path, path: str) -> Iterator[ServedFile]:
    """The files of an exported folder, by their paths in it."""
    for each in sorted((job_dir / path).rglob("*")):
        if each.is_file() and not each.is_symlink():
            inside = each.relative_to(job_dir).as_posix()
            yield ServedFile(folder=job_dir, path=inside, name=each.relative_to((job_dir / path).parent).as_posix())


# -- the curve -------------------------------------------------------------------------------------------------------


def _curve(ended: Sequence[EpochEnded]) -> Curve | None:
    """The curve of at least two epochs; an epoch that was repeated after a loss counts once."""
    by_epoch = {each.epoch: each for each in ended}
    if len(by_epoch) < 2:
        return None
    epochs = [by_epoch[epoch] for epoch in sorted(by_epoch)]
    intervals = [(each.validation.ratio_low, each.validation.ratio_high) for each in epochs]
    ratios = [each.validation.ratio for each in epochs]
    found = (1.0, *ratios, *(edge for pair in intervals for edge in pair))
    values: list[float] = [value for value in found if _is_drawable(value)]
    low, high = min(values), max(values)
    (width, height), (left, top, right, bottom) = _CURVE, _MARGIN
    last = epochs[-1].epoch

    def x(epoch: int) -> float:
        return round(left + (width - left - right) * epoch / last, 1)

    def y(ratio: float) -> float:
        share = (min(max(ratio, low), high) - low) / max(high - low, 1e-6)
        return round(height - bottom - (height - top - bottom) * share, 1)

    drawn = [(0, 1.0), *((each.epoch, each.validation.ratio) for each in epochs if _is_drawable(each.validation.ratio))]
    measured = [(each.epoch, *pair) for each, pair in zip(epochs, intervals, strict=True)]
    lower = [(epoch, low) for epoch, low, _high in measured if _is_drawable(low)]
    upper = [(epoch, high) for epoch, _low, high in reversed(measured) if _is_drawable(high)]
    best = by_epoch.get(epochs[-1].best_epoch)
    return Curve(
        line=" ".join(f"{x(epoch)},{y(ratio)}" for epoch, ratio in drawn),
        band=" ".join(f"{x(epoch)},{y(ratio)}" for epoch, ratio in (*lower, *upper)),
        base_y=y(1.0),
        scale=tuple((y(value), f"{value:.2f}") for value in dict.fromkeys((low, 1.0, high))),
        best=(x(best.epoch), y(best.validation.ratio), best.epoch) if best else None,
        last_epoch=last,
    )


def _is_drawable(value: float | None) -> TypeGuard[float]:
    # Neither missing nor infinite nor no number.
    return value is not None and 0 <= value < 100
