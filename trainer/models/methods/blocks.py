"""The parts of a model by name, from its input to its output, and which parameters a name pattern means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import translate
from functools import lru_cache

from torch import nn

#: A part by itself although it is made of lists of layers.
_WHOLE = frozenset({"mid_block"})


def blocks_of(name: str, module: nn.Module) -> list[str]:
    """Dotted prefixes (`unet.down_blocks.0`) of the parts of `module`, called `name`, from its input to its output.

    A part is an element of the lists that the model is deep by (`down_blocks`, `encoder.layers`,
    `transformer_blocks`), or what stands before and after them. Every parameter lies in exactly one part, or more
    where modules share it.
    """
    return list(_parts(name, module))


def matches(parameter_name: str, pattern: str) -> bool:
    """Whether `pattern` is the name, or its beginning at a dot, with or without the module's name in front.

    `up_blocks.1` means `unet.up_blocks.1.resnets.0.conv1.weight` and not `unet.up_blocks.10.…`; `*` stands for any
    characters, dots too, `?` for one.
    """
    means = _compiled(pattern).match
    _, _, without_module = parameter_name.partition(".")
    return bool(means(parameter_name) or means(without_module))


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(f"{translate(pattern)}|{translate(pattern + '.*')}")


def _parts(name: str, module: nn.Module) -> Iterator[str]:
    if name.rpartition(".")[2] in _WHOLE or not _is_deep(module):
        yield name
        return
    yield from (f"{name}.{own}" for own, _ in module.named_parameters(recurse=False))
    for child_name, child in _from_input_to_output(module):
        if isinstance(child, nn.ModuleList):
            yield from (f"{name}.{child_name}.{index}" for index, item in enumerate(child) if _has_parameters(item))
        else:
            yield from _parts(f"{name}.{child_name}", child)


def _is_deep(module: nn.Module) -> bool:
    return any(isinstance(part, nn.ModuleList) and _has_parameters(part) for part in module.modules())


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _from_input_to_output(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children that have parameters, in the order of their use."""
    children = [(name, child) for name, child in module.named_children() if _has_parameters(child)]
    names = [name for name, _ in children]
    if "mid_block" in names and "up_blocks" in names:
        # diffusers' UNets register the middle after the way up.
        middle = children.pop(names.index("mid_block"))
        children.insert([name for name, _ in children].index("up_blocks"), middle)
    return children
