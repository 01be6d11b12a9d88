"""Run options: the same start of a job as a line of JSON and as a command line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from trainer.commands.sampling_commands import add_sample, options_of
from trainer.protocol.run_options import JobKind, RunOptions

ALL = RunOptions(
    job_dir=Path("/jobs/7"), job_id=7, attempt=3, finish=True, micro_batch=2, gpus=2, devices=("GPU-1", "GPU-2")
)


def parse(argv: tuple[str, ...]) -> RunOptions:
    parser = argparse.ArgumentParser(exit_on_error=False)
    RunOptions.add_arguments(parser.add_subparsers().add_parser("run"))
    return RunOptions.from_arguments(parser.parse_args(argv))


@pytest.mark.parametrize("options", [RunOptions(job_dir=Path("/jobs/7")), ALL])
def test_options_survive_a_line_of_json(options: RunOptions) -> None:
    line = options.to_line()
    assert line.endswith(b"\n")
    assert RunOptions.model_validate_json(line) == options


@pytest.mark.parametrize("options", [RunOptions(job_dir=Path("/jobs/7")), ALL])
def test_options_survive_a_command_line_except_the_devices_and_the_job_id(options: RunOptions) -> None:
    assert parse(options.to_argv()) == options.model_copy(update={"devices": (), "job_id": 0})


def test_one_gpu_is_not_part_of_the_command_line() -> None:
    assert parse(RunOptions(job_dir=Path("/jobs/7"), gpus=1).to_argv()).gpus == 0


def test_a_sampling_job_has_a_command_of_its_own() -> None:
    options = RunOptions(
        job_dir=Path("/jobs/8"), kind=JobKind.SAMPLE, attempt=2, micro_batch=1, stay_s=2.5, language="zh_CN"
    )
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_sample(parser.add_subparsers().add_parser("sample"))

    assert RunOptions.model_validate_json(options.to_line()) == options
    assert options_of(parser.parse_args(options.to_argv())) == options
