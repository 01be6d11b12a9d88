"""Which programs read which exported file exactly; the only place that says so.

The completion message and the report take it from the `exported` event, and a test compares docs/methods.md with it.
tests/trainer/models/test_readers.py holds each cell against the readers' key maps and formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from trainer.models.families.model import Family, LoadedBase
from trainer.protocol.events import ExportFormat, Reader
from trainer.protocol.settings import Method, MethodKind

_Readers: TypeAlias = tuple[Reader, ...]

_UNETS = (Family.SD1, Family.SD2, Family.SDXL)
_PAINTERS = (Reader.A1111, Reader.FORGE, Reader.COMFYUI)


def _on(unets: _Readers, sd3: _Readers) -> Mapping[Family, _Readers]:
    without_cpp = tuple(reader for reader in unets if reader is not Reader.SD_CPP)
    return {Family.SD1: unets, Family.SD2: without_cpp, Family.SDXL: unets, Family.SD3: sd3}


#: SD 3 by kohya's names: ComfyUI knows `lycoris_transformer_blocks_…`; A1111, Forge and sd-scripts do not.
#: - DoRA: ComfyUI and Forge divide by the length of the base's weight and not of the sum (`weight_decompose` of
#:   comfy/weight_adapter/base.py), A1111 by that of the inputs (`apply_weight_decompose` of network.py).
#: - (IA)³: ComfyUI and Forge have no such adapter; LyCORIS 4.1.3 fails on it (`make_module_from_state_dict`).
#: - OFT: LyCORIS and kohya rotate outputs, peft inputs.
#: - stable-diffusion.cpp: SD 2's text encoder has one `in_proj` there, a name that only SDXL's second one is given
#:   (`preprocess_lora_tensors` of src/model/adapter/lora.hpp). SD 3's have other names than `te1.` becomes, and the
#:   norms of its last block are not swapped (src/name_conversion.cpp). A whole convolutional factor of LoKr is
#:   multiplied along the wrong sides (`ggml_ext_kronecker`).
#: - Differences: `diff` of A1111's network_full.py, comfy/lora.py and LyCORIS's modules/full.py.
_TABLE: Mapping[tuple[ExportFormat, MethodKind], Mapping[Family, _Readers]] = {
    (ExportFormat.KOHYA, MethodKind.LORA): _on(
        (*_PAINTERS, Reader.SD_CPP, Reader.DIFFUSERS, Reader.SD_SCRIPTS, Reader.LYCORIS), (Reader.COMFYUI,)
    ),
    (ExportFormat.KOHYA, MethodKind.DORA): _on((Reader.LYCORIS,), ()),
    (ExportFormat.KOHYA, MethodKind.LOHA): _on((*_PAINTERS, Reader.SD_CPP, Reader.LYCORIS), (Reader.COMFYUI,)),
    (ExportFormat.KOHYA, MethodKind.LOKR): _on((*_PAINTERS, Reader.LYCORIS), (Reader.COMFYUI,)),
    (ExportFormat.KOHYA, MethodKind.IA3): _on((Reader.A1111,), ()),
    **{
        (ExportFormat.DIFFERENCE, kind): _on((*_PAINTERS, Reader.SD_CPP, Reader.LYCORIS), (Reader.COMFYUI,))
        for kind in (MethodKind.DORA, MethodKind.IA3, MethodKind.OFT)
    },
    **{
        (ExportFormat.DIFFUSERS, kind): dict.fromkeys(Family, (Reader.DIFFUSERS,))
        for kind in (MethodKind.LORA, MethodKind.DORA, MethodKind.FULL)
    },
    **{
        (ExportFormat.DIFFUSERS, kind): dict.fromkeys(Family, (Reader.PEFT,))
        for kind in (MethodKind.LOHA, MethodKind.LOKR, MethodKind.IA3, MethodKind.OFT)
    },
    (ExportFormat.EMBEDDING, MethodKind.TEXTUAL_INVERSION): dict.fromkeys(_UNETS, (*_PAINTERS, Reader.DIFFUSERS)),
    (ExportFormat.DIFFUSERS, MethodKind.TEXTUAL_INVERSION): dict.fromkeys(_UNETS, (Reader.DIFFUSERS,)),
    (ExportFormat.CHECKPOINT, MethodKind.FULL): dict.fromkeys(_UNETS, _PAINTERS),
}


def readers_of(file_format: ExportFormat, kind: MethodKind, family: Family) -> _Readers:
    """Return the programs that read a file exactly; none: the file need not be written."""
    return _TABLE.get((file_format, kind), {}).get(family, ())


def adapter_readers(file_format: ExportFormat, method: Method, family: Family) -> _Readers:
    """As `readers_of`, for an adapter with these ranks.

    stable-diffusion.cpp takes the last side of a factor that is not 1 for the rank, and divides alpha by it. diffusers
    0.42.1 finds no layer for the alphas of SDXL's attention that differ from the most common one (`get_peft_kwargs`).
    """
    readers = readers_of(file_format, method.kind, family)
    if file_format is not ExportFormat.KOHYA:
        return readers
    ranks = {method.rank, method.conv_rank, *(block.rank for block in method.block_ranks)}
    fails = {Reader.SD_CPP} if 1 in ranks else set()
    if family is Family.SDXL and (method.conv_rank is not None or method.block_ranks):
        fails.add(Reader.DIFFUSERS)
    return tuple(reader for reader in readers if reader not in fails)


def checkpoint_readers(base: LoadedBase) -> _Readers:
    """Return the programs that read a whole model as one file and find out by themselves what it predicts.

    A file of SD 1 cannot say that it predicts the velocity, and A1111 does not know the mark of SDXL (`v_pred`).
    """
    readers = readers_of(ExportFormat.CHECKPOINT, MethodKind.FULL, base.family)
    if base.prediction_type != "v_prediction" or base.family is Family.SD2:
        return readers
    return tuple(reader for reader in readers if base.family is Family.SDXL and reader is not Reader.A1111)
