"""Datasets of the Hugging Face hub: trainer processes look one up, download it, and make files of its tables.

The process with the network opens no file, and the one that opens tables has no network; the bot does neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from bot.config import PrepareSettings, WebSettings
from bot.datasets.dataset import Received
from bot.datasets.dataset_files import folder_files, temporary_folder
from bot.datasets.dataset_store import DatasetStore
from bot.errors import PrepareFailed
from trainer.protocol.hub import HubDatasetFacts
from trainer.protocol.text import _

_LOOK_UP_S = 120.0
#: The largest dataset over a slow line.
_DOWNLOAD_S = 3600.0
_ADDRESS = "https://huggingface.co/datasets/"


def hub_name(typed: str) -> str:
    """Return the name of a dataset as the trainer takes it: people type `owner/name`, or paste its address."""
    return f"hf://{typed.strip().removeprefix(_ADDRESS).removeprefix('hf://').strip('/')}"


class HubDatasets:
    """Looks datasets up and downloads them, within the limits of uploads by page."""

    def __init__(self, store: DatasetStore, *, prepare: PrepareSettings, web: WebSettings, incoming: Path) -> None:
        self._store = store
        self._prepare = prepare
        self._web = web
        self._incoming = incoming
        #: Downloads that run, by the version that they bring.
        self._downloads: dict[str, asyncio.Task[Received]] = {}

    async def look_up(self, name: str) -> HubDatasetFacts:
        """Return what a dataset consists of.

        Args:
            name: `hf://owner/name`, also with a configuration, a folder or a revision.

        Raises:
            DatasetRefused: It is missing, not public, too large, without images, or the hub cannot be reached.
        """
        with temporary_folder(self._incoming) as folder:
            file = folder / "facts.json"
            await self._run(["fetch-dataset", name, "--facts", str(file)], name, folder, timeout_s=_LOOK_UP_S)
            try:
                return HubDatasetFacts.model_validate_json(await asyncio.to_thread(file.read_bytes))
            except (OSError, ValidationError) as error:
                raise PrepareFailed(name=name, why=_("what the trainer found out cannot be read.")) from error

    async def download(self, facts: HubDatasetFacts, *, owner_id: int) -> Received:
        """Download a dataset, as if its files had been uploaded as a folder.

        Someone who asks for it while it is downloaded gets the same files.

        Raises:
            DatasetRefused: It is no longer there, has no images, or is too large; or nothing more can be stored.
        """
        await self._store.require_share(owner_id, datasets=1, more_bytes=facts.bytes)
        while (running := self._downloads.get(facts.source)) is not None:
            shared = await asyncio.shield(running)
            # None if the first one was refused and the files were deleted.
            if (received := await self._store.find_received(shared.sha256, shared.files)) is not None:
                return received
        download = self._downloads[facts.source] = asyncio.create_task(self._download(facts))
        try:
            return await download
        finally:
            del self._downloads[facts.source]

    async def _download(self, facts: HubDatasetFacts) -> Received:
        # The tables and the images in them lie on the disk at the same time.
        await self._store.require_disk(facts.bytes * (2 if facts.has_tables else 1))
        max_bytes, max_files = self._web.max_upload_bytes, self._web.max_upload_files
        with temporary_folder(self._incoming) as folder:
            out = folder / facts.name.split("/")[1]
            arguments = ["fetch-dataset", facts.source, "--out", str(out)]
            await self._run(arguments, facts.name, folder, timeout_s=_DOWNLOAD_S)
            if facts.has_tables:
                timeout_s = self._prepare.timeout_s
                await self._run(["extract-rows", str(out)], facts.name, folder, timeout_s=timeout_s, is_confined=True)
            paths = await asyncio.to_thread(folder_files, out, max_files=max_files, max_bytes=max_bytes)
            return await self._store.adopt(paths)

    async def _run(
        self, arguments: Sequence[str], title: str, folder: Path, *, timeout_s: float, is_confined: bool = False
    ) -> None:
        """Run a trainer command within the limits; its messages go to a log in `folder`.

        Raises:
            DatasetRefused: It refused, took too long, or died.
        """
        max_bytes = self._web.max_upload_bytes
        limits = {"max_archive_bytes": max_bytes, "max_entries": self._web.max_upload_files}
        await self._store.runner.run(
            [*arguments, *(part for name, value in limits.items() for part in ("--limit", f"{name}={value}"))],
            title,
            folder / f"{arguments[0]}.log",
            timeout_s=timeout_s,
            memory_mib=self._prepare.memory_mib,
            file_bytes=max_bytes,
            is_confined=is_confined,
        )
