"""Diagnostics of the trained model: memorized samples, drift of unrelated prompts, and images that were never learned.

The result is `insight.json` in the job folder, from which the report page is made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from trainer.dataset.split.overlap import JobImage, thumbnail_path
from trainer.errors import TrainerError
from trainer.exchange.job_dir import sample_folder
from trainer.protocol.events import Exported, Finished, Phase, Warned
from trainer.protocol.report import Split
from trainer.protocol.settings import MixRole, TaskKind
from trainer.protocol.text import _, listed, ngettext, percent
from trainer.report.gallery import MAX_COMPARED, ComparedColumn, draw_comparison
from trainer.report.insights import (
    Forgetting,
    Insight,
    Memorization,
    NearImage,
    NeverLearned,
    PromptSimilarity,
    write_insight,
)
from trainer.report.model_card import write_model_card
from trainer.report.run_page import PAGE_NAME, SHARED_PAGE_NAME, write_run_page
from trainer.tasks.sample_similarity import (
    Album,
    NearestImage,
    clip_score,
    feature_distance,
    open_rgb,
    pixel_difference,
)
from trainer.tasks.task import DrawnSample
from trainer.training.image_history import describe_never_learned, never_learned, read_history
from trainer.training.run import StopRequestedError
from trainer.training.session import Session
from trainer.training.validation import HISTORY_FILE

if TYPE_CHECKING:
    from trainer.tasks.sample_similarity import Embedder

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Folder of thumbnails that the report shows, so that it can be read without the datasets.
_THUMBNAILS = "insight"
#: A distance counts as smaller below this share of the other: features of samples scatter by about as much.
_NEARER = 0.85
#: Most numbers in a sentence.
_MOST_NUMBERS = 8
#: Drift of a sample relative to the effect of another seed: below the first it is nearly unchanged, above the second
#: it is a different image.
_UNCHANGED, _DIFFERENT = 0.35, 0.85


@dataclass(frozen=True, kw_only=True)
class SamplePair:
    """Samples of one prompt and seed by the base model and by the trained model."""

    before: DrawnSample
    after: DrawnSample


def run_diagnostics(session: Session) -> None:
    """Diagnose the current (best) weights, and write `insight.json`. Every rank must call this.

    Must run before the export, which moves the model off the device. A part that fails becomes a warning. Takes about
    as long as the samples of two epochs, plus 2 ms per training image. Skipped for runs of a study, which have no test.

    Raises:
        StopRequestedError: This process was asked to stop.
    """
    if not session.spec.validation.test:
        return
    session.begin_phase(Phase.DIAGNOSING)
    unrelated = _try(session, _("The drift of unrelated prompts"), lambda: _draw_unrelated(session)) or []
    session.processes.barrier()
    if not session.processes.is_main:
        return
    insight = _try(session, _("Images that were never learned"), lambda: _find_never_learned(session)) or Insight()
    if session.spec.task is TaskKind.DIFFUSION:
        insight = insight.model_copy(update=_compare_samples(session, unrelated))
    write_insight(insight, session.job_dir)
    if (found := insight.memorization) is not None and any(each.is_same for each in found.images):
        session.reporter.emit(Warned, kind="memorized", message=found.sentence)
    if found is not None and session.state.stop_memory.best_ratio < 1 and has_moved_away(found.images):
        session.reporter.emit(Warned, kind="moved_away", message=_moved_away_sentence())
    if insight.never_learned:
        session.reporter.emit(Warned, kind="never_learned", message=insight.never_learned_sentence)


def write_report_page(session: Session, finished: Mapping[str, Any]) -> dict[str, str]:
    """Write the report page as it will be after `Finished` (with these fields); return the fields that name it.

    None of them if it fails.

    Raises:
        StopRequestedError: This process was asked to stop.
    """
    events = session.reporter.history
    named = {"report": PAGE_NAME, "shared_report": SHARED_PAGE_NAME}
    event = Finished(seq=events[-1].seq + 1, time=time.time(), **finished, **named)
    if not session.processes.is_main:
        return named
    page = _try(session, _("The report page"), lambda: write_run_page(session.job_dir, session.spec, (*events, event)))
    if any(isinstance(each, Exported) for each in events):
        _try(session, _("The model card"), lambda: write_model_card(session.job_dir, session.spec, (*events, event)))
    return {} if page is None else named


def _try(session: Session, part: str, find: Callable[[], T]) -> T | None:
    """Call `find`; if it fails, emit a warning and return None, because the training itself succeeded."""
    try:
        return find()
    except StopRequestedError:
        raise
    except Exception as error:  # no failure here is worth losing a trained model
        log.exception("diagnostics failed: %s", part)
        cause = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {str(error)[:200]}"
        message = _("{part}: this part failed. {cause}", part=part, cause=cause)
        session.reporter.emit(Warned, kind="diagnostics_failed", message=message)
        return None


def _draw_unrelated(session: Session) -> list[SamplePair]:
    prompts = session.spec.samples.unrelated_prompts
    if not prompts or session.spec.task is not TaskKind.DIFFUSION:
        return []
    folder = session.job_dir / "samples" / "unrelated"
    shard, count = session.processes.shard, session.count
    with session.task.base_only():
        before = session.task.draw_prompts(prompts, folder / "base", shard=shard, progress=count)
    after = session.task.draw_prompts(prompts, folder / "best", shard=shard, progress=count)
    return [SamplePair(before=one, after=other) for one, other in zip(before, after, strict=True)]


def _find_never_learned(session: Session) -> Insight:
    history = read_history(session.job_dir / "validation" / HISTORY_FILE)
    found = never_learned(history)
    hashes = {id(curve): pixels for pixels, curve in history.images.items()}
    train = session.examples[Split.TRAIN]
    members = dict(zip(train.contents, train.members, strict=True))
    shown = []
    for curve in found:
        member = members[hashes[id(curve)]]
        number, dataset = _number_and_dataset(session, member)
        shown.append(
            NeverLearned(
                number=number,
                name=member.image.source,
                dataset=dataset,
                thumbnail=_save_thumbnail(session, member),
                ratios=curve.ratios,
            )
        )
    curves = [each.ratios for each in history.images.values() if each.split is Split.TRAIN]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    usual = {epoch: median(curve[epoch] for curve in curves if epoch in curve) for epoch in epochs}
    return Insight(never_learned=tuple(shown), never_learned_sentence=describe_never_learned(found), usual_ratios=usual)


def _compare_samples(session: Session, unrelated: Sequence[SamplePair]) -> dict[str, object]:
    """Compare the samples with the training images; return the fields of `Insight` about samples."""
    found: dict[str, object] = {}
    model = session.spec.samples.similarity_model
    embedder = None
    if model is not None:
        # Imported here: transformers takes seconds, and few jobs use it for this.
        from trainer.tasks.sample_similarity import load_embedder

        embedder = _try(session, _("The similarity model"), lambda: load_embedder(model, session.task.device))
        found["similarity_model"] = model if embedder else ""
    with TemporaryDirectory() as scratch:
        album = _try(session, _("The training images"), lambda: _open_album(session, Path(scratch)))
        if album is None:
            return found
        pairs = _try(session, _("The samples"), lambda: _sample_pairs(session)) or []
        if pairs:
            found["memorization"] = _try(
                session, _("Memorization"), lambda: _measure_memorization(session, album, pairs, embedder)
            )
        if unrelated:
            found["forgetting"] = _try(
                session, _("Forgetting"), lambda: _measure_forgetting(session, album, unrelated, embedder)
            )
    if embedder is not None and pairs:
        found["prompt_similarity"] = _try(
            session, _("Similarity to prompts"), lambda: _prompt_similarity(embedder, pairs)
        )
    return found


def _open_album(session: Session, scratch: Path) -> Album:
    """Open the images that are learned; class images are not."""
    mixture = session.mixture
    learned = [member for member in mixture.of(Split.TRAIN) if mixture.source_of(member).role is MixRole.TRAIN]
    return Album(learned, [source.folder for source in mixture.sources], scratch, session.check_stop)


def _sample_pairs(session: Session) -> list[SamplePair]:
    """Return the samples of the base model and of the best epoch, which the comparison has drawn."""
    before, after = (
        session.task.draw(
            session.preview_examples,
            sample_folder(session.job_dir, epoch),
            # An empty shard draws nothing; it returns where the samples lie.
            shard=slice(0, 0),
            progress=session.count,
        )
        for epoch in (0, session.state.stop_memory.best_epoch)
    )
    return [SamplePair(before=one, after=other) for one, other in zip(before, after, strict=True)]


# -- memorization -----------------------------------------------------------------------------------------------------


def _measure_memorization(
    session: Session, album: Album, pairs: Sequence[SamplePair], embedder: Embedder | None
) -> Memorization:
    """Find the nearest training image of each sample, of the trained model and of the base."""
    check_stop = session.check_stop
    after = [album.nearest(pair.after.path, check_stop) for pair in pairs]
    before = [album.nearest(pair.before.path, check_stop) for pair in pairs]
    similar = _similarities(embedder, album, [pair.after.path for pair in pairs], check_stop)
    base_similar = _similarities(embedder, album, [pair.before.path for pair in pairs], check_stop)
    found = []
    for pair, near, base, similarity, base_similarity in zip(pairs, after, before, similar, base_similar, strict=True):
        member = album.members[near.index]
        number, dataset = _number_and_dataset(session, member)
        found.append(
            NearImage(
                prompt=pair.after.prompt,
                sample=str(pair.after.path.relative_to(session.job_dir)),
                thumbnail=_save_thumbnail(session, member),
                number=number,
                name=member.image.source,
                dataset=dataset,
                is_same=near.is_same,
                is_mirrored=near.is_mirrored,
                difference=near.image_distance,
                distance=near.distance,
                similarity=similarity,
                base_is_same=base.is_same,
                base_distance=base.distance,
                base_similarity=base_similarity,
            )
        )
    sheet = _draw_nearest(session, pairs, after, found)
    return Memorization(sentence=describe_memorization(found), sheet=sheet, images=tuple(found))


def _draw_nearest(
    session: Session, pairs: Sequence[SamplePair], nearest: Sequence[NearestImage], found: Sequence[NearImage]
) -> str:
    path = session.job_dir / "output" / "nearest.png"
    captions = [
        _("no. {n}: the same", n=each.number)
        if near.is_same
        else _("no. {n}: {distance:.2f} away", n=each.number, distance=near.distance)
        for each, near in zip(found, nearest, strict=True)
    ]
    best_epoch = session.state.stop_memory.best_epoch
    columns = [
        ComparedColumn(
            heading=_("sample"),
            note=_("epoch {epoch}", epoch=best_epoch),
            images=[pair.after.open() for pair in pairs[:MAX_COMPARED]],
        ),
        ComparedColumn(
            heading=_("most similar"),
            note=_("training image"),
            images=[open_rgb(session.job_dir / each.thumbnail) for each in found[:MAX_COMPARED]],
        ),
    ]
    draw_comparison(path, columns, captions)
    return str(path.relative_to(session.job_dir))


def describe_memorization(found: Sequence[NearImage]) -> str:
    """Describe to the user whether samples are copies of training images, and whether they moved towards them."""
    same = [each for each in found if each.is_same]
    if same:
        numbers = dict.fromkeys(
            _("no. {n} of {dataset}", n=each.number, dataset=each.dataset)
            if each.dataset
            else _("no. {n}", n=each.number)
            for each in same
        )
        text = ngettext(
            "{n} of {total} samples is a copy of a training image ({numbers}): the model has memorized it.",
            "{n} of {total} samples are copies of training images ({numbers}): the model has memorized them.",
            len(same),
            total=len(found),
            numbers=listed(numbers, most=_MOST_NUMBERS),
        )
        if before := sum(each.base_is_same for each in found):
            text += " " + ngettext(
                "{n} sample of the base model is a copy, too.", "{n} samples of the base model are copies, too.", before
            )
    else:
        text = ngettext(
            "The sample is no copy of a training image: nothing is memorized.",
            "None of the {n} samples is a copy of a training image: nothing is memorized.",
            len(found),
        )
    base, after = _median_distances(found)
    if after < _NEARER * base:
        return text + " " + _("The samples are closer to your images than those of the base model.")
    if has_moved_away(found):
        return text + " " + _("The samples are less like your images than those of the base model.")
    return text + " " + _("The samples are no closer to your images than those of the base model.")


def has_moved_away(found: Sequence[NearImage]) -> bool:
    """True if the samples are farther from the training images than the base model's."""
    base, after = _median_distances(found)
    return base < _NEARER * after


def _median_distances(found: Sequence[NearImage]) -> tuple[float, float]:
    """The distances of the base model's samples and of the trained model's to the nearest training image."""
    return median(each.base_distance for each in found), median(each.distance for each in found)


def _moved_away_sentence() -> str:
    return _(
        "The loss fell, but the samples became less like your images than the base model's. Look at them before you "
        "use the model; if they are worse, try a third of the learning rate or fewer epochs."
    )


# -- forgetting -------------------------------------------------------------------------------------------------------


def _measure_forgetting(
    session: Session, album: Album, pairs: Sequence[SamplePair], embedder: Embedder | None
) -> Forgetting:
    """Measure how far samples of unrelated prompts moved, in total and towards the training images."""
    prompts = [pair.before.prompt for pair in pairs]
    path = session.job_dir / "output" / "unrelated.png"
    best_epoch = session.state.stop_memory.best_epoch
    columns = [
        ComparedColumn(
            heading=_("before"), note=_("base model"), images=[pair.before.open() for pair in pairs[:MAX_COMPARED]]
        ),
        ComparedColumn(
            heading=_("after"),
            note=_("epoch {epoch}", epoch=best_epoch),
            images=[pair.after.open() for pair in pairs[:MAX_COMPARED]],
        ),
    ]
    draw_comparison(path, columns, prompts)
    other_seeds = [
        feature_distance(one.before.path, other.before.path)
        for index, one in enumerate(pairs)
        for other in pairs[index + 1 :]
        if one.before.prompt == other.before.prompt
    ]
    forgetting = Forgetting(
        sentence="",
        sheet=str(path.relative_to(session.job_dir)),
        prompts=tuple(dict.fromkeys(prompts)),
        moved_pixels=fmean(pixel_difference(pair.before.path, pair.after.path) for pair in pairs),
        moved_features=fmean(feature_distance(pair.before.path, pair.after.path) for pair in pairs),
        another_seed=fmean(other_seeds) if other_seeds else None,
        distance_before=fmean(album.distance(pair.before.path) for pair in pairs),
        distance_after=fmean(album.distance(pair.after.path) for pair in pairs),
        prompt_similarity=None if embedder is None else _prompt_similarity(embedder, pairs),
    )
    words = {
        "sentence": describe_forgetting(forgetting),
        "measured": measured_forgetting(forgetting),
        "leaks": has_leaked(forgetting),
    }
    return forgetting.model_copy(update=words)


def has_leaked(found: Forgetting) -> bool:
    """True if samples of unrelated prompts moved towards the training images."""
    return found.distance_after < _NEARER * found.distance_before


def describe_forgetting(found: Forgetting) -> str:
    """Describe to the user whether what was learned shows up in unrelated prompts, or how far these samples moved."""
    if has_leaked(found):
        return _(
            "Your images show up in prompts that do not ask for them. Fewer epochs, a lower rank, or class images "
            "(prior.class_prompt) help."
        )
    share = found.moved_features / found.another_seed if found.another_seed else None
    if share is None:
        return _("Unrelated prompts changed; look at the images to see how much.")
    if share < _UNCHANGED:
        return _("Unrelated prompts are nearly unchanged: the model still knows what it knew.")
    if share > _DIFFERENT:
        return _("Unrelated prompts give different images now: check whether the model still knows these subjects.")
    return _("Unrelated prompts changed, but less than another seed changes them.")


def measured_forgetting(found: Forgetting) -> str:
    """Return the numbers behind `describe_forgetting`."""
    text = _(
        "Measured: {pixels} of the pixel range, {features:.2f} in features; distance to the training images "
        "{before:.2f} before, {after:.2f} after.",
        pixels=percent(found.moved_pixels),
        features=found.moved_features,
        before=found.distance_before,
        after=found.distance_after,
    )
    if found.another_seed:
        text += " " + _("Another seed moves the base model's samples by {seed:.2f}.", seed=found.another_seed)
    return text


# -- helpers ----------------------------------------------------------------------------------------------------------


def _similarities(
    embedder: Embedder | None, album: Album, samples: Sequence[Path], check_stop: Callable[[], None]
) -> list[float | None]:
    """Return the cosine of each sample to its most similar training image; None without an embedder."""
    if embedder is None:
        return [None] * len(samples)
    similarity_NM = embedder.images(samples) @ embedder.images(album.thumbnails, check_stop).T
    return [float(value) for value in similarity_NM.max(dim=1).values]


def _prompt_similarity(embedder: Embedder, pairs: Sequence[SamplePair]) -> PromptSimilarity | None:
    prompts_ND = embedder.prompts([pair.after.prompt for pair in pairs])
    if prompts_ND is None:
        return None
    return PromptSimilarity(
        before=clip_score(embedder.images([pair.before.path for pair in pairs]), prompts_ND),
        after=clip_score(embedder.images([pair.after.path for pair in pairs]), prompts_ND),
    )


def _number_and_dataset(session: Session, member: JobImage) -> tuple[int, str]:
    """Return the number of an image in its dataset's report, and the dataset's name if there are several."""
    sources = [image.source for image in session.mixture.source_of(member).report.images]
    several = len(session.mixture.sources) > 1
    return sources.index(member.image.source) + 1, session.mixture.names[member.source] if several else ""


def _save_thumbnail(session: Session, member: JobImage) -> str:
    """Copy the thumbnail of a training image into the job folder; return its path there."""
    number, _dataset = _number_and_dataset(session, member)
    path = session.job_dir / _THUMBNAILS / f"{member.source}-{number:05}.jpg"
    path.parent.mkdir(exist_ok=True)
    with TemporaryDirectory() as scratch:
        folder = session.mixture.source_of(member).folder
        open_rgb(thumbnail_path(member.image, folder, Path(scratch) / "small.png")).save(path, quality=90)
    return str(path.relative_to(session.job_dir))
