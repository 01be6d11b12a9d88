"""`/d/{token}`: a dataset: its images, what was found, and decisions about them, the same as in Discord.

Each form is a plain one, so that the page works without a script; with it, only the image is replaced that was decided.
A form says what its image was like when it was shown: what another person has changed meanwhile is told, not lost.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from pydantic import ValidationError

from bot.access import Ability
from bot.datasets import Dataset, may_change, may_see, require_change
from bot.datasets.decisions import (
    DECIDING,
    EditConflict,
    ReviewImage,
    ReviewQuestion,
    captions_question,
    current_caption,
    decided,
    format_rules,
    parse_rules,
    review_questions,
    undecided_images,
    with_caption,
    with_crop,
    with_rules,
)
from bot.errors import DatasetRefused, NoSuchDataset, NotFound
from bot.ui.review_page import question_heading
from bot.web.links import LinkKind
from bot.web.rendering import render, render_text
from bot.web.served_files import ServedFile, send_file, send_report
from bot.web.site import Visit, page_of, whole_number
from trainer.exchange.dataset_dir import SHARED_PAGE
from trainer.protocol.edits import Crop, Edits
from trainer.protocol.finding_labels import label, short_labels
from trainer.protocol.report import DatasetReport, Finding, FindingKind, Image
from trainer.protocol.text import _

#: Images of one page, and characters of a caption.
PAGE_SIZE, _MAX_CAPTION = 48, 4000
_OFFERED = frozenset({"thumbnails", "images", "uncropped"})
#: The part of the images that is shown: all of them.
_ALL = "all"
#: Sent by the script of the page, which replaces what has changed.
_SCRIPT = ("X-Requested-With", "fetch")


@dataclass(frozen=True, kw_only=True)
class EditedImage:
    """An image with all decisions, also those that no report contains yet."""

    number: int
    image: Image
    edits: Edits

    @property
    def key(self) -> str:
        """The hash of its whole pixels; empty if it could not be decoded."""
        return self.image.pixels_sha256 or ""

    @property
    def caption(self) -> str:
        return current_caption(self.image, self.edits)

    @property
    def decision(self) -> str:
        """`keep`, `drop`, or empty."""
        return self.edits.decisions.get(self.key, "")

    @property
    def crop(self) -> Crop | None:
        return self.edits.crops.get(self.key)

    @property
    def is_dropped(self) -> bool:
        """Whether it is left out of the training, as far as that is known before the decisions are applied."""
        return self.decision == "drop" or (self.image.status == "dropped" and self.decision != "keep")

    @property
    def is_copy(self) -> bool:
        """Exact copies are dropped whatever is decided: which of the two is meant would be ambiguous."""
        kinds = {finding.kind for finding in self.image.findings}
        return self.image.status == "dropped" and FindingKind.EXACT_DUPLICATE in kinds

    @property
    def is_unread(self) -> bool:
        """Its caption was written by a model, and no person has checked it."""
        is_written = self.key in self.edits.captions or self.key in self.edits.reviewed
        return self.image.is_caption_automatic and not is_written

    @property
    def words(self) -> str:
        """What a search finds it by."""
        return f"{self.image.source} {self.caption}".casefold()

    @property
    def labels(self) -> tuple[str, ...]:
        return short_labels(replace(self.image, findings=self.findings))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found, without what a person decided: that is shown as it is now."""
        return tuple(each for each in self.image.findings if each.kind is not FindingKind.BY_HAND)

    @property
    def name(self) -> str:
        """Its path in the archive that it came in."""
        return self.image.source.partition("!")[2] or self.image.source

    @property
    def shown(self) -> str:
        """The file that the page shows."""
        return self.image.thumbnail or ""

    @property
    def whole(self) -> str:
        """The file that a crop is chosen in."""
        return self.image.uncropped or self.image.path or self.shown

    def seen(self, what: str) -> str:
        """What a form says of its image: the state that its member has seen."""
        match what:
            case "caption":
                return hashlib.sha256(self.caption.encode()).hexdigest()[:16]
            case "crop":
                return "" if self.crop is None else self.crop.model_dump_json()
            case _:
                return self.decision


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Which images of a dataset a page shows."""

    dataset: Dataset
    report: DatasetReport
    questions: Sequence[ReviewQuestion]
    #: None: all images.
    question: ReviewQuestion | None
    search: str
    page: int
    images: Sequence[EditedImage]
    total: int

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // PAGE_SIZE))

    @property
    def part(self) -> str:
        return self.question.key if self.question else _ALL

    @property
    def undecided(self) -> int:
        """How many images of the question need a decision and have none."""
        return len(self.question.undecided(self.dataset.edits)) if self.question else 0


@page_of(LinkKind.DATASET)
async def dataset_page(visit: Visit) -> web.StreamResponse:
    """The page: some of the images, and the forms for those who may decide."""
    dataset = await _dataset(visit)
    return await _render(visit, dataset, visit.request.query)


@page_of(LinkKind.DATASET)
async def dataset_file(visit: Visit) -> web.StreamResponse:
    """An image of the dataset, small, as it is trained on, or before its crop."""
    dataset = await _dataset(visit)
    top, _slash, rest = visit.request.match_info["path"].partition("/")
    if top not in _OFFERED or not rest:
        raise web.HTTPNotFound
    file = ServedFile(folder=dataset.folder / top, path=rest, name=f"{dataset.name}-{rest.rpartition('/')[2]}")
    return await send_file(visit.request, file, is_versioned="v" in visit.request.query)


@page_of(LinkKind.DATASET)
async def dataset_report(visit: Visit) -> web.StreamResponse:
    """The trainer's own report."""
    dataset = await _dataset(visit)
    return await send_report(visit.request, ServedFile(folder=dataset.folder, path=SHARED_PAGE))


@page_of(LinkKind.DATASET)
async def decide_image(visit: Visit) -> web.StreamResponse:
    """A form of one image: keep, drop, undecide, right, caption, crop."""
    dataset = await _own_dataset(visit)
    form = await _form(visit)
    number = whole_number(form.get("number", "")) or 0
    report = await visit.site.datasets.report(dataset)
    image = report.images[number - 1] if 1 <= number <= len(report.images) else None
    if image is None or not image.pixels_sha256 or image.pixels_sha256 != form.get("key"):
        raise NotFound(_("The dataset has changed, and this image is another one now. Reload the page."))
    note = ""
    try:
        dataset = await visit.site.datasets.decide(
            dataset.id, lambda edits: _changed(EditedImage(number=number, image=image, edits=edits), form)
        )
    except EditConflict as conflict:
        if not _is_script(visit):
            raise
        dataset, note = await _dataset(visit), str(conflict)
    edited = EditedImage(number=number, image=image, edits=dataset.edits)
    if not _is_script(visit):
        raise web.HTTPSeeOther(f"{_back(visit, form)}#no-{number}")
    # What was not saved stays in its field.
    draft = form.get("caption", "") if note and form.get("verb") == "caption" else None
    return _answer(visit, dataset, report, edited, note=note, draft=draft)


@page_of(LinkKind.DATASET)
async def decide_all(visit: Visit) -> web.StreamResponse:
    """A form about all undecided images of a question; about every one if none is left."""
    dataset = await _own_dataset(visit)
    form = await _form(visit)
    questions = review_questions(await visit.site.datasets.report(dataset))
    question = next((each for each in questions if each.key == form.get("part")), None)
    verb = form.get("verb", "")
    if question is None or verb not in DECIDING:
        raise NotFound(_("The dataset has changed, and nothing is left to decide here. Reload the page."))
    sha256s = [each.sha256 for each in question.undecided(dataset.edits) or question.images]
    await visit.site.datasets.decide(dataset.id, lambda edits: decided(edits, verb, sha256s))
    raise web.HTTPSeeOther(_back(visit, form))


@page_of(LinkKind.DATASET)
async def change_rules(visit: Visit) -> web.StreamResponse:
    """The form of the rules for all captions."""
    dataset = await _own_dataset(visit)
    form = await _form(visit)
    texts = {name: form.get(name, "") for name in ("trigger", "prefix", "suffix", "strip", "replace")}
    # A text area sends the line ends of a network.
    rules = parse_rules({name: text.replace("\r\n", "\n") for name, text in texts.items()})
    seen = form.get("seen", "")

    def changed(edits: Edits) -> Edits:
        if seen != _seen_rules(edits) and with_rules(edits, **rules) != edits:
            raise EditConflict(
                _(
                    "Another person has changed the rules for all captions meanwhile. Yours were not saved: reload the "
                    "page, and change them again."
                )
            )
        return with_rules(edits, **rules)

    await visit.site.datasets.decide(dataset.id, changed)
    raise web.HTTPSeeOther(_back(visit, form))


@page_of(LinkKind.DATASET)
async def apply_decisions(visit: Visit) -> web.StreamResponse:
    """Make the revision with all decisions. It goes on if the browser leaves: the decisions are stored already."""
    dataset = await _own_dataset(visit)
    form = await _form(visit)
    await visit.site.datasets.apply(dataset.id)
    raise web.HTTPSeeOther(_back(visit, form))


def dataset_routes() -> list[web.RouteDef]:
    """The addresses of these pages."""
    return [
        web.get("/d/{token}", dataset_page),
        web.get("/d/{token}/files/{path:.+}", dataset_file),
        web.get("/d/{token}/report", dataset_report),
        web.post("/d/{token}/image", decide_image),
        web.post("/d/{token}/all", decide_all),
        web.post("/d/{token}/rules", change_rules),
        web.post("/d/{token}/apply", apply_decisions),
    ]


# -- who may -----------------------------------------------------------------------------------------------------------


async def _dataset(visit: Visit) -> Dataset:
    """The dataset of the link, if its member may see it now.

    Raises:
        NoSuchDataset: It was deleted, is of another server, or is private.
        RoleNeeded: The member has lost the role.
    """
    visitor = visit.visitor
    dataset = await visit.site.datasets.get_in(visit.link.guild_id, visit.link.subject_id)
    if not may_see(dataset, user_id=visitor.user_id, can_manage=visitor.can_manage):
        raise NoSuchDataset(wanted=visit.link.subject_id)
    visit.site.visitors.require(visitor, Ability.DATASETS)
    return dataset


async def _own_dataset(visit: Visit) -> Dataset:
    dataset = await _dataset(visit)
    visitor = visit.visitor
    require_change(dataset, user_id=visitor.user_id, can_manage=visitor.can_manage)
    return dataset


# -- decisions ---------------------------------------------------------------------------------------------------------


def _changed(seen: EditedImage, form: Mapping[str, str]) -> Edits:
    """The edits after a form; `seen` is the image as it is now.

    Raises:
        EditConflict: Another person has changed meanwhile what the form changes.
        DatasetRefused: The form holds nothing that can be stored.
    """
    verb, edits = form.get("verb", ""), seen.edits
    if verb in DECIDING:
        after, what = decided(edits, verb, [seen.key]), "decision"
    elif verb == "caption":
        caption = form.get("caption", "").encode(errors="ignore").decode()
        if len(caption) > _MAX_CAPTION:
            raise DatasetRefused(_("A caption has at most {n} characters. It was not saved.", n=f"{_MAX_CAPTION:,}"))
        after, what = with_caption(edits, seen.key, caption), "caption"
    elif verb == "crop":
        after, what = with_crop(edits, seen.key, _crop(form)), "crop"
    else:
        raise DatasetRefused(_("This page is older than the bot. Reload it and try again."))
    # Two people who want the same do not disturb each other.
    if after != edits and form.get(f"seen_{what}", "") != seen.seen(what):
        raise _conflict(seen, what)
    return after


def _crop(form: Mapping[str, str]) -> Crop | None:
    """The crop of a form in percent; None if all fields are empty.

    Raises:
        DatasetRefused: It is none.
    """
    sides = {name: form.get(name, "").strip().replace(",", ".") for name in ("left", "top", "right", "bottom")}
    if not any(sides.values()):
        return None
    try:
        values = {name: round(float(text) / 100, 4) for name, text in sides.items()}
        return Crop(**values)
    except (ValueError, ValidationError) as error:
        raise DatasetRefused(
            _(
                "This crop cannot be used: left and top must be smaller than right and bottom, all from 0 to 100. "
                "Nothing was changed."
            )
        ) from error


def _conflict(image: EditedImage, what: str) -> EditConflict:
    match what, image.decision:
        case "caption", _any if image.caption:
            words = _("It now says: “{caption}”. Yours was not saved.", caption=image.caption)
            sentence = _("Another person has changed the caption of this image meanwhile.")
        case "caption", _any:
            words = _("It is empty now. Yours was not saved.")
            sentence = _("Another person has changed the caption of this image meanwhile.")
        case "crop", _any:
            words = _("The page shows it as it is now. Yours was not saved.")
            sentence = _("Another person has changed the crop of this image meanwhile.")
        case _any, decision:
            sentence = _("Another person has decided about this image meanwhile.")
            words = _decision_words(decision)
    return EditConflict(f"{sentence} {words}")


def _decision_words(decision: str) -> str:
    match decision:
        case "keep":
            return _("It is kept now.")
        case "drop":
            return _("It is dropped now.")
        case _:
            return _("It is undecided now.")


def _seen_rules(edits: Edits) -> str:
    return hashlib.sha256(edits.rules.model_dump_json().encode()).hexdigest()[:16]


async def _form(visit: Visit) -> dict[str, str]:
    sent = await visit.request.post()
    return {name: value for name, value in sent.items() if isinstance(value, str)}


def _is_script(visit: Visit) -> bool:
    return visit.request.headers.get(_SCRIPT[0]) == _SCRIPT[1]


def _back(visit: Visit, form: Mapping[str, str]) -> str:
    """The page that the form was on."""
    query = {name: form[name] for name in ("part", "page", "q") if form.get(name)}
    return f"{visit.path()}?{urlencode(query)}" if query else visit.path()


# -- the page ----------------------------------------------------------------------------------------------------------


async def _render(visit: Visit, dataset: Dataset, query: Mapping[str, str]) -> web.Response:
    report = await visit.site.datasets.report(dataset)
    shown = await asyncio.to_thread(_choose, dataset, report, query)
    return render(
        visit.request,
        "dataset.html.j2",
        shown=shown,
        has_report=await asyncio.to_thread((dataset.folder / SHARED_PAGE).is_file),
        rules=format_rules(dataset.edits.rules),
        seen_rules=_seen_rules(dataset.edits),
        expires_at=visit.link.expires_at,
        **_common(visit, dataset, report),
    )


def _common(visit: Visit, dataset: Dataset, report: DatasetReport) -> dict[str, Any]:
    visitor = visit.visitor
    return {
        "dataset": dataset,
        "path": visit.path,
        "is_editor": may_change(dataset, user_id=visitor.user_id, can_manage=visitor.can_manage),
        "left": undecided_images(review_questions(report), dataset.edits),
        "label": label,
        "percent": lambda share: f"{100 * share:g}",
        "heading": question_heading,
    }


def _choose(dataset: Dataset, report: DatasetReport, query: Mapping[str, str]) -> Shown:
    """The images of the part that is asked for, with the words that are searched, on one page of them."""
    questions = review_questions(report)
    missing = captions_question(report)
    wanted = query.get("part", _ALL)
    question = next((each for each in (*questions, missing) if each.key == wanted), None)
    search = query.get("q", "").strip()[:200]
    numbered: Sequence[ReviewImage | tuple[int, Image]]
    numbered = question.images if question else list(enumerate(report.images, start=1))
    images = [_edited(each, dataset.edits) for each in numbered]
    words = search.casefold().split()
    images = [each for each in images if all(word in each.words for word in words)]
    page = min(whole_number(query.get("page", "")) or 1, max(1, -(-len(images) // PAGE_SIZE)))
    return Shown(
        dataset=dataset,
        report=report,
        questions=questions,
        question=question,
        search=search,
        page=page,
        images=images[(page - 1) * PAGE_SIZE : page * PAGE_SIZE],
        total=len(images),
    )


def _edited(each: ReviewImage | tuple[int, Image], edits: Edits) -> EditedImage:
    number, image = (each.number, each.image) if isinstance(each, ReviewImage) else each
    return EditedImage(number=number, image=image, edits=edits)


def _answer(
    visit: Visit, dataset: Dataset, report: DatasetReport, image: EditedImage, *, note: str, draft: str | None
) -> web.Response:
    """What the script of the page puts in the place of an image, and of the bar below."""
    common = _common(visit, dataset, report)
    said = note or _("Saved.")
    return web.json_response(
        {
            "tile": render_text(visit.request, "dataset_tile.html.j2", image=image, note=note, draft=draft, **common),
            "bar": render_text(visit.request, "dataset_bar.html.j2", **common),
            "said": _("Image {number}: {what}", number=image.number, what=said),
        },
        status=409 if note else 200,
    )
