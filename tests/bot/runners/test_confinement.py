"""What a confined process and the bot's other children can see and reach, with real processes and a real socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bot.app.compose import Parts, make_services
from bot.config import CaptionSettings, Config
from bot.db import Database
from bot.runners.child_process import run_and_capture
from bot.runners.confinement import confined
from tests.bot.cogs.conftest import FAKE_TRAINER, config_for
from tests.bot.conftest import GUILD
from tests.bot.fakes import uploads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux confines processes")

ROOT = Path(__file__).parents[3]
SECRETS = {
    name: f"secret-{name}"
    for name in ("DARKROOM_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "HTTPS_PROXY")
}

#: What a hole in a decoder could try; prints one word for each try.
PROBE = """
import os, socket, sys
def attempt(name, action):
    try:
        action()
    except OSError as error:
        print(name, type(error).__name__)
    else:
        print(name, "done")
port, pid = int(sys.argv[1]), int(sys.argv[2])
attempt("connect", lambda: socket.create_connection(("127.0.0.1", port), timeout=5))
attempt("datagram", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
attempt("environ", lambda: open(f"/proc/{pid}/environ", "rb").read(1))
attempt("memory", lambda: open(f"/proc/{pid}/mem", "rb"))
attempt("signal", lambda: os.kill(pid, 0))
attempt("unix", lambda: socket.socketpair())
attempt("move", lambda: os.rename("one/file", "two/file"))
"""


def probe(command: list[str], folder: Path) -> dict[str, str]:
    for name in ("one", "two"):
        (folder / name).mkdir()
    (folder / "one" / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        argv = [*command, str(server.getsockname()[1]), str(os.getpid())]
        output = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout
    return dict(line.split() for line in output.splitlines())


def test_a_confined_process_reaches_no_network_and_no_other_process(tmp_path: Path) -> None:
    found = probe(confined([sys.executable, "-c", PROBE]), tmp_path)

    refused = {name for name, result in found.items() if result == "PermissionError"}
    assert refused == {"connect", "datagram", "environ", "memory", "signal"}
    # What decoders in several processes need still works.
    assert {name for name, result in found.items() if result == "done"} == {"unix", "move"}


def test_what_a_confined_process_starts_is_confined_too(tmp_path: Path) -> None:
    again = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', *sys.argv[1:]]).returncode)"

    assert probe(confined([sys.executable, "-c", again, PROBE]), tmp_path)["connect"] == "PermissionError"


def test_a_command_that_does_not_exist_fails() -> None:
    result = subprocess.run(confined(["/no/such/command"]), capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (1, "/no/such/command cannot be started: No such file or directory\n")


#: Started by root, it becomes another user, for root may read everything; `PR_SET_DUMPABLE` undoes what that changes.
BOT = """
import ctypes, os, sys
sys.path.insert(0, os.getcwd())
from bot.runners.confinement import hide_memory
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
if "hidden" in sys.argv:
    hide_memory()
if os.fork() == 0:
    try:
        print(b"secret" in open(f"/proc/{os.getppid()}/environ", "rb").read(), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
    os._exit(0)
os.wait()
"""


def test_children_cannot_read_the_environment_that_the_bot_was_started_with() -> None:
    def outcome(*arguments: str) -> str:
        command, environ = [sys.executable, "-c", BOT, *arguments], {**os.environ, "DARKROOM_TOKEN": "secret"}
        output = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, check=True, timeout=60).stdout
        return output.decode().strip()

    assert (outcome(), outcome("hidden")) == ("True", "PermissionError")


async def test_children_get_the_variables_that_they_need() -> None:
    given = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "/hub"}
    environ = {**SECRETS, **given}
    config = Config()
    show = (sys.executable, "-c", "import os; print(*sorted(os.environ))")

    confined_child = await run_and_capture(show, config.confined_environment(environ), timeout_s=20, is_confined=True)
    trainer = await run_and_capture(show, config.trainer_environment(environ), timeout_s=20)

    assert set(confined_child.stdout.decode().split()) == {*given, "HF_HUB_OFFLINE", "DARKROOM_LANGUAGE"}
    assert set(trainer.stdout.decode().split()) == {*given, "HF_TOKEN", "HTTPS_PROXY", "DARKROOM_LANGUAGE"}


#: Notes what it sees beside itself, then goes on as the simple trainer.
SPY = """
import json, os, runpy, socket, sys
trainer, seen = sys.argv.pop(1), os.path.join(os.path.dirname(__file__), "seen")
try:
    socket.socket(socket.AF_INET)
    has_network = True
except OSError:
    has_network = False
secrets = sorted(name for name, value in os.environ.items() if value.startswith("secret-"))
with open(seen, "a") as file:
    print(json.dumps([sys.argv[1], "--download-only" in sys.argv, has_network, secrets]), file=file)
sys.argv[0] = trainer
sys.path[0] = os.path.dirname(trainer)
runpy.run_path(trainer, run_name="__main__")
"""


async def test_what_opens_uploads_has_neither_network_nor_secrets(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    spy = tmp_path / "spy.py"
    spy.write_text(SPY)
    config = config_for(tmp_path / "data", HF_TOKEN="secret-of-the-config")
    services, _uploads = make_services(Parts.of(config, db, trainer=(sys.executable, str(spy), FAKE_TRAINER[1])))
    datasets = services.datasets

    received = await datasets.receive(uploads({f"{n}.png": b"bare %d" % n for n in range(6)}))
    dataset = await datasets.prepare(received, guild_id=GUILD, owner_id=5)
    await datasets.write_captions(dataset.id, CaptionSettings(model="owner/blip"))

    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert seen == [
        ["prepare", False, False, []],
        ["caption", True, True, ["HF_TOKEN", "HTTPS_PROXY"]],
        ["caption", False, False, []],
        ["prepare", False, False, []],
    ]
