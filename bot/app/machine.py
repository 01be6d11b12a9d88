"""The machine, or the cluster, that trainings run on: which runner, and which slots."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from bot.config import Config
from bot.errors import RunnerUnreachable
from bot.queue import Slot, slots_of
from bot.runners import LocalRunner, Runner, WarmTrainer
from bot.runners.asking import ask_devices

log = logging.getLogger(__name__)


def make_runner(
    config: Config, *, command: Sequence[str], environment: Mapping[str, str], warm: WarmTrainer | None
) -> Runner:
    """Where trainings run: a Ray cluster if one is named, else this machine."""
    if not config.ray.address:
        return LocalRunner(command=command, env=environment, warm=warm)
    # Not above: a bot of one machine needs neither its module nor fsspec.
    from bot.runners.ray import RayRunner

    return RayRunner(
        config.ray,
        data_dir=config.storage.data_dir,
        env=config.trainer.env,
        stop_grace_s=config.queue.stop_grace_s,
    )


async def find_slots(config: Config, *, command: Sequence[str], environment: Mapping[str, str]) -> list[Slot]:
    """One for each GPU of the machine or the cluster, or as many as the configuration says."""
    if config.ray.address:
        return _cluster_slots(config, config.queue.slots or await _count_cluster(config))
    devices = await ask_devices(command, environment)
    if devices.problem:
        log.warning("GPUs: %s", devices.problem)
    return slots_of(devices, config.queue.slots or None)


def _cluster_slots(config: Config, number: int) -> list[Slot]:
    """Which GPU it is, the cluster says when it starts a job; the name of the device only tells that it has one."""
    device = "cluster:{}" if config.ray.gpus else ""
    return [
        Slot(id=f"cluster:{place}", device=device.format(place), name=f"cluster {place}")
        for place in range(1, number + 1)
    ]


async def _count_cluster(config: Config) -> int:
    from bot.runners.ray import count_slots

    try:
        return await count_slots(config.ray)
    except RunnerUnreachable as error:
        log.warning("%s One slot is assumed until the bot is started again; queue.slots says how many.", error)
        return 1
