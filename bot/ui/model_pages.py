"""The base models that members can choose, and how an operator adds one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from bot.config import Config
from bot.predictions import usual_memory
from bot.ui.discord_text import escape
from bot.ui.layout import Color, MessageContent, box, layout
from trainer.exchange.base_files import BaseFacts, base_facts
from trainer.protocol.settings import TINY, Base
from trainer.protocol.text import _, size

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def models_page(lines: Sequence[str], *, has_default: bool) -> MessageContent:
    """The base models, and how to add one on the machine."""
    missing = _("Only the toy model is set up. A training without `base` is refused until there is a real one.")
    how = "\n".join(
        (
            _("**Add one** on the machine that runs the bot, then restart it:"),
            '```\npython -m bot models add "SDXL" stabilityai/stable-diffusion-xl-base-1.0\n```',
            _("A .safetensors file or a folder works too. Stable Diffusion 1.x, 2.x, XL and 3 can be trained."),
        )
    )
    title = f"### {_('Base models')}"
    body = "\n".join(f"- {escape(line, 300)}" for line in lines)
    return MessageContent(layout=layout(box(Color.WAITING, title, body, None if has_default else missing, how)))


def model_lines(config: Config, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A line for each base model: `Our own: SDXL, 1024 px, 6.9 GB (default)`."""
    for label, source in config.models.sources.items():
        facts = base_facts(Base(source=source), environ)
        line = f"{label}: {model_words(source, facts, usual_memory(config, label, environ))}"
        yield _("{model} (default)", model=line) if label == config.models.default_label else line


def model_words(source: str, facts: BaseFacts | None, lora_bytes: int | None = None) -> str:
    """What a base model is, as far as its files say, and the memory that a LoRA of it needs."""
    if source == TINY:
        return _("toy model for the demo, 64 px, simple shapes only")
    if facts is None and HUB_NAME.fullmatch(source):
        return _("{source}, downloaded at its first use (some GB)", source=source)
    if facts is None:
        return _("⚠ there is no such file or folder")
    family = facts.family or _("⚠ not a model that can be trained")
    words = [family, *([_("{px} px", px=facts.resolution)] if facts.resolution else []), size(facts.bytes)]
    if lora_bytes is not None:
        words.append(_("a LoRA needs about {memory} of memory", memory=size(lora_bytes)))
    return ", ".join(words)


def base_choice(label: str, source: str) -> str:
    """A base model in a list of choices; the toy model says what it is."""
    return f"{label} · {model_words(source, None)}" if source == TINY else label
