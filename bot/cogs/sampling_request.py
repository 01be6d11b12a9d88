"""What a member wants drawn, as it was typed into a command or a form, and the sampling that it makes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bot.cogs.services import Services
from bot.errors import Explained, JobFilesDeleted, JobRefused
from bot.queue import Job
from trainer.exchange.base_files import base_resolution
from trainer.exchange.kept_epochs import KeptEpochs, kept_epochs
from trainer.protocol.events import Sampled, last_of
from trainer.protocol.sampling import MAX_IMAGES, SIDE_STEP, SamplingSpec, check_size, make_sampling_spec
from trainer.protocol.settings import TaskKind
from trainer.protocol.text import N_, _, listed

#: Epochs that [Compare epochs] suggests.
_SUGGESTED_EPOCHS = 6
#: The largest seed and strength, and characters of a prompt (`SamplingSpec`).
_MAX_SEED, _MAX_STRENGTH, _MAX_PROMPT_CHARS = 2**31 - 1, 1.5, 500
#: Sides of images, px (`SamplingSpec`).
_MIN_SIDE, _MAX_SIDE = 64, 2048
_RANGE = re.compile(r"(\d{1,4})\s*[-–]\s*(\d{1,4})")
_SIZE = re.compile(r"(\d{2,4})\s*[x×*]\s*(\d{2,4})")
_SEPARATORS = re.compile(r"[,;\s]+")


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """What was typed; empty: as the training drew its own samples."""

    #: One on each line, or with `|` between them.
    prompts: str = ""
    negative: str = ""
    #: `base, 2, 4-8, best`, or `all`; empty: the result.
    epochs: str = ""
    strengths: str = ""
    seeds: str = ""
    #: `512x768`, or the side of a square.
    size: str = ""
    steps: int | None = None
    guidance: float | None = None

    def with_base(self) -> SamplingRequest:
        """Also draw with the base model alone."""
        return replace(self, epochs=f"base, {self.epochs or 'best'}")


class NothingKept(JobRefused):
    """No epoch of a training can be drawn with: none has ended, or their files are gone."""

    def __init__(self, *, job: Job) -> None:
        self.job_id = job.id
        if job.state.is_end:
            text = _("#{job} has no files to draw with. Train it again to try prompts.", job=job.id)
        else:
            text = _("#{job} has not saved an epoch yet. Try again when its first epoch has ended.", job=job.id)
        super().__init__(text)


class EpochNotKept(JobRefused):
    """An epoch of a training that was not saved, or is gone."""

    def __init__(self, *, job_id: int, epoch: int, kept: Sequence[int]) -> None:
        self.job_id, self.epoch, self.kept = job_id, epoch, tuple(kept)
        super().__init__(
            _(
                "Epoch {epoch} of #{job} is not saved. Saved are: {kept}. Choose among these. A training saves every "
                "epoch with the setting exports.every_epochs = 1.",
                epoch=epoch,
                job=job_id,
                kept=listed(map(str, kept), most=20),
            )
        )


class NotUnderstood(JobRefused):
    """A typed value that is none of its kind."""

    def __init__(self, *, name: str, text: str, example: str) -> None:
        self.name, self.text = name, text
        super().__init__(
            _(
                "{name}: I do not understand “{text}”. Write it like this: {example}.",
                name=name,
                text=text[:60],
                example=example,
            )
        )


class TooManyImages(Explained, JobRefused):
    """The grid has more images than one request may."""

    images: int
    allowed: int
    sentence = N_(
        "That is {images} images; one request draws at most {allowed}. Choose fewer epochs, prompts, strengths "
        "or seeds. Nothing was queued."
    )


async def sampling_of_job(services: Services, job: Job, request: SamplingRequest) -> SamplingSpec:
    """Make the sampling of what a training has learned.

    Raises:
        JobRefused: It cannot be drawn, or something typed is not understood.
        SpecError: A value is out of range.
    """
    kept = await kept_epochs_of(services, job)
    models = _models_of_job(services, job, kept, request.epochs)
    spec = job.spec
    samples = spec.samples
    settings = {
        "base": spec.base.model_dump(mode="json"),
        "models": models,
        **_drawing(request, negative=samples.negative_prompt, seed=samples.seed),
        "steps": request.steps or samples.steps,
        "guidance": samples.guidance if request.guidance is None else request.guidance,
    }
    return await _checked(services, settings, [spec.training.resolution] if spec.training.resolution else [])


async def sampling_of_base(
    services: Services, base: dict[str, Any], models: Sequence[dict[str, Any]], request: SamplingRequest
) -> SamplingSpec:
    """Make the sampling of a base model, or of a file that changes it.

    Raises:
        JobRefused, SpecError: As `sampling_of_job`.
    """
    settings = {"base": base, "models": list(models), **_drawing(request, negative="", seed=1234)}
    settings |= {} if request.steps is None else {"steps": request.steps}
    settings |= {} if request.guidance is None else {"guidance": request.guidance}
    return await _checked(services, settings, [])


async def kept_epochs_of(services: Services, job: Job) -> KeptEpochs:
    """Return the epochs of a training that can be drawn with.

    Raises:
        NotATraining, NothingKept, JobFilesDeleted: There are none.
    """
    if job.are_files_deleted:
        raise JobFilesDeleted(job_id=job.id)
    if job.spec.task is not TaskKind.DIFFUSION:
        raise JobRefused(_("#{job} sorts images into classes; it draws none.", job=job.id))
    if job.study is not None:
        raise JobRefused(
            _(
                "#{job} is a study: it has no model of its own. Train its best settings, and draw with that training.",
                job=job.id,
            )
        )
    events = await services.jobs.events(job.id)
    kept = await asyncio.to_thread(kept_epochs, services.jobs.job_dir(job), events)
    if not kept.paths:
        raise NothingKept(job=job)
    return kept


async def suggested(services: Services, job: Job, *, compares: bool) -> SamplingRequest:
    """What a form is filled with at first.

    Raises:
        JobRefused: As `kept_epochs_of`.
    """
    kept = await kept_epochs_of(services, job)
    samples = job.spec.samples
    prompts = list(samples.prompts)
    if not prompts:
        events = await services.jobs.events(job.id)
        drawn = last_of(events, Sampled)
        prompts = list(dict.fromkeys(each.prompt for each in drawn.samples)) if drawn else []
    if not prompts and job.spec.training.trigger:
        prompts = [job.spec.training.trigger]
    epochs = ", ".join(["base", *map(str, _spread(list(kept.paths), kept.best))]) if compares else ""
    return SamplingRequest(
        prompts="\n".join(prompts[: 2 if compares else 4]),
        negative=samples.negative_prompt,
        epochs=epochs,
        strengths="1",
        seeds=str(samples.seed),
    )


def _spread(epochs: list[int], best: int | None) -> list[int]:
    """A few epochs over the whole training, the best among them."""
    if len(epochs) <= _SUGGESTED_EPOCHS:
        return epochs
    step = (len(epochs) - 1) / (_SUGGESTED_EPOCHS - 1)
    chosen = {epochs[round(index * step)] for index in range(_SUGGESTED_EPOCHS)}
    if best in epochs and best not in chosen:
        chosen.remove(min(chosen, key=lambda epoch: abs(epoch - (best or 0))))
        chosen.add(best or 0)
    return sorted(chosen)


def _drawing(request: SamplingRequest, *, negative: str, seed: int) -> dict[str, Any]:
    prompts = split_lines(request.prompts)
    if not prompts:
        raise JobRefused(_("Write at least one prompt: what should be drawn?"))
    if long := [prompt for prompt in prompts if len(prompt) > _MAX_PROMPT_CHARS]:
        raise JobRefused(
            _(
                "“{prompt}…” is longer than {most} characters. Shorten it; models read about 75 words at most.",
                prompt=long[0][:40],
                most=_MAX_PROMPT_CHARS,
            )
        )
    size = parse_size(request.size)
    return {
        "prompts": [{"prompt": prompt, "negative": request.negative.strip() or negative} for prompt in prompts],
        "seeds": parse_seeds(request.seeds) or [seed],
        "strengths": parse_strengths(request.strengths) or [1.0],
        **({} if size is None else {"width": size[0], "height": size[1]}),
    }


async def _checked(services: Services, settings: dict[str, Any], resolutions: Sequence[int]) -> SamplingSpec:
    """Validate the settings, their number of images, and their size as far as it is known from the base's files.

    Raises:
        TooManyImages: The grid is too large.
        SpecError: A value is out of range.
    """
    spec = make_sampling_spec(settings)
    allowed = min(services.config.sampling.max_images, MAX_IMAGES)
    if spec.images > allowed:
        raise TooManyImages(images=spec.images, allowed=allowed)
    if spec.width is not None and spec.height is not None:
        own = await asyncio.to_thread(base_resolution, spec.base, services.config.trainer_environment())
        if own is not None:
            check_size((spec.width, spec.height), [own, *resolutions])
    return spec


def _models_of_job(services: Services, job: Job, kept: KeptEpochs, typed: str) -> list[dict[str, Any]]:
    """The models of the grid in the order in which they were typed, each once."""
    folder = str(services.jobs.job_dir(job))
    found: dict[int, dict[str, Any]] = {}
    for epoch in parse_epochs(typed, kept):
        if epoch == 0:
            found[0] = {"kind": "base", "label": _("base model")}
        elif epoch not in kept.paths:
            raise EpochNotKept(job_id=job.id, epoch=epoch, kept=list(kept.paths))
        else:
            label = _("epoch {epoch}", epoch=epoch)
            found[epoch] = {"kind": "job", "label": label, "job_dir": folder, "epoch": epoch}
    return list(found.values())


# -- typed values -----------------------------------------------------------------------------------------------------


def split_lines(text: str) -> list[str]:
    """Prompts, one on each line or with `|` between them."""
    return [line.strip() for part in text.splitlines() for line in part.split("|") if line.strip()]


def parse_epochs(text: str, kept: KeptEpochs) -> list[int]:
    """Epochs as typed (`base, 2, 4-8, best`), 0 for the base model; empty: the result, or the newest one saved.

    Raises:
        NotUnderstood: A part is none of these.
    """
    best = kept.best if kept.best in kept.paths else max(kept.paths)
    assert best is not None
    found: list[int] = []
    for part in _SEPARATORS.split(_RANGE.sub(r"\1-\2", text.strip())):
        word = part.lower()
        between = _RANGE.fullmatch(word)
        if word in {"best", _("best").lower()}:
            found.append(best)
        elif word in {"base", _("base").lower()}:
            found.append(0)
        elif word in {"all", _("all").lower()}:
            found += kept.paths
        elif between is not None:
            first, last = sorted(map(int, between.groups()))
            # Of none the first is refused.
            found += [epoch for epoch in kept.paths if first <= epoch <= last] or [first]
        elif word.isascii() and word.isdigit() and len(word) <= 4:
            found.append(int(word))
        elif word:
            raise NotUnderstood(name=_("Epochs"), text=part, example=f"`{_('base')}, 2, 4-8, {_('best')}`")
    return list(dict.fromkeys(found)) or [best]


def parse_strengths(text: str) -> list[float]:
    """Strengths with commas or spaces between them; empty: none.

    Raises:
        NotUnderstood: A part is no number.
    """
    try:
        # A comma between digits separates two numbers here, as everywhere in these forms.
        found = [float(part) for part in _parts(text)]
    except ValueError:
        raise NotUnderstood(name=_("Strength"), text=text, example="`0.7, 1`") from None
    # Also of no number at all (`nan`).
    if not all(0 <= each <= _MAX_STRENGTH for each in found):
        raise JobRefused(
            _("Strength: {text} is not between 0 (the base model) and {most}.", text=text[:60], most=_MAX_STRENGTH)
        )
    return found


def parse_seeds(text: str) -> list[int]:
    """Seeds with commas or spaces between them; empty: none.

    Raises:
        NotUnderstood: A part is no whole number.
    """
    parts = list(_parts(text))
    if not all(part.isascii() and part.isdigit() and len(part) <= 10 and int(part) <= _MAX_SEED for part in parts):
        raise NotUnderstood(name=_("Seeds"), text=text, example="`1, 2, 3`")
    return [int(part) for part in parts]


def parse_size(text: str) -> tuple[int, int] | None:
    """Width and height; one number is a square; empty: the base's own.

    Raises:
        NotUnderstood: It is no size.
    """
    text = text.strip().lower()
    if not text:
        return None
    match = _SIZE.fullmatch(text if "x" in text or "×" in text or "*" in text else f"{text}x{text}")
    if match is None:
        raise NotUnderstood(name=_("Size"), text=text, example="`512x768`")
    width, height = int(match[1]), int(match[2])
    # What the VAE can draw; what the base draws well is checked by `check_size`.
    return _even(width), _even(height)


def _even(side: int) -> int:
    """The nearest side that an image can have, px."""
    return min(_MAX_SIDE, max(_MIN_SIDE, round(side / SIDE_STEP) * SIDE_STEP))


def other_seeds(spec: SamplingSpec) -> SamplingSpec:
    """The same grid with as many seeds that were not drawn yet."""
    first = (max(spec.seeds) + 1) % (_MAX_SEED - len(spec.seeds))
    return spec.model_copy(update={"seeds": tuple(range(first, first + len(spec.seeds)))})


def _parts(text: str) -> Iterable[str]:
    return (part for part in _SEPARATORS.split(text.strip()) if part)
