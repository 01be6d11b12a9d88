"""Captioning models with random weights: real classes and files, a few thousand parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

# `transformers.X`, not `from transformers import X`: each pytest worker would load all of these models (5 s of CPU).

_SIZE = {"height": 32, "width": 32}
_SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION = {**_SMALL, "image_size": 32, "patch_size": 16}
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "photo", "of", "red", "cat", "dog", "tree")


def make_blip(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = _bert()
    text = {
        **_SMALL,
        "vocab_size": len(tokenizer),
        "encoder_hidden_size": 32,
        "projection_dim": 32,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "bos_token_id": 5,
    }
    model = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=text, vision_config=_VISION, projection_dim=32)
    )
    return _save(folder, model, transformers.BlipProcessor(transformers.BlipImageProcessorPil(size=_SIZE), tokenizer))


def make_blip2(folder: Path) -> Path:
    """A model with a byte vocabulary."""
    torch.manual_seed(0)
    tokens = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "</s>", "<pad>"]
    tokenizer = transformers.GPT2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        pad_token="<pad>",
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
    )
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    words = len(tokenizer)
    config = transformers.Blip2Config(
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_config=_VISION,
        qformer_config={**_SMALL, "encoder_hidden_size": 32, "vocab_size": words},
        text_config={
            "model_type": "opt",
            "vocab_size": words,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    processor = transformers.Blip2Processor(
        transformers.BlipImageProcessorPil(size=_SIZE), tokenizer, num_query_tokens=4
    )
    return _save(folder, transformers.Blip2ForConditionalGeneration(config), processor)


def make_git(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = _bert()
    config = transformers.GitConfig(
        vision_config=_VISION, vocab_size=len(tokenizer), bos_token_id=2, eos_token_id=3, pad_token_id=0, **_SMALL
    )
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=_SIZE)
    return _save(folder, transformers.GitForCausalLM(config), transformers.GitProcessor(processor, tokenizer))


def make_florence(folder: Path) -> Path:
    """A model with a byte vocabulary."""
    torch.manual_seed(0)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    tokenizer = transformers.BartTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )
    config = transformers.Florence2Config(
        image_token_id=tokenizer.image_token_id,
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
        },
        vision_config={
            "depths": (1, 1),
            "patch_size": (7, 3),
            "patch_stride": (4, 2),
            "patch_padding": (3, 1),
            "patch_prenorm": (False, True),
            "embed_dim": (16, 32),
            "num_heads": (2, 4),
            "num_groups": (2, 4),
            "window_size": 4,
            "projection_dim": 32,
        },
    )
    processor = transformers.CLIPImageProcessorPil(size=_SIZE, crop_size=_SIZE, do_center_crop=False)
    # 4 x 4 positions of the last stage, and one for the whole image.
    processor.image_seq_length = 17
    return _save(
        folder,
        transformers.Florence2ForConditionalGeneration(config),
        transformers.Florence2Processor(processor, tokenizer),
    )


def make_tagger(folder: Path, labels: tuple[str, ...] = ("cat", "long_hair", "tree", "1girl"), **changes: Any) -> Path:
    """A tagger that gives the second label the highest probability, then the first, and no other."""
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(**{"problem_type": "multi_label_classification", **_VISION, **named, **changes})
    )
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 2.0, *[-2.0] * (len(labels) - 2)]))
    return _save(folder, model, transformers.ViTImageProcessorPil(size=_SIZE))


def _bert() -> transformers.BertTokenizer:
    return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(_WORDS)})


def _save(folder: Path, model: Any, processor: Any) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
