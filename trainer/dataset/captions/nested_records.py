"""Flattens the records of annotation programs and chat datasets, whose captions lie deeper than in a column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from trainer.dataset.captions.table_columns import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    MAX_CAPTIONS,
    TAG_COLUMNS,
    Record,
    file_name_in,
)
from trainer.dataset.captions.table_images import names_image_file

#: Objects in which a caption or the name of the image is looked for: VIA, Label Studio, Datumaro, Hydrus.
_INNER = ("file_attributes", "data", "image", "metadata", "meta")
#: Lists of turns, and the authors of those that describe the image: LLaVA's and OpenAI's form.
_TURNS = (("conversations", "from", "value"), ("messages", "role", "content"))
_ANSWERS = ("gpt", "assistant", "model")
_MAX_TURNS = 50
_IMAGE_TAG = re.compile(r"<img>([^<>\n]{1,1024})</img>")


def flat_record(record: Mapping[str, object]) -> Record:
    """The record with the captions and names of its inner objects as columns; the same if there are none."""
    answer = _object_in(_object_in(record.get("response")).get("body"))
    has_captions = not answer and any(record.get(name) for name in (*CAPTION_COLUMNS, *TAG_COLUMNS))
    objects = [_object_in(record.get(name), is_json_read=not has_captions) for name in _INNER]
    inner = {key: value for each in objects for key, value in each.items()}
    captions = [] if has_captions else [*islice(_nested_captions(record), MAX_CAPTIONS)]
    image = _nested_image(record)
    if not captions and not inner and not image:
        return record
    flat = {**inner, **{key: value for key, value in record.items() if key not in inner or isinstance(value, str)}}
    # A dataset's `{"path": …}` would hide the path.
    flat = {key: value for key, value in flat.items() if key != "image" or not isinstance(value, dict)}
    named = {"image": image} if image else {}
    return {**named, **flat, **({CAPTION_COLUMNS[0]: captions} if captions else {})}


def _object_in(value: object, *, is_json_read: bool = False) -> Mapping[str, object]:
    """An object, or the JSON of one as in the cells of VIA's tables."""
    if is_json_read and isinstance(value, str) and value.startswith("{") and len(value) < 64 * 1024:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _nested_image(record: Mapping[str, object]) -> str:
    """The name of the image in a list of one, or among the parts of a message."""
    images = record.get("images")
    parts = [part for turn in _list_in(record.get("messages")) for part in _list_in(turn.get("content"))]
    candidates = [*(images[:1] if isinstance(images, list) else ()), *(part.get("image") for part in parts)]
    turns = ((turn, content) for name, _author, content in _TURNS for turn in _list_in(record.get(name)))
    # Qwen has it within the question.
    asked = (tag[1] for turn, content in turns if (tag := _IMAGE_TAG.search(f"{turn.get(content)}")))
    return next((name for name in candidates if isinstance(name, str)), "") or next(asked, "")


def _nested_captions(record: Mapping[str, object]) -> Iterator[str]:
    for name, author, content in _TURNS:
        turns = record.get(name)
        if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
            # The question, and its answer.
            yield from turns[1:2] or turns
        # Later answers are about details.
        answers = (turn for turn in _list_in(record.get(name)) if turn.get(author) in _ANSWERS)
        yield from _texts_in(next(answers, {}).get(content), "text")
    # The results of a batch of OpenAI's.
    choices = _list_in(_object_in(_object_in(record.get("response")).get("body")).get("choices"))
    yield from _texts_in([_object_in(choice.get("message")).get("content") for choice in choices[:1]], "")
    # PaliGemma: the question and the answer.
    if isinstance(record.get("prefix"), str):
        yield from _texts_in(record.get("suffix"), "")
    # Karpathy's splits of COCO and Flickr.
    yield from _texts_in(record.get("sentences"), "raw")
    for annotation in _list_in(record.get("annotations")):
        # Else it is a row of its own.
        if not any(names_image_file(file_name_in(annotation.get(name))) for name in FILE_COLUMNS):
            yield from _texts_in(annotation.get("caption"), "")
            for result in _list_in(annotation.get("result")):
                # Label Studio's fields of text.
                yield from _texts_in(_object_in(result.get("value")).get("text"), "")


def _texts_in(value: object, key: str) -> Iterator[str]:
    """Yield a text, the texts of a list, or those under a key of the objects in a list."""
    for each in value[:_MAX_TURNS] if isinstance(value, list) else [value]:
        text = each.get(key) if isinstance(each, dict) else each
        if isinstance(text, str):
            yield text


def _list_in(value: object) -> Sequence[Mapping[str, object]]:
    return [each for each in value[:_MAX_TURNS] if isinstance(each, dict)] if isinstance(value, list) else []
