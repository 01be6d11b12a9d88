"""Trains the small byte-level BPE of the tiny model, in the file layout of SD's CLIPTokenizer.

Every byte is in the vocabulary, with and without ``</w>``, so any text tokenizes. Merges are learned on our captions
and on ordinary English words, so that a person's own captions do not fall apart into single bytes.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from recipes.tiny.scenes import caption_seed

VOCABULARY = 1400
END_OF_WORD = "</w>"
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
#: CLIP's pre-tokenization pattern.
WORD_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
ENGLISH_WORDS = """
the of and to in is it that for as with on by at from this be are was an or has have its one two three four five six
not but his her they you all which when who what there their more out about up into some could time these other than
then now only new very my over such our man even most made after also did many before must through back years where
much your way well down should because each just those people how too little state good make world still own see men
work long get here between both life being under never day same another know while last might us great old year off
come since against go came right used take three states himself few house use during without again place around
however home small found thought went say part once high general upon school every does got left number course war
until always away something fact though water less public put think almost hand enough far took head yet better
night face eyes mouth nose ear ears hair hat body arms legs feet hand wing tail paw cat dog bird horse cow sheep pig
rabbit mouse bear fox lion tiger elephant monkey frog snake turtle duck owl bee butterfly spider dragon robot monster
creature character cartoon person woman girl boy child baby king queen knight wizard pirate ghost
car bus train plane ship bicycle rocket road street bridge city town castle tower church door window wall roof garden
mountain hill river lake sea ocean beach island forest field grass leaf leaves sky sun stars rain snow wind fire ice
stone rock sand earth planet space light dark shadow bright pale deep soft hard round flat thin thick tall short wide
table chair bed lamp book pen cup glass bottle plate bowl spoon knife fork box bag ball toy key clock phone computer
bread cake apple banana orange lemon cherry grape strawberry cheese egg coffee tea pizza ice cream candy
happy sad angry sleepy smiling laughing standing sitting running jumping flying swimming walking sleeping looking
holding wearing playing eating drinking reading dancing singing beside behind near inside outside front above below
photo picture drawing painting sketch watercolor pencil ink poster stamp postage label sticker icon logo pattern
style art artwork illustration portrait landscape closeup view detailed simple vintage retro modern old antique
color colour colourful black white gray red green blue yellow purple pink brown golden silver turquoise beige cyan
magenta violet striped dotted plain background foreground centre center corner middle edge border frame paper card
showing printed engraved value cents letter word text number crown flag flower rose tree cloud moon heart
"""


def _corpus() -> list[str]:
    return [caption_seed(seed, variant=9) for seed in range(4000)] + 12 * ENGLISH_WORDS.split()


def train_bpe() -> Tokenizer:
    """Train a BPE whose first tokens are the 256 byte letters, then the same at the end of a word, as in CLIP."""
    bpe = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD, continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - 258,
        min_frequency=3,
        initial_alphabet=letters,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    return bpe


def clip_files(bpe: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary in CLIP's order (letters, letters that end a word, merges, special tokens) and merges."""
    merges = [(left, right) for left, right in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + END_OF_WORD for letter in letters]
    tokens += [left + right for left, right in merges] + [START_TOKEN, END_TOKEN]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def save_tokenizer(out_dir: Path) -> CLIPTokenizer:
    """Write `vocab.json`, `merges.txt` and the configuration to `out_dir`; return the tokenizer that they make."""
    out_dir.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = clip_files(train_bpe())
    (out_dir / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (out_dir / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START_TOKEN, "eos_token": END_TOKEN, "unk_token": END_TOKEN, "pad_token": END_TOKEN}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (out_dir / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (out_dir / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(out_dir)
    return tokenizer
