"""The memory that trainings need: asked of trainer processes, one at a time, and kept for requests to come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bot.clock import SYSTEM_CLOCK, Clock, backoff_s
from bot.config import Config
from bot.runners.child_process import run_and_capture
from trainer.exchange.base_files import version_of
from trainer.exchange.job_dir import write_spec
from trainer.exchange.memory_predictions import is_predictable, read_prediction
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.spec import Spec

log = logging.getLogger(__name__)

#: A large base takes half a minute; more on a machine under load.
_TIMEOUT_S = 600.0
#: Requests that wait for their prediction; more are not predicted.
_MOST_WAITING = 30
#: Between two tries of what failed.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 600.0, 86_400.0
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


@dataclass(frozen=True, kw_only=True)
class _Request:
    spec: Spec
    when_known: Callable[[], Awaitable[None]] | None
    #: Of who asked: the language of what is written when it is known.
    context: Context


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """What could not be predicted, and until when it is not tried again."""

    files: list[tuple[int, int]]
    tries: int
    until: float


class MemoryPredictions:
    """A plain service: `run()` in a task of its own, or `step()` by hand."""

    def __init__(
        self, config: Config, *, command: Sequence[str], env: Mapping[str, str], clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._config = config
        self._folder = config.storage.data_dir / _FOLDER
        self._command = tuple(command)
        # On the CPU, whatever the GPUs do; and a prediction is no reason to download a model.
        self._env = {**env, "CUDA_VISIBLE_DEVICES": "-1", "HF_HUB_OFFLINE": "1"}
        self._clock = clock
        self._waiting: asyncio.Queue[_Request] = asyncio.Queue(_MOST_WAITING)
        #: By base and method.
        self._failures: dict[tuple[str, str], _Failure] = {}

    def __repr__(self) -> str:
        return f"MemoryPredictions({self._folder}, {self._waiting.qsize()} wait)"

    async def of(self, spec: Spec, when_known: Callable[[], Awaitable[None]] | None = None) -> int | None:
        """Return the memory that a training needs with one image at once, bytes, if it is known.

        If not, it will be a minute later, unless its base is small or not on this machine; `when_known` is called then.
        """
        known = await self._known(spec)
        if known is None and await asyncio.to_thread(is_predictable, spec, self._env):
            self._ask(_Request(spec=spec, when_known=when_known, context=copy_context()))
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
        return await self._known(spec)

    async def step(self) -> None:
        """Wait for the next request, and predict it unless that was done meanwhile."""
        request = await self._waiting.get()
        if await self._known(request.spec) is None:
            await self._predict(request)
        if request.when_known is not None and await self._known(request.spec) is not None:
            await asyncio.create_task(_call_safely(request.when_known), context=request.context)

    async def _known(self, spec: Spec) -> int | None:
        return await asyncio.to_thread(read_prediction, self._folder, spec, self._env)

    def _ask(self, request: _Request) -> None:
        with suppress(asyncio.QueueFull):
            self._waiting.put_nowait(request)

    async def _predict(self, request: _Request) -> None:
        spec = request.spec
        kind = spec.base.source, str(spec.method.kind)
        files = await asyncio.to_thread(version_of, spec.base, self._env)
        failed = self._failures.get(kind)
        # Other files may do.
        tries = failed.tries if failed is not None and failed.files == files else 0
        if failed is not None and tries and self._clock.monotonic() < failed.until:
            return
        why = await self._run_trainer(spec)
        if not why:
            self._failures.pop(kind, None)
            return
        pause_s = backoff_s(tries + 1, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        until = self._clock.monotonic() + pause_s
        self._failures[kind] = _Failure(files=files, tries=tries + 1, until=until)
        asyncio.get_running_loop().call_later(pause_s, self._ask, request)
        log.warning("the memory of a %s on %s cannot be predicted: %s", kind[1], kind[0], why)

    async def _run_trainer(self, spec: Spec) -> str:
        """Let a trainer process predict and keep it; returns why it could not."""
        with TemporaryDirectory(prefix="darkroom-memory-") as job_dir:
            await asyncio.to_thread(write_spec, Path(job_dir), spec)
            command = [*self._command, "memory", job_dir, "--keep", str(self._folder)]
            try:
                child = await run_and_capture(command, self._env, timeout_s=_TIMEOUT_S)
            except (TimeoutError, OSError) as error:
                return str(error) or type(error).__name__
        return "" if child.status == 0 else child.last_error_line or f"exit status {child.status}"


async def _call_safely(when_known: Callable[[], Awaitable[None]]) -> None:
    try:
        await when_known()
    except Exception:
        log.exception("what waited for a prediction failed")
