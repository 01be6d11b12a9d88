"""The file that a training starts from is copied into its folder once, whole."""

from __future__ import annotations

from pathlib import Path

from trainer.exchange.job_dir import START_FILE, copy_start
from trainer.protocol.spec import Spec, make_spec


def spec(source: Path | str, sha256: str | None = "ab" * 32) -> Spec:
    method = {"start_from": str(source), "start_sha256": sha256}
    return make_spec({"name": "fox", "dataset": "/nowhere", "method": method})


def test_it_is_copied_once_and_stays_when_its_source_goes(tmp_path: Path) -> None:
    source, job_dir = tmp_path / "earlier.safetensors", tmp_path / "job"
    source.write_bytes(b"weights")
    copy_start(job_dir, spec(source))
    source.write_bytes(b"other weights")
    copy_start(job_dir, spec(source))
    source.unlink()
    copy_start(job_dir, spec(source))
    assert [path.name for path in job_dir.iterdir()] == [START_FILE]
    assert (job_dir / START_FILE).read_bytes() == b"weights"


def test_a_copy_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    source, job_dir = tmp_path / "earlier.safetensors", tmp_path / "job"
    source.write_bytes(b"weights")
    job_dir.mkdir()
    (job_dir / f"{START_FILE}.part").write_bytes(b"wei")
    copy_start(job_dir, spec(source))
    assert (job_dir / START_FILE).read_bytes() == b"weights"


def test_a_training_from_its_base_has_none(tmp_path: Path) -> None:
    copy_start(tmp_path, spec("", None))
    copy_start(tmp_path, spec(tmp_path / "missing"))
    assert list(tmp_path.iterdir()) == []
