"""A single file of a released model opens without a network, from configurations and tokenizers that ship."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.trainer.models.conftest import BaseFolder
from tests.trainer.random_base import store_in_half, write_single_file
from trainer.dataset.memory import release_memory
from trainer.errors import BadSpecError, MissingModelError
from trainer.models.base import digest_of, load_base
from trainer.models.families.model import LoadedBase
from trainer.models.methods.adapters import attach_adapter
from trainer.models.methods.checkpoint_file import original_state, write_checkpoint
from trainer.models.pipelines import read_shapes, stored_dtype
from trainer.models.random_models import empty_parts
from trainer.models.released_configs import RELEASED, make_tokenizers
from trainer.models.single_file import _predicts_velocity
from trainer.models.widening import _mapped_files, release_pages, stand_ins, widened, widened_layers
from trainer.protocol.settings import Base, Method, MethodKind, Objective, Prediction, Targets

#: Parameters of the released models, from their model cards and papers, in thousands.
_PARAMETERS = {
    "v1": {"unet": 859_521, "vae": 83_654, "text_encoder": 123_060},
    "v2": {"unet": 865_911, "vae": 83_654, "text_encoder": 340_388},
    "xl_base": {"unet": 2_567_464, "vae": 83_654, "text_encoder": 123_060, "text_encoder_2": 694_660},
    "sd3": {"transformer": 2_028_328, "vae": 83_820, "text_encoder": 123_650, "text_encoder_2": 694_660},
    "sd35_medium": {"transformer": 2_243_172, "vae": 83_820, "text_encoder": 123_650, "text_encoder_2": 694_660},
    "sd35_large": {"transformer": 8_056_628, "vae": 83_820, "text_encoder": 123_650, "text_encoder_2": 694_660},
}
#: Building them takes a second; they have no numbers.
parts_of = cache(empty_parts)
_FAMILIES = {"v1": "sd1", "v2": "sd2", "xl_base": "sdxl"}


@pytest.mark.parametrize("kind", RELEASED)
def test_the_shipped_configurations_are_those_of_the_released_models(kind: str) -> None:
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in parts_of(kind).items()}

    assert {name: round(number / 1000) for name, number in counted.items()} == _PARAMETERS[kind]


def test_the_tokenizers_fill_up_as_those_of_the_released_models() -> None:
    def ids(tokenizer: Any) -> list[int]:
        found: list[int] = tokenizer(["a photo"], padding="max_length", max_length=6).input_ids[0]
        return found

    clip_l, zero = [49406, 320, 1125, 49407, 49407, 49407], [49406, 320, 1125, 49407, 0, 0]
    for kind, expected in {"v1": [clip_l], "v2": [zero], "xl_base": [clip_l, zero], "sd3": [clip_l, zero]}.items():
        tokenizers = make_tokenizers(kind).values()
        assert [ids(tokenizer) for tokenizer in tokenizers] == expected
        assert {tokenizer.model_max_length for tokenizer in tokenizers} == {77}


def write_sparse(path: Path, shapes: Mapping[str, Tensor]) -> Path:
    """Write a `.safetensors` of fp16 zeros of any size: a hole in the file takes no disk, and no memory until read."""
    header, end = {}, 0
    for name, tensor in shapes.items():
        size = 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    return path


def original_shapes(kind: str) -> dict[str, Tensor]:
    parts = parts_of(kind)
    if kind in _FAMILIES:
        encoders = {name: part for name, part in parts.items() if name.startswith("text_encoder")}
        return original_state(_FAMILIES[kind], parts["unet"], parts["vae"], encoders)
    vae = original_state("sd1", nn.Module(), parts["vae"], {"text_encoder": nn.Module()})
    clips = {
        f"text_encoders.{own}.transformer.{_with_text_model(key)}": tensor
        for name, own in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"))
        for key, tensor in parts[name].state_dict().items()
    }
    state = parts["transformer"].state_dict()
    return vae | clips | {f"model.diffusion_model.{key}": tensor for key, tensor in _of_transformer(state)}


def _with_text_model(key: str) -> str:
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"


#: diffusers' names of SD 3's layers, and Stability's.
_SD3_NAMES = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_q": "x_block.attn.qkv",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_q": "x_block.attn2.qkv",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_MERGED = re.compile(r"\.(to_k|to_v|add_k_proj|add_v_proj)\.")


def _of_transformer(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in state.items():
        if _MERGED.search(key):
            continue
        block, name = re.fullmatch(r"(?:transformer_blocks\.(\d+)\.)?(.+)", key).groups()  # type: ignore[union-attr]
        layer, _dot, own = name.rpartition(".")
        known = _SD3_NAMES.get(name) or f"{_SD3_NAMES.get(layer, layer)}.{own}"
        if known.endswith(("qkv.weight", "qkv.bias")):
            tensor = torch.cat([tensor] * 3)
        yield f"joint_blocks.{block}.{known}" if block else known, tensor


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_address: Any) -> None:
        raise AssertionError("a single file needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", [kind for kind in RELEASED if kind != "sd35_large"])
def test_a_file_of_true_size_opens_without_a_network_and_takes_no_memory(tmp_path: Path, kind: str) -> None:
    path = write_sparse(tmp_path / "model.safetensors", original_shapes(kind))
    # Imports all that is imported.
    load_base(Base())

    before = anonymous_bytes()
    base = load_base(Base(source=str(path)), as_stored=True)
    grown = anonymous_bytes() - before

    modules = {base.denoiser_name: base.denoiser, "vae": base.vae, **base.text_encoders}
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in modules.items()} == {
        name: sum(p.numel() for p in part.parameters()) for name, part in parts_of(kind).items()
    }
    assert {p.dtype for part in modules.values() for p in part.parameters()} == {torch.float16}
    # diffusers copies the queries, keys and values of an SD 3, a sixth of its weights.
    assert grown < path.stat().st_size / 4
    assert base.resolution == (512 if kind in {"v1", "v2"} else 1024)
    if kind == "v2":
        # Zeros have the signs of a model that predicts the noise.
        said = load_base(Base(source=str(path)), Objective(prediction=Prediction.V_PREDICTION), as_stored=True)
        assert (base.prediction_type, said.prediction_type, said.resolution) == ("epsilon", "v_prediction", 768)


def anonymous_bytes() -> int:
    # A test before may have let this process keep what it frees (`keep_memory_between_steps`).
    release_memory()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


def test_a_file_without_a_vae_asks_for_one_and_takes_it(base_folder: BaseFolder, tmp_path: Path) -> None:
    folder = base_folder("sd1")
    whole = write_single_file(folder, tmp_path / "whole.safetensors")
    weights = load_file(whole)
    path = tmp_path / "model.safetensors"
    save_file({n: t for n, t in weights.items() if not n.startswith("first_stage_model.")}, path)
    # As VAEs are offered: the original names without their prefix.
    names = {name: name.removeprefix("first_stage_model.") for name in weights}
    vae = {own: weights[name] + 1 for name, own in names.items() if own != name}
    save_file(vae, tmp_path / "vae.safetensors")
    source = Base(source=str(path), config=str(folder))

    with pytest.raises(MissingModelError, match=r"has no vae.*base\.vae"):
        load_base(source)
    loaded = load_base(source.model_copy(update={"vae": str(tmp_path / "vae.safetensors")}))

    assert torch.equal(loaded.vae.encoder.conv_in.bias, vae["encoder.conv_in.bias"])
    assert digest_of(loaded.denoiser) == digest_of(load_base(Base(source=str(folder))).denoiser)


def test_a_vae_of_its_own_replaces_that_of_a_folder(base_folder: BaseFolder, tmp_path: Path) -> None:
    folder = base_folder("sd1")
    other = load_base(Base(source=str(folder))).vae
    other.encoder.conv_in.bias.data += 1
    other.save_pretrained(tmp_path / "vae")

    loaded = load_base(Base(source=str(folder), vae=str(tmp_path / "vae")))

    assert digest_of(loaded.vae) == digest_of(other)


@pytest.mark.parametrize("kind", ["missing", "pickled", "a LoRA", "of another family"])
def test_a_vae_that_does_not_fit_is_refused_in_a_sentence(base_folder: BaseFolder, tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("vae.ckpt" if kind == "pickled" else "vae.safetensors")
    if kind == "pickled":
        path.write_bytes(b"")
    elif kind == "a LoRA":
        save_file({"lora_unet_x.alpha": torch.zeros(1)}, path)
    elif kind == "of another family":
        path = base_folder("sd3") / "vae"

    with pytest.raises(MissingModelError, match="VAE") as refusal:
        load_base(Base(source=str(base_folder("sd1")), vae=str(path)))

    assert "\n" not in str(refusal.value)
    assert ("16 channels" in str(refusal.value)) is (kind == "of another family")


# -- what an SD 2 predicts --------------------------------------------------------------------------------------------


class _Unet(nn.Module):
    """Has the bias that ComfyUI reads, and returns its input plus a constant."""

    def __init__(self, *, deviation: float, added: float) -> None:
        super().__init__()
        name = ["up_blocks", "3", "attentions", "2", "transformer_blocks", "0", "norm1"]
        parent: nn.Module = self
        for part in name[:-1]:
            child = nn.Module()
            parent.add_module(part, child)
            parent = child
        norm = nn.LayerNorm(2)
        norm.bias.data = torch.tensor([-deviation, deviation])
        parent.add_module(name[-1], norm)
        self.added = added

    def forward(self, noisy: Tensor, timestep: Tensor, caption: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert (noisy.shape, caption.shape, int(timestep)) == ((1, 4, 8, 8), (1, 2, 1024), 999)
        return (noisy + self.added,)


def test_the_prediction_of_an_sd_2_is_read_from_its_weights_and_asked_for_where_they_contradict() -> None:
    epsilon, velocity = _Unet(deviation=0.05, added=-0.1), _Unet(deviation=0.2, added=-1.5)

    assert not _predicts_velocity("a.safetensors", epsilon, Prediction.AUTO)
    assert _predicts_velocity("a.safetensors", velocity, Prediction.AUTO)
    for doubtful in (_Unet(deviation=0.05, added=-1.5), _Unet(deviation=0.2, added=-0.1)):
        with pytest.raises(BadSpecError, match=r"noise or the velocity.*objective\.prediction"):
            _predicts_velocity("a.safetensors", doubtful, Prediction.AUTO)
        assert _predicts_velocity("a.safetensors", doubtful, Prediction.V_PREDICTION)
        assert not _predicts_velocity("a.safetensors", doubtful, Prediction.EPSILON)


# -- weights as they are stored ---------------------------------------------------------------------------------------


def test_the_parts_of_a_file_keep_the_dtypes_that_they_are_stored_in(base_folder: BaseFolder, tmp_path: Path) -> None:
    folder = base_folder("sd1")
    path = write_single_file(folder, tmp_path / "model.safetensors")
    halved = {n: t.half() if n.startswith("model.diffusion_model.") else t for n, t in load_file(path).items()}
    save_file(halved, path)

    stored = load_base(Base(source=str(path), config=str(folder)), as_stored=True)

    dtypes = [next(part.parameters()).dtype for part in (stored.denoiser, stored.vae, stored.text_encoder)]
    assert dtypes == [torch.float16, torch.float32, torch.float32]


def predict(base: LoadedBase) -> Tensor:
    noise_BCHW = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    return base.predict(noise_BCHW, torch.tensor([300]), base.encode_text(["a red egg"]))


def test_half_a_base_computes_by_layers_what_it_does_in_fp32_to_the_bit(
    base_folder: BaseFolder, tmp_path: Path
) -> None:
    folder = store_in_half(Path(shutil.copytree(base_folder("sd2"), tmp_path / "base")))
    wide, stored = load_base(Base(source=str(folder))), load_base(Base(source=str(folder)), as_stored=True)
    before = digest_of(stored.denoiser, stored.vae, stored.text_encoder)
    pixels_BCHW = torch.rand(1, 3, 64, 64)

    with torch.no_grad():
        with widened_layers(torch.device("cpu"), stored.denoiser, stored.text_encoder):
            by_layers = predict(stored)
        with widened(stored.vae, torch.device("cpu")):
            latents = stored.encode_pixels(pixels_BCHW)
        assert torch.equal(by_layers, predict(wide))
        assert torch.equal(latents, wide.encode_pixels(pixels_BCHW))
    with stand_ins([stored.text_encoder]):
        assert stored.text_encoder.dtype is torch.float32

    assert stored.text_encoder.dtype is torch.float16
    assert digest_of(stored.denoiser, stored.vae, stored.text_encoder) == before


@pytest.mark.parametrize("kind", [MethodKind.LORA, MethodKind.DORA, MethodKind.LOKR, MethodKind.OFT])
def test_an_adapter_on_half_a_base_starts_without_effect(base_folder: BaseFolder, kind: MethodKind) -> None:
    base = load_base(Base(source=str(base_folder("sd1"))), as_stored=True)
    for parameter in base.denoiser.parameters():
        parameter.data = parameter.data.half()
    with torch.no_grad(), widened_layers(torch.device("cpu"), base.denoiser):
        before = predict(base)
        attach_adapter(base, Method(kind=kind, rank=4, alpha=4, targets=Targets.ALL))
        base.denoiser.eval()
    with torch.no_grad(), widened_layers(torch.device("cpu"), base.denoiser):
        difference = float((predict(base) - before).abs().max())

    # fp16's rounding of a norm is 5e-4 of it; fp32's is 1e-7.
    assert difference < 1e-5


def test_a_layer_that_fails_gets_its_stored_weights_back(base_folder: BaseFolder) -> None:
    layer = nn.Linear(4, 4).half()
    with widened_layers(torch.device("cpu"), layer), pytest.raises(RuntimeError):
        layer(torch.zeros(1, 5))

    assert layer.weight.dtype is torch.float16


@pytest.mark.skipif(sys.platform != "linux", reason="it has /proc")
def test_weights_that_were_read_leave_memory_and_are_read_again(tmp_path: Path) -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))

    path, number = tmp_path / "weights.safetensors", 2**24
    save_file({"a": torch.arange(number, dtype=torch.float32), "b": torch.ones(3)}, path)
    with safe_open(path, framework="pt") as file:
        stored = [file.get_tensor(name) for name in ("a", "b")]
    of_heap = torch.arange(number, dtype=torch.float32)
    assert torch.equal(stored[0], of_heap)
    before = resident()
    release_pages([*stored, of_heap])

    assert before - resident() > 0.9 * 4 * number
    assert torch.equal(stored[0], torch.arange(number, dtype=torch.float32))
    assert torch.equal(of_heap, stored[0])


@pytest.mark.skipif(sys.platform != "linux", reason="it has /proc")
@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_queries_keys_and_values_of_an_openclip_stay_in_its_file(
    base_folder: BaseFolder, tmp_path: Path, kind: str
) -> None:
    folder = base_folder(kind)
    base = load_base(Base(source=str(folder)))
    parts = base.denoiser, base.vae, base.text_encoders
    path = write_checkpoint(tmp_path / "model.safetensors", kind, *parts, dtype=torch.float32)

    opened = load_base(Base(source=str(path), config=str(folder)), as_stored=True)

    last = list(opened.text_encoders)[-1]
    files = _mapped_files()
    weights = opened.text_encoders[last].named_parameters()
    projections = [weight.data_ptr() for name, weight in weights if re.search(r"self_attn\..*proj\.weight", name)]
    assert len(projections) >= 4
    assert all(any(start <= address < end for start, end in files) for address in projections)
    assert digest_of(opened.text_encoders[last]) == digest_of(base.text_encoders[last])


def test_fp8_weights_are_widened_when_they_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(4, 4, dtype=torch.float8_e4m3fn), "b": torch.zeros(1, dtype=torch.float16)}, path)

    with safe_open(path, framework="pt") as file:
        assert file.get_slice("a").get_dtype() == "F8_E4M3"
    assert stored_dtype(read_shapes(path).values()) is torch.float32
