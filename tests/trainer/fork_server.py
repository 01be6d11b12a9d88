"""`python -m trainer …` without seconds of imports: forks of one server process that has loaded torch and diffusers.

    server.run("run", str(job_dir), log=job_dir / "trainer.log")     # waits; a subprocess.CompletedProcess
    trainer = server.start("run", str(job_dir))                      # pid, poll, wait, send_signal, terminate, kill
    subprocess.run([*server.command, "run", str(job_dir)])           # for code that starts the trainer itself
    ForkServer("tests.wire.run_bot:main")                            # forks of another program
    ForkServer(socket=server.socket)                                 # the same server, from another process

A fork has the arguments, environment, working directory, standard streams, exit status and signals of a fresh process.
`command` is a small client (fork_client.py) that passes on SIGTERM and SIGINT; if the client is killed, the fork is
killed too.

The server is the only process that imports more than the standard library from here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import marshal
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tests.trainer.fork_client import send

ROOT = Path(__file__).parents[2]
_CLIENT = Path(__file__).with_name("fork_client.py")
#: `module:name` of a function that takes the arguments and returns the exit status.
TRAINER = "trainer.__main__:main"
#: Set for trainers that draw no charts (quick_charts.py).
QUICK_CHARTS_VARIABLE = "DARKROOM_QUICK_CHARTS"
#: A function `module:name` that the fork calls with these arguments before it runs the program.
Hook: TypeAlias = tuple[str, list[Any]]


class ForkedProcess:
    """One fork, with the interface of `subprocess.Popen`."""

    def __init__(self, connection: socket.socket, argv: Sequence[str]) -> None:
        self.args = argv
        self.returncode: int | None = None
        self._lines = connection.makefile("r", encoding="ascii")
        self._connection = connection
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(timeout):
                    assert timeout is not None
                    raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Starts the server process, which imports `program`; a context manager.

    With a `socket`, uses the server that another process started, whatever that one has imported.
    """

    def __init__(self, program: str = TRAINER, *, imports: Sequence[str] = (), socket: str | None = None) -> None:
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = socket is not None
        if socket is not None:
            self._socket = socket
            return
        self._folder = tempfile.TemporaryDirectory(prefix="fork-")
        self._socket = str(Path(self._folder.name) / "socket")
        # Its standard input is the server's lifeline: it exits when this process does.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.fork_server", self._socket, *(imports or [program])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    @property
    def socket(self) -> str:
        """What another process needs to use this server."""
        self._wait_until_ready()
        return self._socket

    @property
    def command(self) -> tuple[str, ...]:
        """The command line to use in place of `python -m trainer` (or of the other program)."""
        self._wait_until_ready()
        return (sys.executable, "-S", "-E", str(_CLIENT), self._program, self._socket)

    def write_script(self, path: Path) -> Path:
        """Write a program that takes what `python` does, `-m trainer …`, for the setting `trainer.python`."""
        path.write_text(f'#!/bin/sh\nshift 2\nexec {shlex.join(self.command)} "$@"\n')
        path.chmod(0o755)
        return path

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process is None:
            return
        if not self._is_ready:
            self._process.kill()
        # Its input ends, and so does the server.
        self._process.communicate()
        self._folder.cleanup()

    def start(
        self,
        *argv: str,
        log: Path | None = None,
        streams: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        hook: Hook | None = None,
    ) -> ForkedProcess:
        """Start a fork with these arguments.

        Its output is appended to `log`, or goes to the descriptors `streams` (stdout, stderr), or is discarded.
        `env` is added to the environment of pytest.
        """
        self._wait_until_ready()
        environment = {**os.environ, **(env or {})}
        request = {
            "program": self._program,
            "argv": argv,
            "env": environment,
            "cwd": str(cwd or Path.cwd()),
            # `marshal` takes no enums, such as signals.
            "hook": json.loads(json.dumps(hook)),
        }
        with open(log or os.devnull, "ab") as output, open(os.devnull, "rb") as nothing:  # noqa: PTH123
            descriptors = [nothing.fileno(), *(streams or (output.fileno(), output.fileno()))]
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            send(connection, self._socket, request, descriptors)
            return ForkedProcess(connection, argv)

    def run(self, *argv: str, log: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a fork to its end; capture its output unless there is a log. See `start`."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            streams = None if log else (out.fileno(), err.fileno())
            code = self.start(*argv, log=log, streams=streams, **options).wait()
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(list(argv), code, *texts)

    def _wait_until_ready(self) -> None:
        if not self._is_ready:
            assert self._process is not None
            assert self._process.stdout is not None
            assert self._process.stdout.readline(), "the fork server did not start"
            self._is_ready = True


class _Server:
    def __init__(self, path: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(64)
        # Each child that exits writes a byte here.
        self._wakeup, wakeup_fd = socket.socketpair()
        for each in (self._wakeup, wakeup_fd):
            each.setblocking(False)
        self._wakeup_fd = wakeup_fd
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Ctrl-C at a terminal is meant for pytest, which then stops this process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(wakeup_fd.fileno())

    def serve(self) -> None:
        for file in (sys.stdin, self._listener, self._wakeup):
            self._selector.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is self._listener:
                    with contextlib.suppress(OSError, EOFError):  # the client is gone
                        self._accept()
                elif key.fileobj is self._wakeup:
                    self._wakeup.recv(4096)
                    self._reap()
                elif key.data in self._connections:
                    # The client of a fork that still runs is gone. (One that this round has reaped has a client that
                    # leaves.)
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
        try:
            body = b""
            while len(body) < int.from_bytes(header, "big") and (part := connection.recv(65536)):
                body += part
            request = marshal.loads(body)
            pid = os.fork()
            if pid == 0:
                _become(request, descriptors)
        finally:
            # Also if the client was killed as it wrote: the reader of its output waits for the end of it.
            for descriptor in descriptors:
                os.close(descriptor)
        # A client may be killed at any moment; if it has gone, its fork is killed below.
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % pid)
        self._connections[pid] = connection
        if request.get("is_client"):
            self._selector.register(connection, selectors.EVENT_READ, pid)

    def _reap(self) -> None:
        while self._connections:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self._connections.pop(pid)
            with contextlib.suppress(KeyError):
                self._selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            connection.close()


def _become(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """In the fork: run the program and leave."""
    code, program = 1, request["program"]
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # What a fork that hangs is doing: `kill -USR1 PID` writes it to its standard error.
        faulthandler.register(signal.SIGUSR1)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        os.closerange(3, 256)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.argv = [program.partition(".")[0], *request["argv"]]
        if QUICK_CHARTS_VARIABLE in os.environ:
            _function("tests.trainer.quick_charts:install")()
        if request["hook"] is not None:
            name, arguments = request["hook"]
            _function(name)(*arguments)
        code = _function(program)(request["argv"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def signal_before_step(number: int, step: int) -> None:
    """A hook: send the trainer a signal before its `step`-th optimizer step."""
    from trainer.training import recipe

    real: Any = vars(recipe)["take_step"]

    def take_step(session: Any, views: Any, at: int) -> Any:
        if at == step:
            os.kill(os.getpid(), number)
        return real(session, views, at)

    vars(recipe)["take_step"] = take_step


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _main(path: str, *programs: str) -> None:
    for program in programs:
        if program == TRAINER:
            from trainer.commands.job_processes import warm_up
            from trainer.report.templating import html_template

            warm_up()
            # Else each fork would compile the page of its training, in a tenth of a second.
            html_template("run.html.j2")
        _function(program)
    if texts := sys.modules.get("trainer.protocol.text"):
        # Else each fork would read the translations, in a fifth of a second.
        for language in texts.LANGUAGES:
            texts.catalog(language)
    server = _Server(path)
    # A fork copies each page that it writes to, and the garbage collector writes to every object that it looks at.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    server.serve()


if __name__ == "__main__":
    _main(*sys.argv[1:])
