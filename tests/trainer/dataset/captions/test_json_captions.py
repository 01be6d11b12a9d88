"""Captions in JSON, as trainers, boards, annotation programs and chat datasets write them.

kohya, diffusion-pipe, musubi-tuner, LLaVA, PaliGemma, Label Studio, Datumaro, VIA, COCO, gallery-dl, Google Takeout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.trainer.dataset.caption_cases import BOTH, CAT, DOG, CaptionCase, table


def json_tables() -> Iterator[CaptionCase]:
    def lines(*records: object) -> str:
        return "".join(json.dumps(record) + "\n" for record in records)

    yield table(
        "diffusers",
        "metadata.jsonl",
        lines({"file_name": "cat.png", "text": CAT}, {"file_name": "dog.png", "text": DOG}),
    )
    yield table(
        "diffusers, in a folder",
        "train/metadata.jsonl",
        lines({"file_name": "cat.png", "text": CAT}),
        captions={"train/cat.png": CAT},
    )
    yield table(
        "diffusers, from above",
        "train/metadata.jsonl",
        lines({"file_name": "train/cat.png", "text": CAT}),
        captions={"train/cat.png": CAT},
    )
    yield table(
        "musubi-tuner",
        "a.jsonl",
        lines({"image_path": "/data/set/cat.png", "caption": CAT}, {"image_path": "/data/set/dog.png", "caption": DOG}),
    )
    yield table(
        "Instagram's export",
        "posts_1.json",
        json.dumps(
            [
                {"media": [{"uri": "media/posts/cat.png", "creation_timestamp": 1, "title": CAT}]},
                {"media": [{"uri": "media/posts/dog.png"}, {"uri": "media/posts/2.png", "title": ""}], "title": DOG},
            ]
        ),
        captions={"media/posts/cat.png": CAT, "media/posts/dog.png": DOG, "media/posts/2.png": DOG},
    )
    yield table(
        "turns without authors",
        "a.jsonl",
        lines(*({"image": file, "conversations": ["<image> Describe it.", text]} for file, text in BOTH.items())),
    )
    yield table(
        "Qwen-VL",
        "a.json",
        json.dumps(
            [
                {
                    "id": "identity_0",
                    "conversations": [
                        {"from": "user", "value": f"Picture 1: <img>images/{file}</img>\nWhat is it?"},
                        {"from": "assistant", "value": text},
                    ],
                }
                for file, text in BOTH.items()
            ]
        ),
    )
    yield table(
        "results of a batch",
        "batch.jsonl",
        lines(
            *(
                {"custom_id": file, "response": {"body": {"choices": [{"message": {"content": text}}]}}, "error": None}
                for file, text in BOTH.items()
            )
        ),
    )
    yield table(
        "Azure's descriptions",
        "a.jsonl",
        lines(
            *(
                {"image": file, "description": {"tags": ["x"], "captions": [{"text": text, "confidence": 0.9}]}}
                for file, text in BOTH.items()
            )
        ),
    )
    yield table(
        "settings instead of a caption",
        "a.jsonl",
        lines(
            {"file_name": "cat.png", "caption": {"seed": {"x": "1"}}},
            {"file_name": "dog.png", "caption": DOG},
        ),
        captions={"cat.png": (), "dog.png": DOG},
        told=["a.jsonl:1"],
    )
    yield table(
        "positive and negative",
        "a.jsonl",
        lines(*({"file": f, "positive": t, "negative": "bad hands, ugly faces"} for f, t in BOTH.items())),
    )
    yield table(
        "a list without its brackets",
        "a.jsonl",
        ",\n".join(json.dumps({"file": file, "text": text}) for file, text in (("cat.png", CAT), ("dog.png", DOG))),
    )
    yield table(
        "Danbooru's dump of 2021",
        "metadata.json",
        lines(*({"id": n, "tags": [{"id": "1", "name": "1girl"}, {"id": "2", "name": "red_hair"}]} for n in "12")),
        captions={"0001/1.png": "1girl, red_hair", "0002/2.png": "1girl, red_hair"},
    )
    yield table(
        "ControlNet's fill50k",
        "prompt.json",
        lines(*({"source": f"source/{n}.png", "target": f"target/{n}.png", "prompt": CAT} for n in "12")),
        captions={"target/1.png": CAT, "target/2.png": CAT},
    )
    yield table(
        "diffusion-pipe",
        "captions.json",
        json.dumps({"cat.png": [CAT, "a cat at home"], "dog.png": [DOG]}),
        captions={"cat.png": (CAT, "a cat at home"), "dog.png": DOG},
    )
    yield table(
        "kohya's captions",
        "meta_cap.json",
        json.dumps({"C:\\set\\cat": {"caption": CAT}, "C:\\set\\dog": {"caption": DOG}}),
    )
    yield table(
        "kohya's latents",
        "meta_lat.json",
        json.dumps(
            {"cat": {"tags": "red, cat", "caption": "a cat", "train_resolution": [512, 512]}, "dog": {"tags": "dog"}}
        ),
        captions={"cat.png": "a cat, red, cat", "dog.png": "dog"},
    )
    yield table(
        "a list", "dataset.json", json.dumps([{"image": "cat.png", "prompt": CAT}, {"image": "dog.png", "prompt": DOG}])
    )
    yield table(
        "a list in an object",
        "dataset.json",
        json.dumps({"data": [{"image": "cat.png", "text": CAT}, {"image": "dog.png", "text": DOG}]}),
    )
    yield table(
        "a list in an object with more",
        "dataset.json",
        json.dumps(
            {
                "version": "1.0",
                "info": {"by": "me"},
                "samples": [{"image": "cat.png", "text": CAT}, {"image": "dog.png", "text": DOG}],
            }
        ),
    )
    yield table(
        "COCO's captions",
        "captions_val.json",
        json.dumps(
            {
                "info": {},
                "images": [{"id": 1, "file_name": "cat.png"}, {"id": 2, "file_name": "dog.png"}],
                "annotations": [{"image_id": 1, "id": 1, "caption": CAT}, {"image_id": 2, "id": 2, "caption": DOG}],
            }
        ),
    )
    yield table(
        "COCO's boxes",
        "instances.json",
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "cat.png"}],
                "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "segmentation": []}],
                "categories": [{"id": 3, "name": "cat"}],
            }
        ),
        captions={"cat.png": ()},
        told=["instances.json"],
    )
    yield table(
        "LLaVA",
        "llava.json",
        json.dumps(
            [
                {
                    "id": "1",
                    "image": "cat.png",
                    "conversations": [
                        {"from": "human", "value": "<image>\nDescribe the picture."},
                        {"from": "gpt", "value": CAT},
                    ],
                },
                {
                    "id": "2",
                    "image": "dog.png",
                    "conversations": [
                        {"from": "human", "value": "Describe it.\n<image>"},
                        {"from": "gpt", "value": DOG},
                    ],
                },
            ]
        ),
    )
    yield table(
        "messages",
        "train.jsonl",
        lines(
            {
                "messages": [{"role": "user", "content": "<image>Describe it."}, {"role": "assistant", "content": CAT}],
                "images": ["cat.png"],
            },
            {
                "messages": [{"role": "user", "content": "<image>Describe it."}, {"role": "assistant", "content": DOG}],
                "images": ["dog.png"],
            },
        ),
    )
    yield table(
        "PaliGemma",
        "train.jsonl",
        lines(
            {"image": "cat.png", "prefix": "caption en", "suffix": CAT},
            {"image": "dog.png", "prefix": "caption en", "suffix": DOG},
        ),
    )
    yield table(
        "Label Studio's short form",
        "min.json",
        json.dumps(
            [
                {
                    "image": "/data/upload/3/1a2b3c4d-cat.png",
                    "id": 1,
                    "caption": CAT,
                    "annotator": 1,
                    "annotation_id": 1,
                    "created_at": "2024-01-02T03:04:05Z",
                    "lead_time": 9.1,
                },
                {
                    "image": "/data/upload/3/99ab00ff-dog.png",
                    "id": 2,
                    "caption": DOG,
                    "annotator": 1,
                    "annotation_id": 2,
                    "created_at": "2024-01-02T03:04:05Z",
                    "lead_time": 8.2,
                },
            ]
        ),
    )
    yield table(
        "Label Studio",
        "project.json",
        json.dumps(
            [
                {
                    "id": n,
                    "data": {"image": f"/data/local-files/?d=set/{file}"},
                    "annotations": [
                        {
                            "id": n,
                            "completed_by": 1,
                            "result": [
                                {
                                    "from_name": "caption",
                                    "to_name": "image",
                                    "type": "textarea",
                                    "value": {"text": [text]},
                                }
                            ],
                        }
                    ],
                    "file_upload": f"1a2b3c4d-{file}",
                }
                for n, (file, text) in enumerate({"cat.png": CAT, "dog.png": DOG}.items())
            ]
        ),
    )
    yield table(
        "Datumaro",
        "annotations/default.json",
        json.dumps(
            {
                "dm_format_version": "1.0",
                "categories": {},
                "items": [
                    {
                        "id": "cat",
                        "annotations": [{"id": 0, "type": "caption", "caption": CAT}],
                        "image": {"path": "cat.png", "size": [64, 64]},
                    },
                    {
                        "id": "dog",
                        "annotations": [{"id": 0, "type": "caption", "caption": DOG}],
                        "image": {"path": "dog.png", "size": [64, 64]},
                    },
                ],
            }
        ),
        captions={"images/default/cat.png": CAT, "images/default/dog.png": DOG},
    )
    yield table(
        "VIA",
        "via.json",
        json.dumps(
            {
                "cat.png10": {"filename": "cat.png", "size": 10, "regions": [], "file_attributes": {"caption": CAT}},
                "dog.png11": {"filename": "dog.png", "size": 11, "regions": [], "file_attributes": {"caption": DOG}},
            }
        ),
    )
    yield table(
        "DiffusionDB",
        "part-000001.json",
        json.dumps(
            {
                "cat.png": {"p": CAT, "se": 38753269, "c": 12.0, "st": 50, "sa": "k_lms"},
                "dog.png": {"p": DOG, "se": 1, "c": 7.0, "st": 50, "sa": "k_lms"},
            }
        ),
    )
    yield table(
        "images by number",
        "a.json",
        json.dumps([{"id": 1, "caption": CAT}, {"id": 2, "caption": DOG}]),
        captions={"1.png": CAT, "2.png": DOG},
    )
    yield table(
        "gallery-dl's lines",
        "data.jsonl",
        lines(
            {
                "category": "danbooru",
                "id": 1,
                "filename": "danbooru_1",
                "extension": "png",
                "rating": "g",
                "tag_string": "1girl red_hair solo",
                "tag_string_general": "red_hair solo",
            }
        ),
        captions={"danbooru_1.png": "1girl, red_hair, solo"},
    )
    yield table(
        "posts of a board",
        "posts.json",
        json.dumps(
            [
                {
                    "id": 7,
                    "md5": "ab",
                    "file_ext": "png",
                    "tag_string": "1girl solo",
                    "file_url": "https://cdn.x.org/original/ab/ab.png",
                    "source": "https://y.org/art/1.png",
                },
                {
                    "id": 8,
                    "md5": "cd",
                    "file_ext": "png",
                    "tag_string": "1boy hat",
                    "file_url": "https://cdn.x.org/original/cd/cd.png",
                    "source": "",
                },
            ]
        ),
        captions={"ab.png": "1girl, solo", "cd.png": "1boy, hat"},
    )
    yield table(
        "NaN",
        "a.jsonl",
        '{"file_name": "cat.png", "text": NaN}\n' + lines({"file_name": "dog.png", "text": DOG}),
        captions={"cat.png": (), "dog.png": DOG},
    )
    yield table(
        "None as text",
        "a.jsonl",
        lines({"file_name": "cat.png", "text": "None"}, {"file_name": "dog.png", "text": DOG}),
        captions={"cat.png": (), "dog.png": DOG},
    )
    yield table(
        "one bad line",
        "a.jsonl",
        lines({"file_name": "cat.png", "text": CAT}) + "{oops\n" + lines({"file_name": "dog.png", "text": DOG}),
        told=["a.jsonl:2"],
    )
    yield table(
        "a comma too many", "a.json", '{"cat.png": "a red cat on a mat",}', captions={"cat.png": ()}, told=["a.json"]
    )
    yield table(
        "settings",
        "config.json",
        json.dumps({"learning_rate": 1e-4, "name": "my cat"}),
        captions={"cat.png": ()},
        told=["config.json"],
    )
    yield table(
        "sample prompts",
        "samples.json",
        json.dumps([{"prompt": "a cat on the moon", "seed": 1}]),
        captions={"cat.png": ()},
        told=["samples.json"],
    )
    yield table("by name without ending", "captions.json", json.dumps({"cat": CAT, "dog": [DOG]}))
    rows = [{"file_name": "cat.png", "caption": CAT}, {"file_name": "dog.png", "caption": DOG}]
    yield table("rows called annotations", "a.json", json.dumps({"annotations": rows}))
    yield table(
        "an image as diffusers stores it",
        "a.jsonl",
        lines(*({"image": {"path": row["file_name"], "bytes": None}, "text": row["caption"]} for row in rows)),
    )
    yield table(
        "Karpathy's Flickr8k",
        "dataset_flickr8k.json",
        json.dumps(
            {
                "dataset": "flickr8k",
                "images": [
                    {
                        "filename": row["file_name"],
                        "split": "train",
                        "sentences": [{"raw": row["caption"], "tokens": []}],
                    }
                    for row in rows
                ],
            }
        ),
    )
    yield table(
        "messages in parts",
        "train.jsonl",
        lines(
            *(
                {
                    "messages": [
                        {"role": "user", "content": [{"type": "image", "image": row["file_name"]}]},
                        {"role": "assistant", "content": [{"type": "text", "text": row["caption"]}]},
                    ]
                }
                for row in rows
            )
        ),
    )
    choices = [{"data": {"image": "cat.png"}, "annotations": [{"result": [{"value": {"choices": ["cat"]}}]}]}]
    yield table("Label Studio's choices", "a.json", json.dumps(choices), captions={"cat.png": ()}, told=["a.json"])
    results = [{"image_id": 391895, "caption": CAT}, {"image_id": 522418, "caption": DOG}]
    names = ("000000391895.jpg", "000000522418.jpg")
    yield table("COCO's results", "results.json", json.dumps(results), captions={names[0]: CAT, names[1]: DOG})
    sizes = [{"width": 2, "height": 1, **row} for row in ({"id": 1, "caption": CAT}, {"id": 2, "caption": DOG})]
    yield table("sizes and numbers", "a.json", json.dumps(sizes), captions={"0001.png": CAT, "0002.png": DOG})
    by_id = {"7": {"file": "cat.png", "caption": CAT}, "8": {"file": "dog.png", "caption": DOG}}
    yield table("rows by number", "a.json", json.dumps(by_id))
    yield table("pairs", "a.json", json.dumps([["cat.png", CAT], ["dog.png", DOG]]))
    frame = {"file_name": {"0": "cat.png", "1": "dog.png"}, "text": {"0": CAT, "1": DOG}}
    yield table("pandas", "a.json", json.dumps(frame))
    yield table("lists of columns", "a.json", json.dumps({"file_name": ["cat.png", "dog.png"], "text": [CAT, DOG]}))
    captions = {row["file_name"]: row["caption"] for row in rows}
    spread = [json.dumps(row, indent=2) for row in rows]
    yield table("objects over several lines", "a.jsonl", "\n".join(spread))
    yield table("objects over several lines, with commas", "a.jsonl", ",\n".join(spread))
    yield table("one of them is bad", "a.jsonl", "\n".join([spread[0], '{\n"oops\n}', spread[1]]), told=["a.jsonl:5"])
    yield table("lines in a text", "captions.txt", lines(*rows))
    yield table("an object in a text", "captions.txt", json.dumps(captions, indent=1))
    yield table("captions below images", "a.json", json.dumps({"images": captions}))
    yield table("captions below a name", "a.json", json.dumps({"author": "me and a friend", "captions": captions}))
    yield table(
        "records below files", "a.json", json.dumps({"files": {key: {"caption": captions[key]} for key in captions}})
    )
    yield table("splits", "a.json", json.dumps({"train": rows[:1], "test": rows[1:]}))
    yield table("lists of one name", "a.jsonl", lines(*({**row, "file_name": [row["file_name"]]} for row in rows)))
    models = [{"file": key, "captions": [{"model": "blip", "text": captions[key]}]} for key in captions]
    yield table("captions by their models", "a.json", json.dumps(models))
    asked = [{"images": [key], "prompt": f"Describe {key} in detail.", "response": captions[key]} for key in captions]
    yield table("what was asked and the answer", "a.jsonl", lines(*asked))
    named = [{"image": key, "prompt": "Describe it.", "answer": captions[key]} for key in captions]
    yield table("one question in all rows", "a.jsonl", lines(*named))
    yield table(
        "one prompt in all rows",
        "a.jsonl",
        lines(*({"image": key, "prompt": CAT} for key in captions)),
        captions=dict.fromkeys(captions, CAT),
    )
    turns = [("human", "Describe it."), ("gpt", CAT), ("human", "And the floor?"), ("gpt", "It is brown.")]
    talk = {"image": "cat.png", "conversations": [{"from": who, "value": text} for who, text in turns]}
    yield table("answers to further questions", "a.json", json.dumps([talk]), captions={"cat.png": CAT})
    yield table("names with a query", "a.json", json.dumps({f"{key}?raw=true": captions[key] for key in captions}))


CASES = [*json_tables()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_rows_of_json_go_to_their_images(case: CaptionCase) -> None:
    case.check()
