"""A training starts from each file that is written here: the same effect, whatever the format and the alpha."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.trainer.models.random_adapters import (
    FAMILIES_AND_KINDS,
    ExportedAdapter,
    Exports,
    Load,
    export_adapter,
    method_of,
    predict,
    train_a_little,
)
from trainer.errors import CheckpointError
from trainer.models.base import LoadedBase
from trainer.models.methods.adapters import attach_adapter
from trainer.models.methods.inversion import attach_inversion
from trainer.models.methods.starting_files import kind_of, ranks_of, read_start
from trainer.protocol.events import ExportFormat
from trainer.protocol.settings import Method, MethodKind


def started(base: LoadedBase, method: Method, path: Path) -> Tensor:
    """Return the prediction of an adapter that starts from a file."""
    trained = attach_adapter(base, method)
    trained.load(trained.weights_from(read_start(path)))
    return predict(base)


@pytest.mark.parametrize(("family", "kind"), FAMILIES_AND_KINDS)
def test_an_adapter_starts_from_each_of_its_files(load: Load, exported: Exports, family: str, kind: MethodKind) -> None:
    """Also with another alpha: the weights are scaled, so that the effect stays."""
    adapter = exported(family, kind)
    files = [file.path for file in adapter.files if file.format is not ExportFormat.DIFFERENCE]

    for path in files:
        tensors = read_start(path)
        assert kind_of(tensors) is kind
        if kind in {MethodKind.LORA, MethodKind.DORA, MethodKind.LOHA}:
            assert ranks_of(tensors) == {4}
    assert_each_has_the_effect(files, adapter, load(family), method_of(kind, alpha=7.0))


def assert_each_has_the_effect(
    files: Sequence[Path], adapter: ExportedAdapter, base: LoadedBase, method: Method
) -> None:
    trained = attach_adapter(base, method)
    for path in files:
        # What the file before has left is not what this one has to give.
        train_a_little(trained)
        trained.load(trained.weights_from(read_start(path)))
        assert float((predict(base) - adapter.after).abs().max()) < 0.02 * adapter.effect, path


SIZES: dict[str, Any] = {"conv_rank": 2, "block_ranks": [{"blocks": "up_blocks", "rank": 6, "alpha": 2.0}]}


@pytest.mark.parametrize("kind", [MethodKind.LORA, MethodKind.LOHA, MethodKind.LOKR])
def test_a_job_with_ranks_of_its_own_starts_from_files_with_the_same(
    load: Load, kind: MethodKind, tmp_path: Path
) -> None:
    method = method_of(kind, **SIZES, rank_stabilized=kind is MethodKind.LORA)
    adapter = export_adapter(load, "sd1", method, tmp_path)

    files = [file.path for file in adapter.files]
    assert_each_has_the_effect(files, adapter, load("sd1"), method_of(kind, **SIZES, alpha=1.0))


def test_a_job_that_trains_more_layers_starts_from_a_file_with_fewer(load: Load, tmp_path: Path) -> None:
    method = method_of(MethodKind.LORA, targets="attention", text_encoder=False)
    adapter = export_adapter(load, "sd1", method, tmp_path)

    found = started(load("sd1"), method_of(MethodKind.LORA), adapter.files[0].path)

    assert torch.allclose(found, adapter.after, atol=1e-5)


def test_the_alpha_in_diffusers_metadata_counts(load: Load, tmp_path: Path) -> None:
    """As diffusers' own training scripts write it: unscaled weights, and the alpha in the header."""
    base = load("sd1")
    trained = attach_adapter(base, method_of(MethodKind.LORA, text_encoder=False))
    train_a_little(trained)
    layers = {f"unet.{name}": tensor for name, tensor in trained.state()["unet"].items()}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(layers, path, {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 2.0}'})

    assert torch.allclose(
        started(load("sd1"), method_of(MethodKind.LORA, text_encoder=False), path), predict(base), atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"rank": 8}, "is 4 x "),
        ({"targets": "attention"}, "that this job does not train"),
        ({"text_encoder": False}, "that this job does not train"),
        ({"kind": MethodKind.DORA}, "of another kind"),
        ({"kind": MethodKind.LOHA}, "of another kind"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    load: Load, exported: Exports, settings: dict[str, Any], reason: str
) -> None:
    trained = attach_adapter(load("sd1"), method_of(**{"kind": MethodKind.LORA, **settings}))

    for file in exported("sd1", MethodKind.LORA).files:
        with pytest.raises(CheckpointError, match=reason):
            trained.load(trained.weights_from(read_start(file.path)))


def test_a_file_of_another_family_is_refused(load: Load, exported: Exports) -> None:
    with pytest.raises(CheckpointError, match=r"does not (train|fit)"):
        started(load("sdxl"), method_of(MethodKind.LORA), exported("sd1", MethodKind.LORA).files[1].path)


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_word_starts_from_each_of_its_files(load: Load, family: str, tmp_path: Path) -> None:
    method = Method(kind=MethodKind.TEXTUAL_INVERSION, vectors=2)
    trained = attach_inversion(load(family), method, "zork")
    train_a_little(trained)
    expected = trained.state()

    for file in trained.export(tmp_path, "zork", {}):
        fresh = attach_inversion(load(family), method, "zork")
        path = file.path if file.path.is_file() else file.path / "learned_embeds.safetensors"
        fresh.load(fresh.weights_from(read_start(path)))
        assert all(torch.equal(fresh.state()[name]["vectors"], own["vectors"]) for name, own in expected.items())


def test_a_word_of_another_base_is_refused(load: Load, tmp_path: Path) -> None:
    method = Method(kind=MethodKind.TEXTUAL_INVERSION)
    trained = attach_inversion(load("sd1"), method, "zork")

    with pytest.raises(CheckpointError, match="no vectors"):
        trained.weights_from({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 32)})


@pytest.mark.parametrize("case", ["missing", "another program's folder", "damaged", "no safetensors"])
def test_what_is_no_file_to_start_from_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / ("egg.ckpt" if case == "no safetensors" else "egg.safetensors")
    match case:
        case "another program's folder":
            path.mkdir()
        case "damaged" | "no safetensors":
            path.write_bytes(b"torn")

    with pytest.raises(CheckpointError, match="cannot be read" if case == "damaged" else "cannot start from"):
        read_start(path)
