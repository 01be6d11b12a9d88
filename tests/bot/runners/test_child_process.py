"""Child processes that are run to their end, and the query of the GPUs, with real processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from bot.runners.child_process import run_and_capture
from bot.runners.local import query_devices
from tests.bot.fakes import eventually
from trainer.protocol.devices import Devices, Gpu
from trainer.protocol.text import speaking

GPUS = Devices(gpus=(Gpu(id="GPU-1", name="RTX 4090", memory_bytes=24 * 2**30),))


def python(body: str) -> tuple[str, ...]:
    return sys.executable, "-c", f"import os, signal, sys, time\n{body}"


async def test_status_output_and_errors_are_captured() -> None:
    body = "print('one'); print('two'); print('why', file=sys.stderr); sys.exit(3)"
    child = await run_and_capture(python(body), os.environ, timeout_s=20)
    assert (child.status, child.last_line, child.error_text) == (3, b"two", "why")


async def test_a_child_speaks_the_language_of_its_caller() -> None:
    say = "import os; print(os.environ['DARKROOM_LANGUAGE'])"
    with speaking("zh_CN"):
        assert (await run_and_capture([sys.executable, "-c", say], {}, timeout_s=60)).stdout == b"zh_CN\n"
    assert (await run_and_capture([sys.executable, "-c", say], {}, timeout_s=60)).stdout == b"en\n"


async def test_a_signal_is_a_negative_status() -> None:
    child = await run_and_capture(python("os.kill(os.getpid(), 9)"), os.environ, timeout_s=20)
    assert child.status == -signal.SIGKILL


async def test_output_to_a_log_file_replaces_the_old_file(tmp_path: Path) -> None:
    log_path = tmp_path / "child.log"
    log_path.write_text("old")
    child = await run_and_capture(python("print('new')"), os.environ, timeout_s=20, log_path=log_path)
    assert (child.stdout, log_path.read_text()) == (b"", "new\n")


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
async def test_a_child_above_its_memory_limit_fails() -> None:
    body = "time.sleep(0.5); x = bytearray(300 * 2**20)"
    child = await run_and_capture(python(body), os.environ, timeout_s=20, memory_bytes=200 * 2**20)
    assert child.status == 1
    assert child.last_error_line == "MemoryError"


@pytest.mark.parametrize("ignored", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
async def test_after_the_timeout_no_process_of_the_group_is_left(tmp_path: Path, ignored: str) -> None:
    record = f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child}}')"
    body = f"{ignored}\nchild = os.fork()\nif child: {record}"
    pids: list[str] = []
    # On a busy machine a child may need more than a second until it has forked.
    for timeout_s in (1, 10, 60):
        with pytest.raises(TimeoutError):
            await run_and_capture(python(f"{body}\ntime.sleep(1000)"), os.environ, timeout_s=timeout_s)
        pids = (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []
        if len(pids) == 2:
            break
    assert len(pids) == 2
    await eventually(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: str) -> bool:
    """True unless it is gone or a zombie that init has not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_missing_command_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await run_and_capture([str(tmp_path / "nothing")], {}, timeout_s=1)


# -- the GPUs of this machine --------------------------------------------------------------------------------------


async def test_the_last_line_of_the_command_lists_the_gpus() -> None:
    command = python(f"assert sys.argv[1:] == ['devices']; print('loading'); print({GPUS.model_dump_json()!r})")
    assert await query_devices(command, os.environ) == GPUS


@pytest.mark.parametrize(
    "body", ["sys.exit('CUDA is broken')", "print('gibberish')", "os.kill(os.getpid(), 9)", "time.sleep(60)"]
)
async def test_a_failed_query_is_a_problem(body: str) -> None:
    devices = await query_devices(python(body), os.environ, timeout_s=1.0)
    assert devices.gpus == ()
    assert devices.problem


async def test_a_missing_trainer_is_a_problem(tmp_path: Path) -> None:
    assert (await query_devices([str(tmp_path / "nothing")], {})).problem
