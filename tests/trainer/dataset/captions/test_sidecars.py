"""Texts beside images, as people, taggers, trainers and downloaders write them.

kohya, OneTrainer, ai-toolkit, gallery-dl, Grabber, Hydrus, WD14 taggers, language models, detectors, editors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.trainer.dataset.caption_cases import CAT, DOG, CaptionCase, case, one


def sidecars() -> Iterator[CaptionCase]:
    yield one("UTF-8", "cat.txt", CAT, CAT)
    yield one("UTF-8 with a mark", "cat.txt", CAT.encode("utf-8-sig"), CAT)
    yield one("Notepad's Unicode", "cat.txt", CAT.encode("utf-16"), CAT)
    yield one("big-endian UTF-16", "cat.txt", b"\xfe\xff" + CAT.encode("utf-16-be"), CAT)
    yield one("UTF-16 without a mark", "cat.txt", CAT.encode("utf-16-le"), CAT)
    yield one("Windows line end", "cat.txt", f"{CAT}\r\n", CAT)
    yield one("old Mac line end", "cat.txt", f"{CAT}\r", CAT)
    yield one("non-breaking spaces", "cat.txt", CAT.replace(" ", "\u00a0"), CAT)
    yield one("capital ending", "cat.TXT", CAT, CAT)
    yield one("kohya's .caption", "cat.caption", CAT, CAT)
    yield one(".tags", "cat.tags", "1girl, red hair", "1girl, red hair")
    yield one("name with the image's ending", "cat.png.txt", CAT, CAT)
    yield one("dots in the name", "cat.v2.txt", CAT, CAT, image="cat.v2.png")
    yield one("capital image", "img_1.txt", CAT, CAT, image="IMG_1.PNG")
    yield one("decomposed name", "cafe\u0301.txt", CAT, CAT, image="caf\u00e9.png")
    yield one("hidden ending typed once more", "cat.txt.txt", CAT, CAT)
    yield one("empty", "cat.txt", "", ())
    yield one("only a mark", "cat.txt", b"\xef\xbb\xbf", ())
    yield one("only spaces", "cat.txt", " \r\n\t", ())
    yield case("two images of one stem", {"cat.txt": CAT}, {"cat.png": CAT, "cat.jpg": CAT})
    yield case("each in its folder", {"a/1.txt": CAT, "b/1.txt": DOG}, {"a/1.png": CAT, "b/1.png": DOG})
    yield case("no image of that name", {"cta.txt": CAT}, {"cat.png": ()}, told=["cta.txt"])
    yield one("WD14", "cat.txt", "1girl, solo, saber \\(fate\\), red hair", "1girl, solo, saber \\(fate\\), red hair")
    yield one("gallery-dl: a tag on each line", "cat.png.txt", "1girl\nred_hair\nsolo\n", "1girl, red_hair, solo")
    yield one(
        "Hydrus: a tag on each line", "cat.png.txt", "flowers\nlandscape\nblue sky", "flowers, landscape, blue sky"
    )
    yield one(
        "Hydrus' namespaces",
        "cat.txt",
        "character:momo\ncreator:someone\nblue eyes",
        "character:momo, creator:someone, blue eyes",
    )
    yield one("two tags", "cat.txt", "red cat\nblue sky", "red cat, blue sky")
    yield one(
        "Grabber: tags between spaces",
        "cat.txt",
        "1girl long_hair red_eyes solo sword",
        "1girl, long_hair, red_eyes, solo, sword",
    )
    yield one("a trigger with an underscore", "cat.txt", "momo_style portrait", "momo_style portrait")
    yield one("a sentence with one underscore", "cat.txt", "a red cat in style_x", "a red cat in style_x")
    yield one(
        "lines of tags with commas",
        "cat.txt",
        "1girl, solo,\nred hair, smile,\noutdoors",
        "1girl, solo, red hair, smile, outdoors",
    )
    yield one(
        "kohya's wildcard lines",
        "cat.txt",
        "momo, red cat, mat, indoors\na red cat on a mat\nmomo on a mat, a red cat",
        ("momo, red cat, mat, indoors", "a red cat on a mat", "momo on a mat, a red cat"),
    )
    yield one(
        "OneTrainer's lines",
        "cat.txt",
        "a red cat sitting on a mat\nphoto of a cat, red fur, on a mat\n",
        ("a red cat sitting on a mat", "photo of a cat, red fur, on a mat"),
    )
    yield one(
        "lines in Chinese",
        "cat.txt",
        "一只红色的猫坐在垫子上\n红色的猫，坐在垫子上，室内\n",
        ("一只红色的猫坐在垫子上", "红色的猫，坐在垫子上，室内"),
    )
    yield one("the same line twice", "cat.txt", f"{CAT}\n{CAT}\n", CAT)
    yield one(
        "hard-wrapped sentence",
        "cat.txt",
        "A red cat with long whiskers is sitting on a\nwoven mat beside the window of an old house\nin the morning.",
        "A red cat with long whiskers is sitting on a woven mat beside the window of an old house in the morning.",
    )
    yield one(
        "paragraphs",
        "cat.txt",
        "The picture shows a red cat.\n\nBehind it stands a wooden house with two windows.\n\nThe mood is calm.",
        "The picture shows a red cat. Behind it stands a wooden house with two windows. The mood is calm.",
    )
    yield one(
        "A1111's parameters",
        "cat.txt",
        f"{CAT}\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1",
        CAT,
    )
    yield one("extra networks of A1111", "cat.txt", f"{CAT}, <lora:momo_v2:0.8>", CAT)
    yield one("HTML's entities", "cat.txt", "a cat &amp; a dog &quot;Rex&quot;", 'a cat & a dog "Rex"')
    yield one("HTML", "cat.txt", "<p>a <b>red</b> cat<br/>on a mat</p>", "a red cat on a mat")
    yield one("an address in HTML", "cat.txt", 'a red cat by <a href="https://x.org/u/1">me</a>', "a red cat by me")
    yield one("less than", "cat.txt", "a cat < a dog, 5 > 3", "a cat < a dog, 5 > 3")
    yield one("a heart", "cat.txt", "a cat <3 fish", "a cat <3 fish")
    yield one("JSON in a text", "cat.txt", '{"caption": "a red cat on a mat"}', CAT)
    yield one("a list in JSON in a text", "cat.txt", '["red cat", "mat", "indoors"]', "red cat, mat, indoors")
    yield one("a brace is no JSON", "cat.txt", "{red|blue} cat on a mat", "{red|blue} cat on a mat")
    yield one("a weight is no JSON", "cat.txt", "[red cat:0.5], mat", "[red cat:0.5], mat")
    yield one("fenced JSON of a model", "cat.txt", '```json\n{"caption": "a red cat on a mat"}\n```', CAT)
    yield one(
        "RTF", "cat.txt", "{\\rtf1\\ansi\\ansicpg1252{\\fonttbl\\f0 Helvetica;}\\f0\\fs24 a red cat}", (), told=True
    )
    yield one("YOLO's boxes", "cat.txt", "0 0.512 0.433 0.250 0.310\n3 0.1 0.2 0.05 0.07\n", (), told=True)
    yield one("YOLO's polygons", "cat.txt", "0 0.51 0.43 0.52 0.44 0.6 0.5 0.7 0.7", (), told=True)
    yield one("an address alone", "cat.txt", "https://example.com/post/123\n", (), told=True)
    yield one("numbers that are a caption", "cat.txt", "1984", "1984")
    yield one("nan", "cat.txt", "nan", ())
    yield one("None", "cat.txt", "None\n", ())
    yield one("colors of a terminal", "cat.txt", "\x1b[32ma red cat\x1b[0m on a mat", CAT)
    yield one("zero-width and bidi marks", "cat.txt", "a\u200b red\u202e cat\ufeff on a mat", CAT)
    yield one("joined emoji", "cat.txt", "a family 👨‍👩‍👧 at home", "a family 👨‍👩‍👧 at home")
    yield one("Persian's joiner", "cat.txt", "گربه می‌خوابد", "گربه می‌خوابد")
    yield one("Hindi", "cat.txt", "लाल बिल्ली चटाई पर", "लाल बिल्ली चटाई पर")
    yield one("Thai", "cat.txt", "แมวสีแดงบนเสื่อ", "แมวสีแดงบนเสื่อ")
    yield one("a control character", "cat.txt", "a red cat\x0b on a\x00 mat", CAT)
    yield one("cmd.exe's end of file", "cat.txt", f"{CAT}\r\n\x1a", CAT)
    yield one("a binary file", "cat.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", (), told=True)
    yield one("UTF-8 cut within a character", "cat.txt", "a red cat in a café".encode()[:-1], (), told=True)
    yield one("one wrong byte in UTF-8", "cat.txt", "ein Bär, grün, am Fluß".encode() + b" \xe9", (), told=True)
    yield one("marks of a list", "cat.txt", "- 1girl\n- red hair\n- solo", "1girl, red hair, solo")
    yield one(
        "numbered captions",
        "cat.txt",
        "1. a red cat on a mat\n2. photo of a red cat\n3. cat, red, mat",
        ("a red cat on a mat", "photo of a red cat", "cat, red, mat"),
    )
    yield one(
        "tags and a sentence",
        "cat.txt",
        "1girl, solo, red hair, smile\nA girl with red hair smiles.",
        ("1girl, solo, red hair, smile", "A girl with red hair smiles."),
    )
    yield one(
        "lines in Russian",
        "cat.txt",
        "рыжая кошка сидит на ковре\nфото рыжей кошки на ковре",
        ("рыжая кошка сидит на ковре", "фото рыжей кошки на ковре"),
    )
    yield one("tags in Japanese", "cat.txt", "猫\n赤い\n屋内", "猫, 赤い, 屋内")
    yield one("kohya's separators", "cat.txt", "momo, cat ||| red fur, mat", "momo, cat ||| red fur, mat")
    yield one("an error", "cat.txt", "Error: 429 Too Many Requests", (), told=True)
    yield one("an error of a service", "cat.txt", '{"error": {"message": "rate limit"}}', (), told=True)
    yield one("a traceback", "cat.txt", 'Traceback (most recent call last):\n  File "x.py", line 1', (), told=True)
    yield one("what JavaScript prints", "cat.txt", "[object Object]", (), told=True)
    yield one("data", "cat.txt", "iVBORw0KGgo" * 12 + "==", (), told=True)
    yield one("words about an error", "cat.txt", "error message on a screen: red", "error message on a screen: red")
    yield one("a list in Python's notation", "cat.txt", "['a red cat', 'on a mat']", (), told=True)
    yield one("a path of Windows", "cat.txt", "C:\\pics\\cat.png", (), told=True)
    yield one("a label", "cat.txt", f"Caption: {CAT}", CAT)
    yield one("a label in bold", "cat.txt", f"**Prompt:** {CAT}\n", CAT)
    yield one("a label in Chinese", "cat.txt", "提示词：红猫，坐着", "红猫，坐着")
    yield one("a heading", "cat.txt", f"## Description\n\n{CAT}", CAT)
    yield one("a label and two lines", "cat.txt", "Description: a red cat\non a mat", CAT)
    yield one("fields", "cat.txt", f"Title: Momo\nTags: red, mat\nCaption: {CAT}\nRating: safe", f"{CAT}, red, mat")
    yield one("fields without a caption", "cat.txt", "Title: Momo\nTags: red, mat", "red, mat")
    yield one("fields of other names", "cat.txt", "subject: cat\nmood: calm", "subject: cat, mood: calm")
    yield one("a word that could be a label", "cat.txt", "prompt service, a cat: red", "prompt service, a cat: red")
    yield one("the image's name", "cat.txt", f"cat.png: {CAT}", CAT)
    yield one("another image's name", "cat.txt", f"dog.png: {CAT}", f"dog.png: {CAT}")
    yield one("of an image that was converted", "cat.jpg.txt", CAT, CAT)
    yield one("a model that refused", "cat.txt", "I'm sorry, but I can't assist with that request.", (), told=True)
    yield one("another that refused", "cat.txt", "I cannot help with describing this image.", (), told=True)
    yield one("sorry, but a caption", "cat.txt", "sorry cat that can't sleep", "sorry cat that can't sleep")
    yield one("DOTA's boxes", "cat.txt", "imagesource:X\ngsd:0.1\n27 24 28 23 28 24 28 25 plane 0", (), told=True)
    yield one("KITTI's boxes", "cat.txt", "Car 0.00 0 -1.57 587.0 173.3 614.1 200.1 1.65 1.67 3.6 -0.6", (), told=True)
    yield one("a box with its name", "cat.txt", "cat 12 34 56 78", (), told=True)
    yield one(
        "a pointer of Git LFS", "cat.txt", "version https://git-lfs.github.com/spec/v1\noid x\nsize 9", (), told=True
    )
    yield one("a pointer of git-annex", "cat.txt", "/annex/objects/SHA256E-s12--abc.txt\n", (), told=True)
    yield one("a web page", "cat.txt", "<!DOCTYPE html>\n<html><body>Not Found</body></html>", (), told=True)
    yield one("XML", "cat.txt", '<?xml version="1.0"?><annotation><name>cat</name></annotation>', (), told=True)
    yield one("Python's notation", "cat.txt", "{'caption': 'a red cat'}", (), told=True)
    yield one("NovelAI's braces", "cat.txt", "{'90s anime}, 1girl", "{'90s anime}, 1girl")
    yield one("properties of a note", "cat.txt", f"---\ntags: [cat]\n---\n\n{CAT}\n", CAT)
    yield one("dashes", "cat.txt", "--- a red cat ---", "--- a red cat ---")
    yield one("numbers within words", "cat.txt", "3 cats and 5 dogs", "3 cats and 5 dogs")
    yield one("JSON without captions", "cat.txt", '{"0": 1, "16": 2}', '{"0": 1, "16": 2}')
    yield one("a network first", "cat.txt", "<lora:x:1>, a red cat on a mat", CAT)
    yield one("a learned word", "cat.txt", "a photo of <momo-cat> here", "a photo of <momo-cat> here")
    yield one("Florence's tokens", "cat.txt", "</s><s>a red cat on a mat</s><pad>", CAT)
    yield one("tokens of a chat", "cat.txt", "<|im_start|>a red cat on a mat<|im_end|>", CAT)
    yield one("thoughts of a model", "cat.txt", "<think>\nA caption is wanted.\n</think>\n\na red cat on a mat", CAT)
    yield one("thoughts that were cut", "cat.txt", "<think>\nA caption is wanted", ())
    yield one("a model's preamble", "cat.txt", "Here is a caption for the image:\n\na red cat on a mat", CAT)
    yield one("no preamble", "cat.txt", "Here is a red cat on a mat.", "Here is a red cat on a mat.")
    yield one("tags in Korean", "cat.txt", "고양이\n빨간색", "고양이, 빨간색")
    yield one("the name of the image", "cat.txt", "cat.png", "cat.png")


def json_sidecars() -> Iterator[CaptionCase]:
    yield one("ai-toolkit", "cat.json", json.dumps({"caption": CAT, "caption_short": "a cat"}), CAT)
    yield one("InvokeAI", "cat.json", json.dumps({"positive_prompt": CAT, "negative_prompt": "ugly, bad"}), CAT)
    yield one(
        "gallery-dl on Danbooru",
        "cat.png.json",
        json.dumps(
            {
                "category": "danbooru",
                "rating": "g",
                "score": 5,
                "tag_string": "1girl red_hair solo",
                "tag_string_artist": "x",
                "tag_string_general": "red_hair solo",
                "source": "https://x.org",
                "file_url": "https://x.org/a.png",
            }
        ),
        "1girl, red_hair, solo",
    )
    yield one(
        "tags without underscores", "cat.png.json", json.dumps({"tag_string": "1girl solo smile"}), "1girl, solo, smile"
    )
    yield one(
        "gallery-dl on e621",
        "cat.png.json",
        json.dumps(
            {
                "category": "e621",
                "description": "",
                "tags": {"general": ["solo", "hat"], "species": ["cat"], "invalid": []},
            }
        ),
        "solo, hat, cat",
    )
    yield one(
        "gallery-dl on Pixiv",
        "cat.png.json",
        json.dumps(
            {
                "category": "pixiv",
                "title": "Cat",
                "caption": 'my cat<br />see <a href="https://x.org">here</a>',
                "tags": ["猫", "オリジナル"],
            }
        ),
        "my cat see here, 猫, オリジナル",
    )
    yield one(
        "gallery-dl without words",
        "cat.png.json",
        json.dumps({"category": "twitter", "tweet_id": 5, "extension": "png", "filename": "x"}),
        (),
        told=True,
    )
    yield one(
        "Hydrus' metadata",
        "cat.png.json",
        json.dumps({"metadata": {"urls": ["https://x.org/1"], "tags": ["blonde hair", "blue eyes", "skirt"]}}),
        "blonde hair, blue eyes, skirt",
    )
    yield one(
        "a list of tags",
        "cat.png.json",
        json.dumps(["blonde hair", "blue eyes", "skirt"]),
        "blonde hair, blue eyes, skirt",
    )
    yield one(
        "a tagger's scores",
        "cat.json",
        json.dumps({"tags": {"1girl": 0.99, "solo": 0.93}, "rating": {"general": 0.9}}),
        "1girl, solo",
    )
    yield one(
        "captions of several models",
        "cat.json",
        json.dumps({"captions": [CAT, "a cat at home"]}),
        (CAT, "a cat at home"),
    )
    yield one(
        "Google Takeout",
        "cat.png.supplemental-metadata.json",
        json.dumps(
            {"title": "cat.png", "description": CAT, "photoTakenTime": {"timestamp": "1"}, "geoData": {"latitude": 0.0}}
        ),
        CAT,
    )
    yield one(
        "Google Takeout, a long name",
        "a_very_long_name_of_a_cat.png.supplemental-me.json",
        json.dumps({"title": "a_very_long_name_of_a_cat.png", "description": CAT}),
        CAT,
        image="a_very_long_name_of_a_cat.png",
    )
    yield one("Google Takeout before 2024", "cat.png.json", json.dumps({"title": "cat.png", "description": CAT}), CAT)
    yield case(
        "Google Takeout before 2024, numbered",
        {"cat.png.json": json.dumps({"description": DOG}), "cat.png(1).json": json.dumps({"description": CAT})},
        {"cat.png": DOG, "cat(1).png": CAT},
    )
    yield one(
        "Google Takeout without words",
        "cat.png.supplemental-metadata.json",
        json.dumps({"title": "cat.png", "description": "", "photoTakenTime": {"timestamp": "1"}}),
        (),
    )
    yield one(
        "LLaVA's answer",
        "cat.json",
        json.dumps({"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": CAT}]}),
        CAT,
    )
    yield one(
        "LabelMe's shapes",
        "cat.json",
        json.dumps(
            {
                "version": "5.0",
                "flags": {},
                "shapes": [{"label": "cat", "points": [[1, 2]]}],
                "imagePath": "cat.png",
                "imageData": None,
            }
        ),
        (),
        told=True,
    )
    yield one("broken", "cat.json", '{"caption": "a red', (), told=True)
    yield one("with a mark", "cat.json", "\ufeff" + json.dumps({"caption": CAT}), CAT)
    by_model = {"captions": {"blip": CAT, "llava": "a cat at home"}}
    yield one("captions by model", "cat.json", json.dumps(by_model), (CAT, "a cat at home"))
    workflow = {"prompt": {"1": {"class_type": "KSampler", "inputs": {}}}}
    yield one("ComfyUI's workflow", "cat.json", json.dumps(workflow), (), told=True)
    yield one("a generator's settings", "cat.json", json.dumps({"prompt": CAT, "negative_prompt": "x"}), CAT)
    yield one("nothing in it", "cat.json", json.dumps({"caption": None, "tags": []}), ())
    yield one("null", "cat.json", "null", (), told=True)


def folders() -> Iterator[CaptionCase]:
    yield case(
        "captions/ beside images/",
        {"captions/cat.txt": CAT, "captions/dog.txt": DOG},
        {"images/cat.png": CAT, "images/dog.png": DOG},
    )
    yield case("txt/ beside img/", {"txt/cat.txt": CAT}, {"img/cat.png": CAT})
    yield case("captions/ below the images", {"set/captions/cat.txt": CAT}, {"set/cat.png": CAT})
    yield case("images/ below the captions", {"set/cat.txt": CAT}, {"set/images/cat.png": CAT})
    yield case(
        "parallel trees",
        {"captions/a/1.txt": CAT, "captions/b/1.txt": DOG},
        {"images/a/1.png": CAT, "images/b/1.png": DOG},
    )
    yield case(
        "splits with both",
        {"train/captions/1.txt": CAT, "test/captions/1.txt": DOG},
        {"train/images/1.png": CAT, "test/images/1.png": DOG},
    )
    yield case(
        "two images may be meant", {"captions/1.txt": CAT}, {"a/1.png": (), "b/1.png": ()}, told=["captions/1.txt"]
    )
    yield case(
        "a neighbor class",
        {"dogs/1.txt": DOG, "dogs/2.png.txt": DOG},
        {"cats/1.png": (), "dogs/2.png": DOG},
        told=["dogs/1.txt"],
    )
    yield case(
        "YOLO's labels/",
        {"labels/cat.txt": "0 0.5 0.5 0.1 0.1", "classes.txt": "cat\ndog"},
        {"images/cat.png": ()},
        told=["labels/cat.txt", "classes.txt"],
    )
    yield case(
        "its own text counts more",
        {"captions/cat.txt": DOG, "images/cat.txt": CAT},
        {"images/cat.png": CAT},
        told=["captions/cat.txt"],
    )
    yield case(
        "img2dataset",
        {
            "00000/000000001.txt": CAT,
            "00000/000000001.json": json.dumps(
                {
                    "url": "https://x.org/1.jpg",
                    "caption": CAT,
                    "key": "000000001",
                    "status": "success",
                    "error_message": None,
                    "width": 512,
                    "height": 512,
                    "exif": "{}",
                    "sha256": "ab",
                }
            ),
            "00000_stats.json": json.dumps({"count": 10, "successes": 9, "status_dict": {"success": 9}}),
        },
        {"00000/000000001.jpg": CAT},
        told=["00000_stats.json"],
    )
    yield case(
        "a web dataset",
        {"000001.json": json.dumps({"caption": CAT, "height": 64}), "000001.cls": "3"},
        {"000001.jpg": CAT},
        told=["000001.cls"],
    )
    yield case("another split", {"val/1.txt": DOG}, {"train/1.png": ()}, told=["val/1.txt"])
    yield case("a class that is gone", {"dogs/1.txt": DOG}, {"cats/1.png": ()}, told=["dogs/1.txt"])
    yield case(
        "two folders of texts",
        {"captions/1.txt": CAT, "tags/1.txt": "cat"},
        {"imgs/1.png": CAT},
        told=["tags/1.txt"],
    )
    yield case("notes", {"readme.txt": "My cats.", "set/1.txt": CAT}, {"set/1.png": CAT}, told=["readme.txt"])


def answers() -> Iterator[CaptionCase]:
    """What language models, taggers and generators write around a caption, or several of them."""
    for name, text in {
        "an offer below": f"{CAT}\n\nLet me know if you want it shorter!",
        "bold": f"**{CAT}**",
        "a sentence in quotes": f"“{CAT}”",
        "a number": f"1. {CAT}",
        "tokens around it": f"<s>{CAT}</s>",
        "the name of Florence's task": f"<MORE_DETAILED_CAPTION>{CAT}",
        "LLaVA's template": f"USER: <image>\nDescribe it. ASSISTANT: {CAT}",
        "Llama's template": f"[INST] Describe it. [/INST] {CAT}",
        "Alpaca's template": f"### Response:\n{CAT}",
        "Midjourney's options": f"{CAT} --ar 16:9 --v 6 --style raw",
        "Midjourney's message": f"**{CAT} --ar 16:9** - <@123456> (fast)",
        "an address's spaces": CAT.replace(" ", "%20"),
        "a label in German": f"Beschreibung: {CAT}",
        "a label in Spanish": f"Descripción: {CAT}",
        "a label in Japanese": f"キャプション：{CAT}",
        "an introduction in Chinese": f"好的，以下是这张图片的描述：\n\n{CAT}",
    }.items():
        yield one(name, "cat.txt", text, CAT)
    yield one("line ends as in JSON", "cat.txt", f"{CAT}\\n{DOG}", f"{CAT} {DOG}")
    for name, text in {
        "scores behind colons": "1girl: 0.98, solo: 0.95, smile: .5",
        "scores in brackets": "1girl (0.98), solo (0.95), smile (1.0)",
        "scores in lines": "1girl 0.98\nsolo 0.95\nsmile 0.51\n",
    }.items():
        yield one(name, "cat.txt", text, "1girl, solo, smile")
    yield one("weights of a prompt", "cat.txt", "(cat:1.2), (mat:0.9)", "(cat:1.2), (mat:0.9)")
    yield one("a dash and a name", "cat.txt", "a cat -- the red one, on a mat", "a cat -- the red one, on a mat")
    yield one("a word in quotes", "cat.txt", '"Rex"', '"Rex"')
    longer = "a red cat lies on a mat and sleeps"
    yield one("two options", "cat.txt", f"Option 1: {CAT}\nOption 2: {longer}", (CAT, longer))
    yield one(
        "options with titles",
        "cat.txt",
        f"Here are two captions for your image:\n\n**Option 1 (short):**\n{CAT}\n\n**Option 2 (detailed):**\n{longer}",
        (CAT, longer),
    )
    yield one(
        "options and an offer",
        "cat.txt",
        f'Sure! Here are two:\n\n**Version A:** "{CAT}"\n\n**Version B:** {longer}\n\nWould you like another one?',
        (CAT, longer),
    )
    yield one(
        "options in Chinese",
        "cat.txt",
        "方案一：垫子上的红猫\n方案二：红猫睡在垫子上",
        ("垫子上的红猫", "红猫睡在垫子上"),
    )
    poster = "a poster that says option 1: cats, option 2: dogs"
    yield one("words in an image", "cat.txt", poster, poster)


def data() -> Iterator[CaptionCase]:
    """Data beside images that is no caption, and captions that look like it."""
    yield one("SubRip", "cat.txt", "1\n00:00:01,000 --> 00:00:04,000\nHello.\n", (), told=True)
    yield one("WebVTT", "cat.txt", "WEBVTT\n\n00:01.000 --> 00:04.000\nHello.\n", (), told=True)
    yield one("EXIF", "cat.txt", "Make: Canon\nModel: EOS R5\nISO: 100\nF-Number: 2.8\nOwner: me", (), told=True)
    exiftool = "".join(f"{name:32}: x\n" for name in ("File Name", "Directory", "File Size", "MIME Type"))
    yield one("exiftool", "cat.txt", exiftool, (), told=True)
    yield one("EXIF and a caption", "cat.txt", f"Make: Canon\nModel: EOS R5\nISO: 100\nDescription: {CAT}", CAT)
    scene = "Camera: low angle\nSubject: a red cat\nLight: soft"
    yield one("the properties of a scene", "cat.txt", scene, scene.replace("\n", ", "))
    for error in ("Error: 429 Too Many Requests", "RuntimeError: x", "openai.APIError: x", "Error: connect ECONNRESET"):
        yield one(f"an error ({error})", "cat.txt", error, (), told=True)
    yield one(
        "words of a screen", "cat.txt", "Error: a red screen with white words", "Error: a red screen with white words"
    )


def legacy() -> Iterator[CaptionCase]:
    texts = {
        "gb18030": ("一个女孩站在樱花树下", "黑色长发，微笑", "夜晚的街道，霓虹灯"),
        "big5": ("一個女孩站在櫻花樹下", "黑色長髮，微笑", "夜晚的街道，霓虹燈"),
        "cp932": ("桜の木の下に立つ少女", "黒髪、笑顔", "夜の街とネオン"),
        "euc-jp": ("桜の木の下に立つ少女", "黒髪、笑顔", "夜の街とネオン"),
        "cp949": ("벚나무 아래 서 있는 소녀", "검은 머리, 미소", "밤거리의 네온"),
        "cp1251": ("девочка стоит под вишнёвым деревом", "чёрные волосы, улыбка", "ночная улица, неон"),
        "koi8-r": ("девочка стоит под вишнёвым деревом", "чёрные волосы, улыбка", "ночная улица, неон"),
        "cp866": ("девочка стоит под вишнёвым деревом", "чёрные волосы, улыбка", "ночная улица, неон"),
        "cp1250": ("dziewczyna stoi pod wiśnią", "czarne włosy, uśmiech", "ulica nocą, światła neonów"),
        "cp1252": ("ein Mädchen steht unter einem Kirschbaum", "schwarze Haare, lächelnd", "eine Straße bei Nacht"),
        "iso-8859-1": ("une fille sous un cerisier en été", "cheveux noirs, célèbre", "rue éclairée la nuit"),
        "cp1253": ("κορίτσι κάτω από μια κερασιά", "μαύρα μαλλιά, χαμόγελο", "δρόμος τη νύχτα"),
        "cp1254": ("kiraz ağacının altında duran kız", "siyah saç, gülümseme", "gece sokağı, ışıklar"),
        "cp1255": ("ילדה עומדת מתחת לעץ דובדבן", "שיער שחור, חיוך", "רחוב בלילה"),
        "cp1256": ("فتاة تقف تحت شجرة كرز", "شعر أسود، ابتسامة", "شارع في الليل"),
        "cp1257": ("mergaitė stovi po vyšnia", "juodi plaukai, šypsena", "naktinė gatvė, šviesos"),
        "cp1258": ("cô gái đứng dưới cây hoa", "tóc đen, mỉm cười", "phố đêm"),
        "cp874": ("เด็กหญิงยืนอยู่ใต้ต้นซากุระ", "ผมสีดำ ยิ้ม", "ถนนตอนกลางคืน"),
        "mac-roman": ("une fille sous un cerisier en été", "cheveux noirs, célèbre", "rue éclairée la nuit"),
        "cp437": ("une fille sous un cerisier en été", "cheveux noirs, célèbre", "rue éclairée la nuit"),
    }
    for encoding, captions in texts.items():
        encoded = {f"{n}.txt": caption.encode(encoding, "ignore") for n, caption in enumerate(captions)}
        right = {f"{n}.png": caption for n, caption in enumerate(captions)}
        if all(caption.encode(encoding, "ignore").decode(encoding) == caption for caption in captions):
            yield case(f"texts in {encoding}", encoded, right, may_be_refused=True)
            rows = "".join(f"{n}.png,{caption}\r\n" for n, caption in enumerate(captions) if "," not in caption)
            sentence = {file: text for file, text in right.items() if isinstance(text, str) and "," not in text}
            yield case(
                f"table in {encoding}",
                {"a.csv": f"file,text\r\n{rows}".encode(encoding)},
                sentence,
                may_be_refused=True,
            )


CASES = [*sidecars(), *json_sidecars(), *answers(), *data(), *folders(), *legacy()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_image_gets_its_captions_and_what_is_none_is_told(case: CaptionCase) -> None:
    case.check()
