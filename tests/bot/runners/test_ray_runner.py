"""The Ray runner against a head that is a small web server: the requests, and the meaning of its answers."""

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
from bot.queue.domain.rules import MAX_UNCOUNTED
from bot.runners import Handle, RunStatus
from bot.runners.ray import RayRunner, without_secrets
from tests.bot.conftest import Submit
from tests.bot.fakes import serve
from trainer.exchange.job_dir import LOG_FILE, read_dataset_paths, write_spec
from trainer.protocol.run_options import JobKind, RunOptions
from trainer.protocol.sampling import make_sampling_spec
from trainer.protocol.spec import make_spec

_NODE = {"state": "ALIVE", "resources_total": {"GPU": 4, "CPU": 16, "memory": 64e9}}


class Head:
    """Answers as Ray 2.60 does, and records the requests."""

    def __init__(self) -> None:
        self.submitted: dict[str, dict[str, Any]] = {}
        self.stopped: list[str] = []
        self.tokens: set[str | None] = set()
        #: Its answer about every job.
        self.answer: dict[str, Any] = {"status": "RUNNING"}
        self.nodes: list[dict[str, Any]] = [_NODE]
        self.is_down = False
        self.address = ""

    async def submit(self, request: web.Request) -> web.Response:
        job = await request.json()
        if self.is_down:
            return web.Response(status=500, text="No available agent to submit job, please try again later.")
        if job["submission_id"] in self.submitted:
            return web.Response(status=500, text="Traceback\nValueError: Job with submission_id already exists.")
        self.submitted[job["submission_id"]] = job
        return web.json_response({"submission_id": job["submission_id"]})

    async def job(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization"))
        if self.is_down:
            return web.Response(status=503, text="")
        known = request.match_info["id"] in self.submitted
        return web.json_response(self.answer) if known else web.Response(status=404, text="does not exist")

    async def stop(self, request: web.Request) -> web.Response:
        self.stopped.append(request.match_info["id"])
        return web.json_response({"stopped": True})

    async def list_nodes(self, request: web.Request) -> web.Response:
        return web.json_response({"data": {"result": {"result": self.nodes}}})


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    head = Head()
    async with serve(
        web.post("/api/jobs/", head.submit),
        web.get("/api/jobs/{id}", head.job),
        web.post("/api/jobs/{id}/stop", head.stop),
        web.get("/api/v0/nodes", head.list_nodes),
    ) as head.address:
        yield head


def make_runner(head: Head, data_dir: Path, env: Mapping[str, str] | None = None, **settings: Any) -> RayRunner:
    return RayRunner(
        RaySettings.model_validate({"address": head.address, "python": "/opt/python", **settings}),
        data_dir=data_dir,
        env={"HF_HOME": "/models"} if env is None else env,
        stop_grace_s=59.5,
        environ={"RAY_AUTH_TOKEN": "secret"},
    )


def make_options(data_dir: Path, **more: Any) -> RunOptions:
    job_dir = data_dir / "jobs/7"
    if not job_dir.exists():
        write_spec(job_dir, make_spec({"name": "fox", "dataset": str(data_dir / "datasets/3/prepared")}))
    return RunOptions(**{"job_id": 7, "attempt": 2, "job_dir": job_dir, **more})


async def submit_job(head: Head, data_dir: Path, options: RunOptions, **settings: Any) -> dict[str, Any]:
    await make_runner(head, data_dir, **settings).launch(options)
    [job] = head.submitted.values()
    return job


async def test_a_job_requests_its_resources_grace_and_environment(head: Head, tmp_path: Path) -> None:
    job = await submit_job(head, tmp_path, make_options(tmp_path, micro_batch=3), cpus=4, memory_mib=1024)

    assert (job["entrypoint_num_gpus"], job["entrypoint_num_cpus"], job["entrypoint_memory"]) == (1, 4, 1024**3)
    environment = job["runtime_env"]["env_vars"]
    assert environment == {"HF_HOME": "/models", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    folder = tmp_path / "jobs/7"
    assert job["entrypoint"] == (
        f"exec /opt/python -m trainer run {folder} --attempt=2 --micro-batch=3 >> {folder}/trainer.log 2>&1"
    )


async def test_paths_are_those_of_the_nodes(head: Head, tmp_path: Path) -> None:
    job = await submit_job(head, tmp_path, make_options(tmp_path, finish=True), shared_root="/mnt/our data")

    assert job["entrypoint"] == (
        "exec /opt/python -m trainer run '/mnt/our data/jobs/7' --attempt=2 --finish "
        ">> '/mnt/our data/jobs/7/trainer.log' 2>&1"
    )
    paths = read_dataset_paths(job["runtime_env"]["env_vars"])
    assert paths == {str(tmp_path / "datasets/3/prepared"): "/mnt/our data/datasets/3/prepared"}


async def test_a_sampling_finds_its_training_on_the_nodes_and_keeps_none_of_them(head: Head, tmp_path: Path) -> None:
    source = str(tmp_path / "jobs/3")
    model = {"kind": "job", "label": "fox", "job_dir": source}
    write_spec(tmp_path / "jobs/7", make_sampling_spec({"models": [model], "prompts": [{"prompt": "a fox"}]}))
    options = make_options(tmp_path, kind=JobKind.SAMPLE, job_dir=tmp_path / "jobs/7", stay_s=300)

    job = await submit_job(head, tmp_path, options, shared_root="/mnt/ours")

    assert job["entrypoint"] == (
        "exec /opt/python -m trainer sample /mnt/ours/jobs/7 --attempt=2 >> /mnt/ours/jobs/7/trainer.log 2>&1"
    )
    assert read_dataset_paths(job["runtime_env"]["env_vars"]) == {source: "/mnt/ours/jobs/3"}


async def test_each_of_several_gpus_gets_a_process(head: Head, tmp_path: Path) -> None:
    job = await submit_job(head, tmp_path, make_options(tmp_path, gpus=2))

    assert job["entrypoint_num_gpus"] == 2
    assert "accelerate.commands.launch" in job["entrypoint"]
    assert "--num_processes=2" in job["entrypoint"]


async def test_jobs_of_two_bots_have_different_names(head: Head, tmp_path: Path) -> None:
    for name in ("one", "other"):
        await make_runner(head, tmp_path / name).launch(make_options(tmp_path / name))
    assert len(head.submitted) == 2
    assert all(name.startswith("darkroom-7-2-") for name in head.submitted)


async def test_a_second_launch_is_the_same_job(head: Head, tmp_path: Path) -> None:
    runner, options = make_runner(head, tmp_path), make_options(tmp_path)
    assert await runner.launch(options) == await runner.launch(options)
    assert head.tokens == {"Bearer secret"}


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"status": "RUNNING"}, RunStatus.RUNNING),
        ({"status": "PENDING"}, RunStatus.WAITING),
        ({"status": "SUCCEEDED"}, RunStatus.EXITED),
        ({"status": "STOPPED"}, RunStatus.EXITED),
        ({"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "message": "4"}, RunStatus.EXITED),
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED"}, RunStatus.NODE_LOST),
        # It waited longer than the head allows, and never ran.
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"}, RunStatus.NODE_LOST),
    ],
)
async def test_each_answer_of_the_head_has_a_status(
    head: Head, tmp_path: Path, answer: dict[str, Any], status: RunStatus
) -> None:
    runner = make_runner(head, tmp_path)
    handle = await runner.launch(make_options(tmp_path))
    head.answer = answer
    assert await runner.poll(handle) is status


async def test_an_unknown_job_has_exited_and_the_state_is_unknown_while_the_head_is_down(
    head: Head, tmp_path: Path
) -> None:
    runner = make_runner(head, tmp_path)
    handle = await runner.launch(make_options(tmp_path))
    head.is_down = True
    with pytest.raises(RunnerUnreachable, match=r"answers 503"):
        await runner.poll(handle)
    head.is_down = False
    head.submitted.clear()
    assert await runner.poll(handle) is RunStatus.EXITED


async def test_a_submission_fails_while_the_head_is_down(head: Head, tmp_path: Path) -> None:
    head.is_down = True
    with pytest.raises(RunnerUnreachable):
        await make_runner(head, tmp_path).launch(make_options(tmp_path))


async def test_a_waiting_job_that_was_stopped_is_withdrawn_for_every_later_bot(head: Head, tmp_path: Path) -> None:
    handle = await make_runner(head, tmp_path).launch(make_options(tmp_path))
    head.answer = {"status": "PENDING"}
    await make_runner(head, tmp_path).stop(handle)

    assert await make_runner(head, tmp_path).poll(Handle(str(handle))) is RunStatus.EXITED
    assert len(head.stopped) == 1


async def test_a_job_that_only_fits_on_a_lost_machine_waits_with_one_warning(
    head: Head, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head.nodes = [{**_NODE, "state": "DEAD"}, {**_NODE, "resources_total": {"CPU": 2.0, "memory": 8 * 1024**3}}]
    runner = make_runner(head, tmp_path)
    handle = await runner.launch(make_options(tmp_path))
    head.answer = {"status": "PENDING"}
    for _ in range(3):
        assert await runner.poll(handle) is RunStatus.WAITING

    [warning] = [record.getMessage() for record in caplog.records if "waits" in record.getMessage()]
    assert "the largest has 0 GPUs, 2 CPUs and 8 GiB of memory" in warning
    with pytest.raises(LaunchFailed, match="no machine of the cluster has that"):
        await runner.launch(make_options(tmp_path, gpus=8))


# -- the log of a failed job ---------------------------------------------------------------------------------------


async def log_after(head: Head, tmp_path: Path, answer: dict[str, Any], env: Mapping[str, str] | None = None) -> str:
    """Launch a job, poll it twice after it has ended with `answer`, and return its log."""
    runner, options = make_runner(head, tmp_path, env), make_options(tmp_path)
    handle = await runner.launch(options)
    (options.job_dir / LOG_FILE).write_text("printed by the trainer\n")
    head.answer = answer
    for _ in range(2):
        await runner.poll(handle)
    return (options.job_dir / LOG_FILE).read_text()


async def test_the_message_of_a_failed_job_is_appended_once_to_its_log(head: Head, tmp_path: Path) -> None:
    answer = {"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "message": "sh: 1: no such folder"}
    log = await log_after(head, tmp_path, answer)
    [name] = head.submitted
    assert log == f"printed by the trainer\n--- Ray about {name} ---\nsh: 1: no such folder\n"


async def test_the_log_of_a_job_that_did_not_fail_is_unchanged(head: Head, tmp_path: Path) -> None:
    assert await log_after(head, tmp_path, {"status": "STOPPED", "message": "m"}) == "printed by the trainer\n"


async def test_secrets_in_a_message_are_masked(head: Head, tmp_path: Path) -> None:
    message = "cannot set up {'HF_TOKEN': 'hf_abc', 'HF_HOME': '/models'} from ftp://me:word@host/data"
    answer = {"status": "FAILED", "message": message}
    log = await log_after(head, tmp_path, answer, {"HF_TOKEN": "hf_abc", "HF_HOME": "/models"})
    assert "cannot set up {'HF_TOKEN': '***', 'HF_HOME': '/models'} from ftp://***@host/data" in log


def test_a_short_value_with_the_name_of_a_secret_is_not_masked() -> None:
    env = {"HF_TOKEN_IMPLICIT": "1", "HF_TOKEN": "hf_abcdef"}
    assert without_secrets("attempt 1 of 11 with hf_abcdef", env) == "attempt 1 of 11 with ***"


async def test_the_first_twenty_lost_nodes_do_not_count_as_attempts(
    head: Head, tmp_path: Path, store: JobStore, submit: Submit, db: Database
) -> None:
    await submit()
    dispatcher = Dispatcher(store, make_runner(head, tmp_path / "data"), settings=QueueSettings(max_attempts=3))
    head.answer = {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "its node has died"}
    for _ in range(100):
        await dispatcher.step()
        if (await store.get(1)).state.is_end:
            break

    assert (await store.get(1)).state is State.FAILED
    row = await db.one("SELECT uncounted FROM job")
    assert row is not None
    assert row["uncounted"] == MAX_UNCOUNTED == 20
    assert len(head.submitted) == MAX_UNCOUNTED + 3
