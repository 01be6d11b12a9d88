"""Every line of Python that is printed for a file loads it as the training had it: the lines are executed."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from torch import Tensor

from tests.trainer.models.conftest import BaseFolder
from tests.trainer.models.random_adapters import (
    FAMILIES_AND_KINDS,
    KINDS,
    ExportedAdapter,
    Exports,
    Load,
    export_adapter,
    method_of,
    predict,
    train_a_little,
)
from trainer.models.base import LoadedBase, load_base
from trainer.models.families.model import Family
from trainer.models.methods.full import attach_full
from trainer.models.methods.inversion import attach_inversion
from trainer.models.methods.trained import ExportedFile
from trainer.protocol.events import Exported, ExportFormat, Reader
from trainer.protocol.exported_files import loading_code
from trainer.protocol.settings import Base, Method, MethodKind


def event_of(file: ExportedFile) -> Exported:
    known = {"format": file.format, "readers": file.readers, "modules": file.modules, "token": file.token}
    return Exported.model_validate({"seq": 1, "time": 0, "path": file.path.name, "bytes": 1, "sha256": "0", **known})


def run_lines(file: ExportedFile, pipe: Any) -> Any:
    """Execute the printed lines as a person would, and return the pipeline."""
    lines = loading_code(event_of(file), str(file.path))
    assert lines
    names: dict[str, Any] = {
        "pipe": pipe, "PeftModel": PeftModel, "DiffusionPipeline": DiffusionPipeline, "safetensors": safetensors,
    }  # fmt: skip
    for line in lines:
        exec(line, names)
    return names["pipe"]


@pytest.mark.parametrize(("family", "kind"), FAMILIES_AND_KINDS)
def test_the_lines_for_an_adapter_load_all_of_it(load: Load, exported: Exports, family: str, kind: MethodKind) -> None:
    check_lines(load, family, exported(family, kind))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"),
    [*(("sd1", kind) for kind in KINDS), *((family, MethodKind.LORA) for family in ("sd2", "sdxl", "sd3"))],
)
def test_the_lines_for_an_adapter_without_text_encoders(
    load: Load, family: str, kind: MethodKind, tmp_path: Path
) -> None:
    check_lines(load, family, export_adapter(load, family, method_of(kind, text_encoder=False), tmp_path))


def check_lines(load: Load, family: str, adapter: ExportedAdapter) -> None:
    loaded = 0
    for file in adapter.files:
        if not {Reader.DIFFUSERS, Reader.PEFT} & set(file.readers):
            assert loading_code(event_of(file), "x") == ()
            continue
        fresh = load(family)
        run_lines(file, fresh.pipeline())
        assert float((predict(fresh) - adapter.after).abs().max()) < 0.02 * adapter.effect, file
        loaded += 1

    assert loaded == (2 if adapter.method.kind is MethodKind.LORA and adapter.family is not Family.SD3 else 1)


@pytest.mark.parametrize("trigger", ["zkz", "star", 'a"b'])
@pytest.mark.parametrize("vectors", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_lines_for_a_word_teach_it_to_every_text_encoder(
    base_folder: BaseFolder, load: Load, family: str, vectors: int, trigger: str, tmp_path: Path
) -> None:
    base = load(family)
    word = attach_inversion(base, Method(kind=MethodKind.TEXTUAL_INVERSION, vectors=vectors), trigger)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in word.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)

    files = word.export(tmp_path, "job", {})

    assert len(files) == (2 if family == "sd1" else 1)
    for file in files:
        fresh = load(family)
        pipe = run_lines(file, fresh.pipeline())
        written = pipe.maybe_convert_prompt(f"a red {file.token} on it", pipe.tokenizer)
        assert_alike(encode(fresh, written), encode(base, f"a red {trigger} on it"))


def encode(base: LoadedBase, caption: str) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(base.encode_text([caption]))


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], tensor, atol=1e-5) for name, tensor in expected.items())


@pytest.mark.parametrize("family", ["sd1", *(pytest.param(each, marks=pytest.mark.slow) for each in ("sd3", "sd3-t5"))])
def test_the_line_for_a_whole_model_opens_it(base_folder: BaseFolder, load: Load, family: str, tmp_path: Path) -> None:
    base = load(family)
    reload: Callable[[], LoadedBase] = lambda: load_base(Base(source=str(base_folder(family))))  # noqa: E731
    trained = attach_full(base, method_of(MethodKind.FULL, text_encoder=False), reload)
    train_a_little(trained)

    folder = next(file for file in trained.export(tmp_path, "egg", {}) if file.format is ExportFormat.DIFFUSERS)

    pipe = run_lines(folder, None)
    opened = dict(getattr(pipe, base.denoiser_name).named_parameters())
    with torch.no_grad():
        for name, parameter in deepcopy(base.denoiser).half().named_parameters():
            assert torch.equal(opened[name].half(), parameter), name
