"""Having a content examined, once for each revision, into a folder that appears whole or not at all."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from bot.config import CaptionSettings, PrepareSettings
from bot.datasets.dataset import Dataset
from bot.datasets.preparing import run_captions, run_prepare
from bot.datasets.revisions import is_prepared, make_young, publish, remove, report_in
from bot.errors import PrepareFailed
from trainer.protocol.edits import Edits, EditsError, read_edits
from trainer.protocol.report import DatasetReport

log = logging.getLogger(__name__)


class Examiner:
    """Runs the trainer on what people handed in."""

    def __init__(
        self, *, command: Sequence[str], env: Mapping[str, str], settings: PrepareSettings, cpu_slots: int
    ) -> None:
        self._command = tuple(command)
        self._env = dict(env)
        self._settings = settings
        #: So many examinations at a time, whatever trains: a report never waits for a training.
        self._cpu_slots = asyncio.Semaphore(cpu_slots)
        #: One examination of a content at a time; the second finds the first one's result.
        self._locks: dict[str, asyncio.Lock] = {}

    async def examine(
        self, source: Path, folder: Path, *, title: str, edits: Edits | None = None, earlier: Path | None = None
    ) -> DatasetReport:
        """The report of a revision, made now unless `folder` holds it already.

        `earlier` is a prepared folder whose decoded pictures and sides of the split are taken over.

        Raises:
            DatasetRefused: it cannot be trained on, or could not be examined; the sentence says why.
        """
        async with self._locks.setdefault(folder.parent.name, asyncio.Lock()):
            report = await asyncio.to_thread(report_in, folder)
            if report is None:
                await self._fill(source, folder, title, edits, earlier)
                report = await asyncio.to_thread(report_in, folder)
            if report is None:
                raise PrepareFailed(name=title, why="what the trainer wrote about it cannot be read.")
            # It may be one that had been left: nobody must sweep it while it comes back into use.
            await asyncio.to_thread(make_young, folder, folder.parent)
            return report

    async def captions(self, dataset: Dataset, settings: CaptionSettings) -> Edits:
        """The dataset's edits with the captions that a model wrote for its pictures.

        Raises:
            DatasetRefused: the model cannot be used, or took too long; the sentence says why.
        """
        file = dataset.folder.parent / f"captions-{secrets.token_hex(4)}.json"
        await asyncio.to_thread(dataset.edits.write, file)
        try:
            await run_captions(
                dataset.folder,
                file,
                title=dataset.name,
                log_file=dataset.folder.parent / "captions.log",
                command=self._command,
                env=self._env,
                settings=settings,
            )
            return await asyncio.to_thread(read_edits, file)
        except EditsError as error:
            raise PrepareFailed(name=dataset.name, why="the captions that were written cannot be read.") from error
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)

    async def _fill(self, source: Path, folder: Path, title: str, edits: Edits | None, earlier: Path | None) -> None:
        """Fill `folder`, by rename: one that is there is whole."""
        # A name of its own: what a killed bot had begun may still be written to by the process that outlived it.
        part, file = folder.with_suffix(f".{secrets.token_hex(4)}.part"), folder.with_suffix(".edits.json")
        await asyncio.to_thread(lambda: remove(folder, *folder.parent.glob("*.part")))
        if edits is not None:
            await asyncio.to_thread(edits.write, file)
        try:
            known = earlier is not None and await asyncio.to_thread(is_prepared, earlier)
            async with self._cpu_slots:
                await run_prepare(
                    source,
                    part,
                    title=title,
                    log_file=folder.parent / "prepare.log",
                    command=self._command,
                    env=self._env,
                    settings=self._settings,
                    edits=None if edits is None else file,
                    earlier=earlier if known else None,
                )
            await asyncio.to_thread(publish, part, folder)
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)
        log.info("%s examined: %s", title, folder)
