"""Jobs on this machine: detached processes that survive a restart of the bot."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError

from bot.errors import LaunchFailed
from bot.runners.child_process import run_and_capture, spawn_detached
from bot.runners.runner import Handle, RunStatus, trainer_argv
from bot.runners.warm import WaitingProcess, WarmSamplers, WarmTrainer, channel_pair
from trainer.exchange.attempt import HEARTBEAT_FILE, read_attempt, write_attempt
from trainer.exchange.job_dir import LOG_FILE
from trainer.exchange.process import ProcessIdentity, identify, is_released, read_process_file
from trainer.protocol.devices import Devices
from trainer.protocol.frozen import Frozen
from trainer.protocol.run_options import NEEDS_GPU_VARIABLE, JobKind, RunOptions
from trainer.protocol.text import _

log = logging.getLogger(__name__)

_Send: TypeAlias = Callable[[int, int], None]

#: How long a killed process of an earlier attempt may take to exit; a disk or driver can delay it.
EVICTION_S = 10.0
#: Environment variables that mark the processes of a job: its folder and its attempt.
JOB_VARIABLE, ATTEMPT_VARIABLE = "DARKROOM_JOB_DIR", "DARKROOM_ATTEMPT"


class LocalHandle(Frozen):
    """Handle of a training on this machine."""

    job_dir: Path
    #: The process that was started; None if it had exited before it could be identified.
    process: ProcessIdentity | None
    attempt: int

    @property
    def holder(self) -> ProcessIdentity | None:
        """The living process that holds the lock of the job folder, if it belongs to this attempt.

        It is not the process that was started under `accelerate launch`, whose child it is. Nor if a bot died between
        a start and storing the handle: the next bot starts a second trainer, which finds the folder locked and exits.
        """
        if self.attempt != read_attempt(self.job_dir) or self.is_released:
            return None
        holder = read_process_file(self.job_dir)
        return holder if holder is not None and holder.is_alive() else None

    @property
    def started(self) -> ProcessIdentity | None:
        """The process that was started, if it is alive and still at this job."""
        if self.process is None or self.is_released:
            return None
        return self.process if self.process.is_alive() else None

    @property
    def is_released(self) -> bool:
        """True if the process has ended this attempt: it may live on, for the next sampling job."""
        return is_released(self.job_dir, self.attempt)

    def all_processes(self) -> set[ProcessIdentity]:
        """Every living process of this attempt."""
        marked = {each for each, attempt in find_marked(self.job_dir).items() if attempt == self.attempt}
        return marked | {each for each in (self.started, self.holder) if each is not None}


class LocalRunner:
    """Runs `command run JOB_DIR` in a session of its own, with its output in JOB_DIR/trainer.log.

    A `warm` trainer that is ready takes the job instead, with its libraries already loaded; a sampling job is taken by
    one of the `samplers`, with its base already loaded. Nothing else differs.
    """

    def __init__(
        self,
        *,
        command: Sequence[str] = (sys.executable, "-m", "trainer"),
        env: Mapping[str, str] | None = None,
        warm: WarmTrainer | None = None,
        samplers: WarmSamplers | None = None,
    ) -> None:
        self._command = tuple(command)
        self._env = dict(os.environ if env is None else env)
        self._warm = warm
        self._samplers = samplers
        #: Children that were not reaped yet; those of an earlier bot belong to init.
        self._children: set[int] = set()

    async def launch(self, options: RunOptions) -> Handle:
        """Start the training; adopt a living process of the same attempt and kill those of earlier attempts.

        Raises:
            LaunchFailed: It cannot be started, or an earlier process does not exit.
        """
        found = await asyncio.to_thread(_evict_previous_attempts, options)
        if found is not None:
            log.info("#%d: adopting process %d", options.job_id, found.pid)
            return _dump(LocalHandle(job_dir=options.job_dir, process=found, attempt=options.attempt))
        pid, how = await self._start(options)
        self._children.add(pid)
        finish = ", finish" if options.finish else ""
        log.info("#%d: process %d %s (attempt %d%s)", options.job_id, pid, how, options.attempt, finish)
        return _dump(LocalHandle(job_dir=options.job_dir, process=identify(pid), attempt=options.attempt))

    async def _start(self, options: RunOptions) -> tuple[int, str]:
        """Return the pid and a word for the log."""
        options = options.model_copy(update={"job_dir": options.job_dir.absolute()})
        samplers = self._samplers
        if samplers is None:
            options = options.model_copy(update={"stay_s": 0.0})
        elif options.kind is JobKind.TRAIN:
            await samplers.make_room(options)
        elif (pid := await samplers.take(options)) is not None:
            return pid, "still had a base loaded and took the job"
        if self._warm is not None and options.gpus < 2 and (waiting := await self._warm.take(options)) is not None:
            self._stay_or_close(waiting, options)
            return waiting.pid, "was warm and took the job"
        return await self._start_cold(options), "started"

    async def _start_cold(self, options: RunOptions) -> int:
        argv = trainer_argv(self._command, options)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        output = [
            (os.POSIX_SPAWN_OPEN, 1, str(options.job_dir / LOG_FILE), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        if not options.stay_s:
            actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), *output]
            env = {**self._env, **job_environment(options)}
            return await asyncio.to_thread(spawn_detached, argv, env, actions)
        ours, theirs = channel_pair()
        with theirs:
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0), *output]
            # Without the mark of the job, which is not its last one.
            env = {**self._env, **device_environment(options)}
            try:
                pid = await asyncio.to_thread(spawn_detached, argv, env, actions)
            except LaunchFailed:
                ours.close()
                raise
        self._stay_or_close(WaitingProcess(pid, ours), options)
        return pid

    def _stay_or_close(self, process: WaitingProcess, options: RunOptions) -> None:
        if options.stay_s and self._samplers is not None:
            self._samplers.add(process, options)
        else:
            process.channel.close()

    async def poll(self, handle: Handle) -> RunStatus:
        """Return the state of the process, and reap it if it has exited."""
        loaded = _load(handle)
        is_running = loaded.started is not None or loaded.holder is not None
        # After the check: a child that has exited by now is reaped by this call, which may be the last.
        self._reap()
        if is_running:
            return RunStatus.RUNNING
        is_node_lost = loaded.process is not None and loaded.process.is_of_earlier_boot()
        return RunStatus.NODE_LOST if is_node_lost else RunStatus.EXITED

    async def stop(self, handle: Handle) -> None:
        """Send SIGTERM to the trainer, which ends its own helpers.

        The launcher gets no signal: `accelerate launch` would give its processes 30 s and then kill them.
        """
        loaded = _load(handle)
        trainer = loaded.holder or loaded.started
        if trainer is not None:
            _signal(os.kill, trainer.pid, signal.SIGTERM)

    async def kill(self, handle: Handle) -> None:
        """Send SIGKILL to each process, and to the whole group of a group leader."""
        _kill(await asyncio.to_thread(_load(handle).all_processes), _load(handle).job_dir)

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                self._children.discard(pid)
                continue
            if done:
                self._children.discard(pid)
                log.info("process %d exited with status %d", pid, os.waitstatus_to_exitcode(status))


def _evict_previous_attempts(options: RunOptions) -> ProcessIdentity | None:
    """Return the living process of this very attempt, if any; else kill those of earlier attempts and fence the folder.

    Kill first, then fence: a bot that dies in between finds the remaining processes at its next start.

    Raises:
        LaunchFailed: A process of an earlier attempt does not exit.
        OSError: The folder cannot be written.
    """
    living = find_marked(options.job_dir)
    holder = read_process_file(options.job_dir)
    if holder is not None and holder.is_alive():
        living.setdefault(holder, read_attempt(options.job_dir))
    ours = [each for each, attempt in living.items() if attempt == options.attempt]
    if holder in ours:
        return holder
    if ours:
        return ours[0]
    _kill(living, options.job_dir)
    until = time.monotonic() + EVICTION_S
    while left := [each for each in living if each.is_alive()]:
        if time.monotonic() > until:
            why = f"process {left[0].pid} of an earlier attempt does not end"
            raise LaunchFailed(command=f"attempt {options.attempt}", why=why)
        time.sleep(0.02)
    write_attempt(options.job_dir, options.attempt)
    # The next heartbeat is then of this attempt.
    (options.job_dir / HEARTBEAT_FILE).unlink(missing_ok=True)
    return None


def job_environment(options: RunOptions) -> Mapping[str, str]:
    """Return the variables that a trainer gets beside the bot's: its mark and its GPUs."""
    mark = {JOB_VARIABLE: str(options.job_dir.absolute()), ATTEMPT_VARIABLE: str(options.attempt)}
    return {**mark, **device_environment(options)}


def device_environment(options: RunOptions) -> Mapping[str, str]:
    """Return the variables that name the GPUs of a job; none: it runs where it can."""
    gpus = ",".join(options.devices)
    return {"CUDA_VISIBLE_DEVICES": gpus, NEEDS_GPU_VARIABLE: "1"} if gpus else {}


def find_marked(job_dir: Path) -> dict[ProcessIdentity, int]:
    """Map the living processes that were started for a job to their attempts, the oldest first.

    The mark is in their environment, so launchers, ranks and helpers are found whatever their parent is. A warm trainer
    was started without a job and has no mark.
    """
    mark = f"{JOB_VARIABLE}={job_dir.absolute()}".encode()
    found: dict[ProcessIdentity, int] = {}
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        variables = _read_environment(pid)
        if mark not in variables or pid == os.getpid():
            continue
        if (identity := identify(pid)) is not None:
            found[identity] = _attempt_in(variables)
    return dict(sorted(found.items(), key=lambda item: item[0].start_time))


def _read_environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # It has exited, or belongs to another user.
        return []


def _attempt_in(variables: list[bytes]) -> int:
    prefix = f"{ATTEMPT_VARIABLE}=".encode()
    return next((int(each.removeprefix(prefix)) for each in variables if each.startswith(prefix)), 0)


def _kill(identities: Iterable[ProcessIdentity], job_dir: Path) -> None:
    for identity in identities:
        log.warning("killing process %d (%s)", identity.pid, job_dir)
        _signal(os.killpg if _is_group_leader(identity.pid) else os.kill, identity.pid, signal.SIGKILL)


def _is_group_leader(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _signal(send: _Send, pid: int, number: signal.Signals) -> None:
    try:
        send(pid, number)
    except ProcessLookupError:
        log.info("process %d exited before %s reached it", pid, number.name)


def _dump(handle: LocalHandle) -> Handle:
    return Handle(handle.model_dump_json())


def _load(handle: Handle) -> LocalHandle:
    return LocalHandle.model_validate_json(handle)


async def query_devices(command: Sequence[str], env: Mapping[str, str], *, timeout_s: float = 60.0) -> Devices:
    """Return the GPUs of this machine, as `command devices` prints them; every failure becomes a `problem`.

    The child loads torch, which costs seconds and memory that the bot never needs.
    """
    try:
        child = await run_and_capture([*command, "devices"], env, timeout_s=timeout_s)
    except TimeoutError:
        seconds = f"{timeout_s:.0f}"
        return Devices(problem=_("Finding the GPUs took longer than {seconds} s: a driver may hang.", seconds=seconds))
    except OSError as error:
        return Devices(problem=_("The GPUs could not be queried ({why}).", why=error.strerror or error))
    if child.status != 0:
        why = f"status {child.status}: {child.last_error_line or 'no output'}"
        return Devices(problem=_("The trainer could not query the GPUs ({why}).", why=why))
    try:
        return Devices.model_validate_json(child.last_line)
    except ValidationError:
        return Devices(problem=_("The trainer's list of GPUs is not understood; do bot and trainer have one version?"))
