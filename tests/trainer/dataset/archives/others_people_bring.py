"""Tars and 7z archives, and the exports of dataset programs."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import tarfile
from pathlib import Path

import numpy as np
import py7zr
from PIL import Image

from tests.trainer.dataset.archive_cases import CAPTIONS, CAT, DOG, Archive, Build, both, image, members, register_in
from tests.trainer.dataset.image_files import (
    encoded,
    make_zip,
)
from tests.trainer.dataset.tar_files import make_7z, make_tar, special, tar_bytes
from trainer.protocol.report import RefusalKind

OTHERS: dict[str, Build] = {}
archive = register_in(OTHERS)


# -- tars and 7z ------------------------------------------------------------------------------------------------------


@archive("git-archive.tar.gz")
def _(path: Path) -> Archive:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "a1b2"}) as writing:
        for name, data in members("set/cat.png", "set/dog.png").items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writing.addfile(info, io.BytesIO(data))
    return Archive(images=both("set/"))


@archive("mac.tar.gz")
def _(path: Path) -> Archive:
    make_tar(
        path,
        {"./._cat.png": b"\0\5\x16\7", **{f"./{name}": data for name, data in members("cat.png", "dog.png").items()}},
    )
    return Archive(images=both())


@archive("long-names.tar")
def _(path: Path) -> Archive:
    folder = "ordner mit einem sehr langen namen/" * 5
    path.write_bytes(tar_bytes(members(f"{folder}cat.png", f"{folder}dog.png"), tar_format=tarfile.GNU_FORMAT))
    return Archive(images=both(folder))


@archive("links.tar.xz")
def _(path: Path) -> Archive:
    make_tar(
        path,
        members("cat.png", "dog.png"),
        [special("same.png", tarfile.LNKTYPE, "cat.png"), special("far.png", tarfile.SYMTYPE, "/etc/x")],
    )
    return Archive(images=both(), refused=dict.fromkeys(("same.png", "far.png"), RefusalKind.LINK))


@archive("bytes-behind.tar.gz")
def _(path: Path) -> Archive:
    make_tar(path, members("cat.png", "dog.png"))
    path.write_bytes(path.read_bytes() + b"garbage at the end")
    return Archive(images=both())


@archive("two-streams.tar.gz")
def _(path: Path) -> Archive:
    data = tar_bytes(members("cat.png", "dog.png"))
    path.write_bytes(gzip.compress(data[:3000]) + gzip.compress(data[3000:]))
    return Archive(images=both())


@archive("two-tars.tar")
def _(path: Path) -> Archive:
    path.write_bytes(tar_bytes(members("cat.png")) + tar_bytes(members("dog.png")))
    return Archive(images={"cat.png": CAT, "dog.png": DOG})


@archive("legacy-names.tar")
def _(path: Path) -> Archive:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="cp1251") as writing:
        for name, data in members("котики на даче/cat.png", "котики на даче/dog.png").items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writing.addfile(info, io.BytesIO(data))
    return Archive(images=both("котики на даче/"))


@archive("cut.tar.gz")
def _(path: Path) -> Archive:
    make_tar(path, {"noise.bin": os.urandom(50_000), **members("cat.png", "dog.png")})
    path.write_bytes(path.read_bytes()[:20_000])
    return Archive(whole=RefusalKind.DAMAGED)


@archive("00000.tar")
def _(path: Path) -> Archive:
    files = {
        "000000.png": image(0),
        "000000.txt": CAT.encode(),
        "000000.json": json.dumps({"caption": CAT, "url": "https://x.org/1"}).encode(),
        "000001.png": image(1),
        "000001.txt": DOG.encode(),
        "000001.cls": b"1",
    }
    make_tar(path, files)
    return Archive(images={"000000.png": CAT, "000001.png": DOG}, refused={"000001.cls": RefusalKind.UNSUPPORTED})


@archive("7-zip.7z")
def _(path: Path) -> Archive:
    make_7z(path, {**members("bilder/cat.png", "bilder/dog.png"), "bilder/Thumbs.db": b"x", "empty.txt": b""})
    return Archive(images=both("bilder/"), refused={"empty.txt": RefusalKind.WITHOUT_IMAGE})


@archive("one-bomb.7z")
def _(path: Path) -> Archive:
    make_7z(path, {"bomb.bmp": b"BM" + bytes(20_000_000)})
    for name, data in members("cat.png", "dog.png").items():
        with py7zr.SevenZipFile(path, "a") as appending:  # each in a block of its own
            appending.writestr(data, name)
    return Archive(images=both(), refused={"bomb.bmp": RefusalKind.RATIO})


@archive("solid-bomb.7z")
def _(path: Path) -> Archive:
    make_7z(path, {**members("cat.png", "dog.png"), "bomb.bmp": b"BM" + bytes(20_000_000)})
    return Archive(images=both(), refused={"bomb.bmp": RefusalKind.RATIO})


@archive("bzip2.7z")
def _(path: Path) -> Archive:
    make_7z(path, members("cat.png", texts=False), filters=[{"id": py7zr.FILTER_BZIP2}])
    return Archive(refused={"cat.png": RefusalKind.UNSUPPORTED})


@archive("encrypted.7z")
def _(path: Path) -> Archive:
    make_7z(path, members("cat.png"), password="x", header_encryption=True)
    return Archive(whole=RefusalKind.ENCRYPTED)


@archive("really-7z.zip")
def _(path: Path) -> Archive:
    make_7z(path, members("cat.png", "dog.png"))
    return Archive(images=both())


# -- exports of dataset programs --------------------------------------------------------------------------------------


@archive("label-studio-yolo.zip")
def _(path: Path) -> Archive:
    make_zip(
        path,
        {
            "images/1a2b3c4d-cat.png": image(0),
            "labels/1a2b3c4d-cat.txt": b"0 0.5 0.5 0.1 0.2\n",
            "classes.txt": b"cat\n",
            "notes.json": b'{"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2024}}',
        },
    )
    refused = {"classes.txt": RefusalKind.WITHOUT_IMAGE, "notes.json": RefusalKind.DAMAGED}
    return Archive(images={"images/1a2b3c4d-cat.png": ""}, refused=refused)


@archive("cvat.zip")
def _(path: Path) -> Archive:
    make_zip(
        path,
        {
            "annotations.xml": b"<?xml version='1.0'?><annotations><image name='cat.png'/></annotations>",
            "images/cat.png": image(0),
        },
    )
    return Archive(images={"images/cat.png": ""}, refused={"annotations.xml": RefusalKind.UNSUPPORTED})


@archive("roboflow.zip")
def _(path: Path) -> Archive:
    boxes = {
        "images": [{"id": 0, "file_name": "cat.png"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    make_zip(
        path,
        {
            "train/cat.png": image(0),
            "train/_annotations.coco.json": json.dumps(boxes).encode(),
            "README.roboflow.txt": b"Exported on 1 May\n\nThe dataset includes 1 image.\n",
        },
    )
    refused = {"train/_annotations.coco.json": RefusalKind.DAMAGED, "README.roboflow.txt": RefusalKind.WITHOUT_IMAGE}
    return Archive(images={"train/cat.png": ""}, refused=refused)


@archive("imagefolder.zip")
def _(path: Path) -> Archive:
    lines = "".join(json.dumps({"file_name": f"{name}.png", "text": text}) + "\n" for name, text in CAPTIONS.items())
    make_zip(
        path,
        {
            **members("train/cat.png", "train/dog.png", texts=False),
            "train/metadata.jsonl": lines.encode(),
            "README.md": b"---\nlicense: mit\n---\n",
        },
    )
    return Archive(images=both("train/"), refused={"README.md": RefusalKind.UNSUPPORTED})


@archive("kohya-cache.zip")
def _(path: Path) -> Archive:
    buffer = io.BytesIO()
    np.savez(buffer, latents=np.zeros((4, 8, 8)))
    files = members("img/10_momo cat/cat.png", "img/10_momo cat/dog.png")
    make_zip(
        path,
        {
            **files,
            "img/10_momo cat/cat.npz": buffer.getvalue(),
            "model/momo.safetensors": b"\x08" + bytes(20),
            "log/events.out.tfevents.1.x": b"x",
        },
    )
    return Archive(images=both("img/10_momo cat/"))


@archive("sizes-and-modes.zip")
def _(path: Path) -> Archive:
    files = {
        "gray.png": encoded(Image.open(io.BytesIO(image(0))).convert("L")),
        "palette.gif": encoded(Image.open(io.BytesIO(image(1))).convert("P"), "GIF"),
        "photo.jpg": encoded(Image.open(io.BytesIO(image(2))), "JPEG"),
        "photo.jpeg.webp": encoded(Image.open(io.BytesIO(image(3))), "WEBP"),
        "wrong-ending.jpg": image(4),
        "no_ending": image(5),
    }
    make_zip(path, {**files, "photo.txt": CAT.encode(), "photo.jpeg.txt": DOG.encode()})
    return Archive(images={**dict.fromkeys(files, ""), "photo.jpg": CAT, "photo.jpeg.webp": DOG})


@archive("one-zero-block.tar")
def _(path: Path) -> Archive:
    data = tar_bytes(members("cat.png", "dog.png")).rstrip(b"\0")
    path.write_bytes(data + bytes(-len(data) % 512) + bytes(512))
    return Archive(images=both())


@archive("alone.tar.lzma")
def _(path: Path) -> Archive:
    path.write_bytes(lzma.compress(tar_bytes(members("cat.png")), format=lzma.FORMAT_ALONE))
    return Archive(whole=RefusalKind.UNSUPPORTED)


@archive("image.png.gz")
def _(path: Path) -> Archive:
    path.write_bytes(gzip.compress(image(0)))
    return Archive(whole=RefusalKind.UNSUPPORTED)
