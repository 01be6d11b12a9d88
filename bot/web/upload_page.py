"""The upload page: files and folders of any size, sent in pieces (`bot.web.tus`), and what becomes of them."""

from __future__ import annotations

from aiohttp import web

from bot.datasets import ImportRequest, PendingUpload, UploadKind
from bot.errors import NoSuchDataset, UploadClosed
from bot.ui.upload_posts import progress_step
from bot.web.links import LinkKind
from bot.web.rendering import json_block, render
from bot.web.site import Visit, page_of, upload_of
from trainer.protocol.text import _, size

#: Names and trigger words as Discord's form takes them.
_MAX_NAME, _MAX_TRIGGER = 36, 60


def upload_routes() -> list[web.RouteDef]:
    """Return the routes of the page, those of the files excluded."""
    return [web.get("/u/{token}", _show), web.get("/u/{token}/state", _state), web.post("/u/{token}", _decide)]


@page_of(LinkKind.UPLOAD)
async def _show(visit: Visit) -> web.StreamResponse:
    upload = await upload_of(visit)
    if upload is None:
        return render(visit.request, "upload_over.html.j2", upload=None)
    if not upload.is_open:
        return render(
            visit.request,
            "upload_over.html.j2",
            upload=upload,
            state=await _words(visit, upload),
            state_url=visit.path("state"),
        )
    settings = visit.site.config.web
    files = await visit.site.resumable.files(upload.interaction_id)
    max_bytes = await visit.site.max_upload_bytes(visit.visitor)
    setup = {
        "files_url": visit.path("files"),
        "files": [
            {"id": file.id, "path": file.path, "bytes": file.bytes, "offset": file.offset, "key": file.client_key}
            for file in files
        ],
        "max_bytes": max_bytes,
        "max_files": settings.max_upload_files,
        "texts": _script_texts(),
    }
    return render(
        visit.request,
        "upload.html.j2",
        upload=upload,
        dataset=await _dataset_name(visit, upload),
        form=_form_of(upload),
        action=visit.path(),
        setup=json_block(setup),
        limit=size(max_bytes),
        max_files=settings.max_upload_files,
        has_captioner=bool(visit.site.config.captions.model),
    )


@page_of(LinkKind.UPLOAD)
async def _state(visit: Visit) -> web.StreamResponse:
    """What the page shows while its files are examined: a line of text, and whether that is over."""
    upload = await upload_of(visit)
    is_over = upload is None or upload.is_open
    return web.json_response({"is_over": is_over, "text": "" if upload is None else await _words(visit, upload)})


@page_of(LinkKind.UPLOAD)
async def _decide(visit: Visit) -> web.StreamResponse:
    """[These are all files] or [Cancel this upload]."""
    upload = await upload_of(visit)
    form = await visit.request.post()
    if form.get("do") == "cancel":
        if upload is not None:
            await visit.site.resumable.cancel(upload)
        await visit.site.links.revoke(LinkKind.UPLOAD, visit.link.subject_id)
        return render(visit.request, "upload_cancelled.html.j2")
    if upload is None:
        raise UploadClosed
    texts = {name: str(form.get(name, "")).strip() for name in ("name", "trigger")}
    request = upload.request
    if upload.kind is UploadKind.IMPORT:
        asked = ImportRequest.model_validate_json(upload.request)
        request = asked.model_copy(
            update={
                "name": texts["name"][:_MAX_NAME] or None,
                "trigger": texts["trigger"][:_MAX_TRIGGER],
                "wants_captions": form.get("captions") == "on",
                "can_manage": visit.visitor.can_manage,
            }
        ).model_dump_json()
    await visit.site.resumable.close(upload, request=request)
    visit.site.finish_upload(upload.interaction_id)
    raise web.HTTPSeeOther(visit.path())


def _form_of(upload: PendingUpload) -> ImportRequest | None:
    """Return the first values of the form; None if the request or dataset of the files has them already."""
    return ImportRequest.model_validate_json(upload.request) if upload.kind is UploadKind.IMPORT else None


async def _dataset_name(visit: Visit, upload: PendingUpload) -> str:
    """The dataset that the files are added to; empty: they become a new one."""
    if upload.dataset_id is None:
        return ""
    try:
        return (await visit.site.datasets.get(upload.dataset_id)).name
    except NoSuchDataset:
        raise UploadClosed from None


async def _words(visit: Visit, upload: PendingUpload) -> str:
    arrived = await visit.site.resumable.arrived(upload)
    if arrived.progress is None:
        return _("Your files wait to be examined.")
    return progress_step(arrived.progress)


def _script_texts() -> dict[str, str]:
    """The sentences of `upload.js`; `{…}` are filled there."""
    return {
        "waiting": _("waits"),
        "sending": _("{percent} %"),
        "done": _("here"),
        "paused": _("paused"),
        "partial": _("{percent} % has arrived; add the file again to continue"),
        "retry": _("no connection; I try again by myself"),
        "full": _("the machine's disk is full; I try again by myself"),
        "refused": _("refused: {reason}"),
        "remove": _("Remove {file}"),
        "overall": _("{done} of {all} files have arrived · {sent} of {total}"),
        "rate": _("{rate} a second, about {time} left"),
        "too_many": _("You chose {files} files, and one upload may have {most}. Put them into a zip."),
        "too_large": _("These files are {size} in all, and one dataset may have {most} here."),
        "skipped_one": _("{n} file was left out: hidden files and those of the system are not needed."),
        "skipped_many": _("{n} files were left out: hidden files and those of the system are not needed."),
        "pause": _("Pause"),
        "resume": _("Go on"),
        "ended": _("This link no longer takes files. Ask for a new one in Discord."),
        "leave": _("Your files are not all here yet."),
        "seconds": _("{n} s"),
        "minutes": _("{n} min"),
        "hours": _("{n} h"),
    }
