"""The memory that trainings need: asked of trainer processes, one at a time, and kept for requests to come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bot.config import Config
from bot.runners.child_process import run_and_capture
from trainer.exchange.job_dir import write_spec
from trainer.exchange.memory_predictions import is_predictable, read_prediction
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.spec import Spec

log = logging.getLogger(__name__)

#: A large base takes half a minute; more on a machine under load.
_TIMEOUT_S = 600.0
#: Requests that wait for their prediction; more are not predicted.
_MOST_WAITING = 30
#: In the data folder.
_FOLDER = "predictions"
#: The training that a base's own prediction is of.
_PRESET = "lora"


def usual_memory(config: Config, label: str, environ: Mapping[str, str]) -> int | None:
    """Return the memory that a LoRA of a base needs by its preset, bytes, if it was predicted."""
    return read_prediction(config.storage.data_dir / _FOLDER, _usual_spec(config, label), environ)


def _usual_spec(config: Config, label: str) -> Spec:
    base = config.models.base_of(label)
    return spec_from_preset(_PRESET, dataset=".", base=base["source"], changes={"base": base})


class MemoryPredictions:
    """A plain service: `run()` in a task of its own, or `step()` by hand."""

    def __init__(self, config: Config, *, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._config = config
        self._folder = config.storage.data_dir / _FOLDER
        self._command = tuple(command)
        # On the CPU, whatever the GPUs do; and a prediction is no reason to download a model.
        self._env = {**env, "CUDA_VISIBLE_DEVICES": "-1", "HF_HUB_OFFLINE": "1"}
        self._waiting: asyncio.Queue[Spec] = asyncio.Queue(_MOST_WAITING)
        #: Bases and methods.
        self._failed: set[tuple[str, str]] = set()

    def __repr__(self) -> str:
        return f"MemoryPredictions({self._folder}, {self._waiting.qsize()} wait)"

    async def of(self, spec: Spec) -> int | None:
        """Return the memory that a training needs with one image at once, bytes, if it is known.

        If not, it will be a minute later, unless its base is small or not on this machine.
        """
        known = await asyncio.to_thread(read_prediction, self._folder, spec, self._env)
        if known is None and not self._waiting.full() and await asyncio.to_thread(is_predictable, spec, self._env):
            self._waiting.put_nowait(spec)
        return known

    async def run(self) -> None:
        """Predict a LoRA of each base, then what is asked for, until cancelled."""
        for label in self._config.models.sources:
            await self.of_base(label)
        while True:
            await self.step()

    async def of_base(self, label: str) -> int | None:
        """Return the memory that a LoRA of a base needs by its preset, bytes, predicted now if need be."""
        spec = _usual_spec(self._config, label)
        await self.of(spec)
        while not self._waiting.empty():
            await self.step()
        return await asyncio.to_thread(read_prediction, self._folder, spec, self._env)

    async def step(self) -> None:
        """Wait for the next request, and predict it unless that was done meanwhile."""
        spec = await self._waiting.get()
        if await asyncio.to_thread(read_prediction, self._folder, spec, self._env) is None:
            await self._predict(spec)

    async def _predict(self, spec: Spec) -> None:
        kind = spec.base.source, str(spec.method.kind)
        if kind in self._failed:
            return
        with TemporaryDirectory(prefix="darkroom-memory-") as job_dir:
            await asyncio.to_thread(write_spec, Path(job_dir), spec)
            command = [*self._command, "memory", job_dir, "--keep", str(self._folder)]
            try:
                child = await run_and_capture(command, self._env, timeout_s=_TIMEOUT_S)
                why = "" if child.status == 0 else child.last_error_line or f"exit status {child.status}"
            except (TimeoutError, OSError) as error:
                why = str(error) or type(error).__name__
        if why:
            # Until the next start of the bot.
            self._failed.add(kind)
            log.warning("the memory of a %s on %s cannot be predicted: %s", kind[1], kind[0], why)
