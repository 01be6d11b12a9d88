"""Asking for GPUs: real processes, and every way in which they do not answer."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from bot.runners.asking import ask_devices
from trainer.protocol.devices import Devices, Gpu

GPUS = Devices(gpus=(Gpu(id="GPU-1", name="RTX 4090", memory_bytes=24 * 2**30),))


def answering(tmp_path: Path, body: str) -> tuple[str, ...]:
    script = tmp_path / "trainer.py"
    script.write_text(f"import sys, time, os\nassert sys.argv[1:] == ['devices']\n{body}\n")
    return sys.executable, str(script)


async def test_the_last_line_is_the_answer(tmp_path: Path) -> None:
    command = answering(tmp_path, f"print('loading torch')\nprint({GPUS.model_dump_json()!r})")
    assert await ask_devices(command, os.environ) == GPUS


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('CUDA is not well')", "status 1: CUDA is not well"),
        ("print('gibberish')", "not understood"),
        ("os.kill(os.getpid(), 9)", "status -9"),
    ],
)
async def test_no_answer_is_a_problem_in_words(tmp_path: Path, body: str, words: str) -> None:
    devices = await ask_devices(answering(tmp_path, body), os.environ)
    assert devices.gpus == ()
    assert words in devices.problem


async def test_a_command_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert "could not be asked" in (await ask_devices([str(tmp_path / "nothing")], {})).problem


async def test_a_driver_that_hangs_is_a_problem_and_leaves_no_process(tmp_path: Path) -> None:
    command = answering(tmp_path, f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    began = time.monotonic()
    devices = await ask_devices(command, os.environ, timeout_s=1.0)
    assert "longer than 1 s" in devices.problem
    assert time.monotonic() - began < 20
    pid = await asyncio.to_thread((tmp_path / "pid").read_text)
    assert not Path(f"/proc/{pid}").exists()  # noqa: ASYNC240
