"""What a person learns of a model beside its loss, at the end of a job: samples that were learnt by heart, pictures
that have nothing to do with the data before and after, and training pictures that were never learnt."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from trainer.dataset.split.overlap import Member, thumbnail_of
from trainer.errors import TrainerError
from trainer.protocol.events import Finished, Phase, Warned
from trainer.protocol.mix import MixRole
from trainer.protocol.report import Split
from trainer.protocol.settings import TaskKind
from trainer.report.gallery import draw_comparison
from trainer.report.insights import (
    Forgetting,
    Insight,
    Memorization,
    NearPicture,
    NeverLearnt,
    PromptLikeness,
    write_insight,
)
from trainer.report.run_pages import PAGE_NAME, write_run_page
from trainer.tasks.similarity import Album, Near, feature_distance, mean_likeness, pixel_difference
from trainer.tasks.task import Shown
from trainer.training.drawing import open_shown, sample_folder, shown_examples
from trainer.training.image_history import never_learnt, read_history, sentence_of
from trainer.training.insight_words import forgetting_in_words, memorization_in_words
from trainer.training.measuring import HISTORY_FILE
from trainer.training.session import Session
from trainer.training.stop import StopRequestedError

if TYPE_CHECKING:
    from trainer.tasks.embedding import Embedder

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Small copies of training pictures that the report shows, so that the job's folder can be read without its datasets.
_PICTURES = "insight"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One prompt and seed, drawn by the base model and by the trained one."""

    before: Shown
    after: Shown


def gain_insight(session: Session) -> None:
    """Look at the model as it is now, the best epoch's, and keep what was found in `insight.json`.

    It must come before the export, which takes the model off the device; every process must call it. A part that fails
    is warned of, and the job goes on. It costs about as much as the samples of two epochs, and 2 ms for each training
    picture; runs of a study, which are not tested either, do without.

    Raises:
        StopRequestedError: somebody asked this process to stop.
    """
    if not session.spec.validation.test:
        return
    unrelated = _attempt(session, "The unrelated prompts", lambda: _draw_unrelated(session)) or []
    session.processes.wait()
    if not session.processes.is_main:
        return
    insight = _attempt(session, "Pictures that never learn", lambda: _look_at_histories(session)) or Insight()
    if session.spec.task is TaskKind.DIFFUSION:
        insight = insight.model_copy(update=_look_at_drawings(session, unrelated))
    write_insight(insight, session.job_dir)
    if (near := insight.memorization) is not None and any(picture.is_same for picture in near.pictures):
        session.reporter.say(Warned, kind="learnt_by_heart", message=near.sentence)
    if insight.never_learnt:
        session.reporter.say(Warned, kind="pictures_never_learnt", message=insight.never_learnt_sentence)


def write_page(session: Session, last_word: Mapping[str, Any]) -> str | None:
    """Write the page of the job as it will be after `last_word`; its path in the job folder, None where it failed.

    Raises:
        StopRequestedError: somebody asked this process to stop.
    """
    said = session.reporter.history
    ended = Finished(seq=said[-1].seq + 1, time=time.time(), **last_word, report=PAGE_NAME)
    if not session.processes.is_main:
        return PAGE_NAME
    page = _attempt(session, "The report", lambda: write_run_page(session.job_dir, session.spec, (*said, ended)))
    return None if page is None else PAGE_NAME


def _attempt(session: Session, what: str, look: Callable[[], T]) -> T | None:
    """What `look` finds; None, and a warning, where it fails: the training itself has come out well."""
    try:
        return look()
    except StopRequestedError:
        raise
    except Exception as error:  # whatever it is, it is no reason to lose a trained model
        log.exception("insight failed: %s", what)
        why = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {str(error)[:200]}"
        session.reporter.say(Warned, kind="insight_failed", message=f"{what} could not be looked at. {why}")
        return None


def _draw_unrelated(session: Session) -> list[Pair]:
    prompts = session.spec.samples.unrelated_prompts
    if not prompts or session.spec.task is not TaskKind.DIFFUSION:
        return []
    session.begin(Phase.SAMPLING)
    folder = session.job_dir / "samples" / "unrelated"
    share, check = session.processes.share, session.check
    with session.task.base_only():
        before = session.task.draw_prompts(prompts, folder / "base", shard=share, between_steps=check)
    after = session.task.draw_prompts(prompts, folder / "best", shard=share, between_steps=check)
    return [Pair(before=one, after=other) for one, other in zip(before, after, strict=True)]


def _look_at_histories(session: Session) -> Insight:
    history = read_history(session.job_dir / "validation" / HISTORY_FILE)
    found = never_learnt(history)
    hashes = {id(picture): pixels for pixels, picture in history.pictures.items()}
    train = session.examples[Split.TRAIN]
    members = dict(zip(train.contents, train.members, strict=True))
    shown = []
    for picture in found:
        member = members[hashes[id(picture)]]
        number, dataset = _number_of(session, member)
        small = _keep_small(session, member)
        shown.append(
            NeverLearnt(
                number=number, name=member.image.source, dataset=dataset, thumbnail=small, ratios=picture.ratios
            )
        )
    curves = [one.ratios for one in history.pictures.values() if one.split is Split.TRAIN]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    usual = {epoch: median(curve[epoch] for curve in curves if epoch in curve) for epoch in epochs}
    return Insight(never_learnt=tuple(shown), never_learnt_sentence=sentence_of(found), usual_ratios=usual)


def _look_at_drawings(session: Session, unrelated: Sequence[Pair]) -> dict[str, object]:
    """The fields of `Insight` that are about drawings."""
    found: dict[str, object] = {}
    model = session.spec.samples.similarity_model
    embedder = None
    if model is not None:
        # Seconds of transformers that hardly any job needs.
        from trainer.tasks.embedding import load_embedder

        embedder = _attempt(session, "Similarity", lambda: load_embedder(model, session.task.device))
        found["similarity_model"] = model if embedder else ""
    with TemporaryDirectory() as scratch:
        album = _attempt(session, "The training pictures", lambda: _open_album(session, Path(scratch)))
        if album is None:
            return found
        pairs = _attempt(session, "The samples", lambda: _sample_pairs(session)) or []
        if pairs:
            found["memorization"] = _attempt(
                session, "What was learnt by heart", lambda: _look_at_samples(session, album, pairs, embedder)
            )
        if unrelated:
            found["forgetting"] = _attempt(
                session, "What was forgotten", lambda: _look_at_unrelated(session, album, unrelated, embedder)
            )
    if embedder is not None and pairs:
        found["likeness"] = _attempt(session, "Likeness to prompts", lambda: _likeness(embedder, pairs))
    return found


def _open_album(session: Session, scratch: Path) -> Album:
    """The pictures that are taught; class pictures are there to be kept, not to be learnt."""
    mixture = session.mixture
    taught = [member for member in mixture.of(Split.TRAIN) if mixture.source_of(member).role is MixRole.TRAIN]
    return Album(taught, [source.folder for source in mixture.sources], scratch, session.check)


def _sample_pairs(session: Session) -> list[Pair]:
    """The samples of the base and of the best epoch, which are there since the comparison."""
    before, after = (
        session.task.draw(
            shown_examples(session),
            sample_folder(session.job_dir, epoch),
            shard=slice(0, 0),
            between_steps=session.check,
        )
        for epoch in (0, session.state.stop_memory.best_epoch)
    )
    return [Pair(before=one, after=other) for one, other in zip(before, after, strict=True)]


def _look_at_samples(session: Session, album: Album, pairs: Sequence[Pair], embedder: Embedder | None) -> Memorization:
    check = session.check
    after = [album.nearest(pair.after.path, check) for pair in pairs]
    before = [album.nearest(pair.before.path, check) for pair in pairs]
    similar = _similarities(embedder, album, [pair.after.path for pair in pairs], check)
    base_similar = _similarities(embedder, album, [pair.before.path for pair in pairs], check)
    pictures = []
    for pair, near, base, similarity, base_similarity in zip(pairs, after, before, similar, base_similar, strict=True):
        number, dataset = _number_of(session, album.members[near.place])
        pictures.append(
            NearPicture(
                prompt=pair.after.prompt,
                sample=str(pair.after.path.relative_to(session.job_dir)),
                thumbnail=_keep_small(session, album.members[near.place]),
                number=number,
                name=album.members[near.place].image.source,
                dataset=dataset,
                is_same=near.is_same,
                is_mirrored=near.is_mirrored,
                difference=near.difference,
                distance=near.distance,
                similarity=similarity,
                base_is_same=base.is_same,
                base_distance=base.distance,
                base_similarity=base_similarity,
            )
        )
    sheet = _draw_nearest(session, pairs, after, pictures)
    return Memorization(sentence=memorization_in_words(pictures), sheet=sheet, pictures=tuple(pictures))


def _draw_nearest(
    session: Session, pairs: Sequence[Pair], nearest: Sequence[Near], pictures: Sequence[NearPicture]
) -> str:
    path = session.job_dir / "output" / "nearest.png"
    small = [session.job_dir / picture.thumbnail for picture in pictures]
    captions = [
        f"no. {picture.number}: {'the same' if near.is_same else f'{near.distance:.2f} away'}"
        for picture, near in zip(pictures, nearest, strict=True)
    ]
    draw_comparison(
        path,
        base=open_shown([pair.after for pair in pairs]),
        best=[_open(each) for each in small],
        captions=captions,
        headings=(f"samples, epoch {session.state.stop_memory.best_epoch}", "nearest training pictures"),
    )
    return str(path.relative_to(session.job_dir))


def _look_at_unrelated(session: Session, album: Album, pairs: Sequence[Pair], embedder: Embedder | None) -> Forgetting:
    prompts = [pair.before.prompt for pair in pairs]
    path = session.job_dir / "output" / "unrelated.png"
    draw_comparison(
        path,
        base=open_shown([pair.before for pair in pairs]),
        best=open_shown([pair.after for pair in pairs]),
        captions=prompts,
        headings=("base model", f"{session.spec.name}, epoch {session.state.stop_memory.best_epoch}"),
    )
    other_seeds = [
        feature_distance(one.before.path, other.before.path)
        for place, one in enumerate(pairs)
        for other in pairs[place + 1 :]
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
        likeness=None if embedder is None else _likeness(embedder, pairs),
    )
    return forgetting.model_copy(update={"sentence": forgetting_in_words(forgetting)})


def _similarities(
    embedder: Embedder | None, album: Album, drawings: Sequence[Path], check: Callable[[], None]
) -> list[float | None]:
    """Cosine of each drawing to the training picture that is most like it."""
    if embedder is None:
        return [None] * len(drawings)
    similarity_NM = embedder.pictures(drawings) @ embedder.pictures(album.thumbnails, check).T
    return [float(value) for value in similarity_NM.max(dim=1).values]


def _likeness(embedder: Embedder, pairs: Sequence[Pair]) -> PromptLikeness | None:
    prompts_ND = embedder.prompts([pair.after.prompt for pair in pairs])
    if prompts_ND is None:
        return None
    return PromptLikeness(
        before=mean_likeness(embedder.pictures([pair.before.path for pair in pairs]), prompts_ND),
        after=mean_likeness(embedder.pictures([pair.after.path for pair in pairs]), prompts_ND),
    )


def _number_of(session: Session, member: Member) -> tuple[int, str]:
    """The number that people know a picture by, and its dataset where there are several."""
    sources = [image.source for image in session.mixture.source_of(member).report.images]
    several = len(session.mixture.sources) > 1
    return sources.index(member.image.source) + 1, session.mixture.names[member.source] if several else ""


def _keep_small(session: Session, member: Member) -> str:
    """Copy the thumbnail of a picture into the job's folder; its path there."""
    number, _ = _number_of(session, member)
    path = session.job_dir / _PICTURES / f"{member.source}-{number:05}.jpg"
    path.parent.mkdir(exist_ok=True)
    with TemporaryDirectory() as scratch:
        folder = session.mixture.source_of(member).folder
        _open(thumbnail_of(member.image, folder, Path(scratch) / "small.png")).save(path, quality=90)
    return str(path.relative_to(session.job_dir))


def _open(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")
