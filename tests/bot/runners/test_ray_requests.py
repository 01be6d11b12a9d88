"""What a cluster's head is asked, and what its answers mean; told by a head that is a small web server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bot.config import QueueSettings, RaySettings
from bot.db import Database
from bot.errors import LaunchFailed, RunnerUnreachable
from bot.queue import Dispatcher, JobStore, State
from bot.queue.domain.rules import MAX_EXCUSED
from bot.runners import Handle, Launch, Status
from bot.runners.ray import RayRunner
from bot.runners.ray_words import without_secrets
from tests.bot.conftest import Submit
from trainer.protocol.order import LOG_FILE
from trainer.protocol.places import DATASETS_ENV, read_places
from trainer.protocol.spec import make_spec

_NODE = {"state": "ALIVE", "resources_total": {"GPU": 4, "CPU": 16, "memory": 64e9}}


class Head:
    """Answers as Ray 2.60 does, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.submitted: dict[str, dict[str, Any]] = {}
        self.stopped: list[str] = []
        self.tokens: set[str | None] = set()
        #: What it says of every job.
        self.says: dict[str, Any] = {"status": "RUNNING"}
        self.nodes: list[dict[str, Any]] = [_NODE]
        self.is_ill = False
        #: What a job printed; None: its machine is gone.
        self.printed: str | None = None
        #: It goes away itself when it is asked for that.
        self.drops_logs = False
        self.address = ""

    async def submit(self, request: web.Request) -> web.Response:
        job = await request.json()
        if self.is_ill:
            return web.Response(status=500, text="No available agent to submit job, please try again later.")
        if job["submission_id"] in self.submitted:
            return web.Response(status=500, text="Traceback\nValueError: Job with submission_id already exists.")
        self.submitted[job["submission_id"]] = job
        return web.json_response({"submission_id": job["submission_id"]})

    async def job(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization"))
        if self.is_ill:
            return web.Response(status=503, text="")
        known = request.match_info["id"] in self.submitted
        return web.json_response(self.says) if known else web.Response(status=404, text="does not exist")

    async def stop(self, request: web.Request) -> web.Response:
        self.stopped.append(request.match_info["id"])
        return web.json_response({"stopped": True})

    async def logs(self, request: web.Request) -> web.Response:
        if self.drops_logs:
            assert request.transport is not None
            request.transport.abort()
        if self.printed is None:
            return web.Response(status=500, text="Traceback\naiohttp.ClientConnectorError: Cannot connect")
        return web.json_response({"logs": self.printed})

    async def list_nodes(self, request: web.Request) -> web.Response:
        return web.json_response({"data": {"result": {"result": self.nodes}}})


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    head, app = Head(), web.Application()
    app.router.add_post("/api/jobs/", head.submit)
    app.router.add_get("/api/jobs/{id}", head.job)
    app.router.add_post("/api/jobs/{id}/stop", head.stop)
    app.router.add_get("/api/jobs/{id}/logs", head.logs)
    app.router.add_get("/api/v0/nodes", head.list_nodes)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    head.address = f"http://{host}:{port}"
    yield head
    await runner.cleanup()


def make_runner(head: Head, data_dir: Path, env: Mapping[str, str] | None = None, **settings: Any) -> RayRunner:
    return RayRunner(
        RaySettings.model_validate({"address": head.address, "python": "/opt/python", **settings}),
        data_dir=data_dir,
        env={"HF_HOME": "/models"} if env is None else env,
        stop_grace_s=59.5,
        environ={"RAY_AUTH_TOKEN": "secret"},
    )


def make_launch(data_dir: Path, **more: Any) -> Launch:
    job_dir = data_dir / "jobs/7"
    dataset = data_dir / "datasets/3/prepared"
    dataset.mkdir(parents=True, exist_ok=True)
    (dataset / "report.json").write_text("{}")
    if not job_dir.exists():
        make_spec({"name": "fox", "dataset": str(dataset)}).write(job_dir)
    return Launch(**{"job_id": 7, "attempt": 2, "job_dir": job_dir, **more})


async def submitted(head: Head, data_dir: Path, launch: Launch, **settings: Any) -> dict[str, Any]:
    await make_runner(head, data_dir, **settings).launch(launch)
    [job] = head.submitted.values()
    return job


async def test_a_job_asks_for_its_resources_its_grace_and_its_environment(head: Head, tmp_path: Path) -> None:
    job = await submitted(head, tmp_path, make_launch(tmp_path, micro_batch=3), cpus=4, memory_mib=1024)

    assert (job["entrypoint_num_gpus"], job["entrypoint_num_cpus"], job["entrypoint_memory"]) == (1, 4, 1024**3)
    environment = job["runtime_env"]["env_vars"]
    assert environment == {"HF_HOME": "/models", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    folder = tmp_path / "jobs/7"
    assert job["entrypoint"] == (
        f"exec /opt/python -m trainer run {folder} --attempt=2 --micro-batch=3 >> {folder}/trainer.log 2>&1"
    )


async def test_paths_are_told_as_the_nodes_see_them(head: Head, tmp_path: Path) -> None:
    job = await submitted(head, tmp_path, make_launch(tmp_path, finish=True), shared_root="/mnt/our data")

    assert job["entrypoint"] == (
        "exec /opt/python -m trainer run '/mnt/our data/jobs/7' --attempt=2 --finish "
        ">> '/mnt/our data/jobs/7/trainer.log' 2>&1"
    )
    places = read_places(job["runtime_env"]["env_vars"])
    assert places == {str(tmp_path / "datasets/3/prepared"): "/mnt/our data/datasets/3/prepared"}


async def test_several_gpus_are_a_process_each(head: Head, tmp_path: Path) -> None:
    job = await submitted(head, tmp_path, make_launch(tmp_path, gpus=2))

    assert job["entrypoint_num_gpus"] == 2
    assert "accelerate.commands.launch" in job["entrypoint"]
    assert "--num_processes=2" in job["entrypoint"]


async def test_with_a_store_the_node_ships(head: Head, tmp_path: Path) -> None:
    job = await submitted(head, tmp_path, make_launch(tmp_path), store=f"file://{tmp_path}/store", scratch_dir="/fast")

    start, _, rest = job["entrypoint"].partition(" -- ")
    assert start.startswith(f"exec /opt/python -m trainer ship file://{tmp_path}/store/")
    assert start.endswith("--job=7 --attempt=2 --scratch=/fast")
    assert rest == "/opt/python -m trainer run JOB_DIR --attempt=2"
    assert DATASETS_ENV not in job["runtime_env"]["env_vars"]


async def test_two_bots_of_one_cluster_do_not_meet(head: Head, tmp_path: Path) -> None:
    for name in ("one", "other"):
        await make_runner(head, tmp_path / name).launch(make_launch(tmp_path / name))
    assert len(head.submitted) == 2
    assert all(name.startswith("darkroom-7-2-") for name in head.submitted)


async def test_a_second_launch_is_the_same_job(head: Head, tmp_path: Path) -> None:
    runner, launch = make_runner(head, tmp_path), make_launch(tmp_path)
    assert await runner.launch(launch) == await runner.launch(launch)
    assert head.tokens == {"Bearer secret"}


@pytest.mark.parametrize(
    ("says", "status"),
    [
        ({"status": "RUNNING"}, Status.RUNNING),
        ({"status": "PENDING"}, Status.WAITING),
        ({"status": "SUCCEEDED"}, Status.GONE),
        ({"status": "STOPPED"}, Status.GONE),
        ({"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "message": "4"}, Status.GONE),
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED"}, Status.CUT_OFF),
        # It waited for longer than the head allows, and never ran.
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"}, Status.CUT_OFF),
    ],
)
async def test_what_the_head_says_is_one_of_ours(
    head: Head, tmp_path: Path, says: dict[str, Any], status: Status
) -> None:
    runner = make_runner(head, tmp_path)
    handle = await runner.launch(make_launch(tmp_path))
    head.says = says
    assert await runner.poll(handle) is status


async def test_one_that_is_forgotten_is_gone_and_one_that_cannot_be_asked_for_is_not(
    head: Head, tmp_path: Path
) -> None:
    runner = make_runner(head, tmp_path)
    handle = await runner.launch(make_launch(tmp_path))
    head.is_ill = True
    with pytest.raises(RunnerUnreachable, match=r"answers 503"):
        await runner.poll(handle)
    head.is_ill = False
    head.submitted.clear()
    assert await runner.poll(handle) is Status.GONE


async def test_a_head_without_an_agent_is_asked_again(head: Head, tmp_path: Path) -> None:
    head.is_ill = True
    with pytest.raises(RunnerUnreachable):
        await make_runner(head, tmp_path).launch(make_launch(tmp_path))


async def test_one_that_waits_is_withdrawn_for_every_later_bot(head: Head, tmp_path: Path) -> None:
    handle = await make_runner(head, tmp_path).launch(make_launch(tmp_path))
    head.says = {"status": "PENDING"}
    await make_runner(head, tmp_path).stop(handle)

    assert await make_runner(head, tmp_path).poll(Handle(str(handle))) is Status.GONE
    assert len(head.stopped) == 1


async def test_a_request_that_only_a_lost_machine_could_hold_waits_with_a_warning(
    head: Head, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head.nodes = [{**_NODE, "state": "DEAD"}, {**_NODE, "resources_total": {"CPU": 2.0, "memory": 8 * 1024**3}}]
    runner = make_runner(head, tmp_path)
    handle = await runner.launch(make_launch(tmp_path))
    head.says = {"status": "PENDING"}
    for _ in range(3):
        assert await runner.poll(handle) is Status.WAITING

    [warning] = [record.getMessage() for record in caplog.records if "waits" in record.getMessage()]
    assert "the most that one has is 0 GPUs, 2 CPUs and 8 GiB of memory" in warning
    with pytest.raises(LaunchFailed, match="no machine of the cluster has that"):
        await runner.launch(make_launch(tmp_path, gpus=8))


# -- how a job ended -----------------------------------------------------------------------------------------------


async def log_after(
    head: Head, tmp_path: Path, says: dict[str, Any], env: Mapping[str, str] | None = None, **settings: Any
) -> str:
    runner, launch = make_runner(head, tmp_path, env, **settings), make_launch(tmp_path)
    handle = await runner.launch(launch)
    (launch.job_dir / LOG_FILE).write_text("printed by the trainer\n")
    head.says = says
    for _ in range(2):
        await runner.poll(handle)
    return (launch.job_dir / LOG_FILE).read_text()


async def test_why_ray_says_that_it_failed_stands_once_at_the_end_of_the_log(head: Head, tmp_path: Path) -> None:
    says = {"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "message": "sh: 1: no such folder"}
    said = await log_after(head, tmp_path, says)
    [name] = head.submitted
    assert said == f"printed by the trainer\n--- Ray about {name} ---\nsh: 1: no such folder\n"


async def test_one_that_did_not_fail_leaves_its_log_alone(head: Head, tmp_path: Path) -> None:
    assert await log_after(head, tmp_path, {"status": "STOPPED", "message": "m"}) == "printed by the trainer\n"


@pytest.mark.parametrize(("printed", "kept"), [("the last of it\n", True), (None, False)])
async def test_after_the_loss_of_a_node_its_output_is_asked_for(
    head: Head, tmp_path: Path, printed: str | None, kept: bool
) -> None:
    head.printed = printed
    says = {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "its node has died"}
    said = await log_after(head, tmp_path, says)
    assert "its node has died" in said
    assert ("the last of it" in said) is kept


async def test_a_head_that_cannot_say_what_a_job_printed_is_no_reason_to_ask_on(head: Head, tmp_path: Path) -> None:
    head.drops_logs = True
    says = {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "its node has died"}
    assert "its node has died" in await log_after(head, tmp_path, says)


async def test_ray_repeats_no_secrets(head: Head, tmp_path: Path) -> None:
    words = "cannot set up {'HF_TOKEN': 'hf_abc', 'HF_HOME': '/models'} for ship ftp://me:word@host/store"
    says = {"status": "FAILED", "message": words}
    said = await log_after(head, tmp_path, says, {"HF_TOKEN": "hf_abc", "HF_HOME": "/models"})
    assert "cannot set up {'HF_TOKEN': '***', 'HF_HOME': '/models'} for ship ftp://***@host/store" in said


async def test_the_log_is_fetched_from_the_store_now_and_then_and_at_the_end(head: Head, tmp_path: Path) -> None:
    now = [0.0]
    runner = make_runner(head, tmp_path, store=f"file://{tmp_path}/store")
    runner._monotonic = lambda: now[0]
    launch = make_launch(tmp_path)
    handle = await runner.launch(launch)
    [begin] = (tmp_path / "store").rglob("begin.json")
    shipped, here = begin.with_name(LOG_FILE), launch.job_dir / LOG_FILE

    async def read_after(text: str) -> str:
        shipped.write_text(text)
        await runner.poll(handle)
        return here.read_text()

    assert await read_after("one\n") == "one\n"
    assert await read_after("two\n") == "one\n"
    now[0] += 31
    assert await read_after("two\n") == "two\n"
    head.says = {"status": "FAILED", "message": "why"}
    for _ in range(2):
        said = await read_after("three\n")
        assert said.startswith("three\n---")
        assert said.count("why") == 1
    head.submitted.clear()
    assert await read_after("four\n") == "four\n"


async def test_losses_of_nodes_count_as_no_starts_until_there_were_twenty(
    head: Head, tmp_path: Path, store: JobStore, submit: Submit, db: Database
) -> None:
    await submit()
    dispatcher = Dispatcher(store, make_runner(head, tmp_path / "data"), settings=QueueSettings(max_attempts=3))
    head.says = {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "its node has died"}
    for _ in range(100):
        await dispatcher.step()
        if (await store.get(1)).state.is_end:
            break

    assert (await store.get(1)).state is State.FAILED
    row = await db.one("SELECT excused FROM job")
    assert row is not None
    assert row["excused"] == MAX_EXCUSED == 20
    assert len(head.submitted) == MAX_EXCUSED + 3


def test_a_switch_with_the_name_of_a_secret_is_none() -> None:
    env = {"HF_TOKEN_IMPLICIT": "1", "HF_TOKEN": "hf_abcdef"}
    assert without_secrets("attempt 1 of 11 with hf_abcdef", env) == "attempt 1 of 11 with ***"
