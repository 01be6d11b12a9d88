"""Zips as systems, clouds and packers make them, also damaged and hostile in part."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path

from tests.trainer.dataset.archive_cases import CAT, DOG, Archive, Build, both, image, members, register_in
from tests.trainer.dataset.image_files import (
    RawEntry,
    make_link,
    make_zip,
    overlapping_zip,
    patch_directory,
    raw_zip,
)
from tests.trainer.dataset.tar_files import packed
from trainer.protocol.report import RefusalKind

ZIPS: dict[str, Build] = {}
archive = register_in(ZIPS)


# -- zips of systems and clouds ---------------------------------------------------------------------------------------


@archive("windows.zip")
def _(path: Path) -> Archive:
    make_zip(
        path, {"set/": b"", **members("set/cat.png", "set/dog.png"), "set/Thumbs.db": b"x", "set/desktop.ini": b"x"}
    )
    return Archive(images=both("set/"))


@archive("dotnet-backslashes.zip")
def _(path: Path) -> Archive:
    files = members("set\\cat.png", "set\\dog.png")
    raw_zip(path, [RawEntry(name.encode(), data) for name, data in {"set\\": b"", **files}.items()])
    return Archive(images=both("set/"))


@archive("mac-finder.zip")
def _(path: Path) -> Archive:
    name = unicodedata.normalize("NFD", "été/cat.png")
    files = members(name, "été/dog.png")
    clutter = {"__MACOSX/été/._cat.png": b"\0\5\x16\7", "été/.DS_Store": b"x", "été/Icon\r": b""}
    raw_zip(path, [RawEntry(name.encode(), data) for name, data in {**files, **clutter}.items()])
    return Archive(images={name: CAT, "été/dog.png": DOG})


@archive("streamed.zip")
def _(path: Path) -> Archive:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    # Sizes and checksums follow the data, for the output cannot be rewound.
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as writing:
        for name, data in members("cat.png", "dog.png").items():
            writing.writestr(name, data)
    path.write_bytes(pipe.getvalue())
    return Archive(images=both())


def names_in(encoding: str, folder: str) -> Build:
    def build(path: Path) -> Archive:
        entries = {
            name.encode(encoding): data for name, data in members(f"{folder}/cat.png", f"{folder}/dog.png").items()
        }
        raw_zip(path, [RawEntry(name, data) for name, data in entries.items()])
        return Archive(images=both(f"{folder}/"))

    return build


for _encoding, _folder in {
    "cp932": "猫の写真",
    "gbk": "我的小猫照片",
    "big5": "貓咪的照片",
    "cp949": "고양이 사진",
    "cp866": "мои котики",
    "cp1251": "котики на даче",
    "cp850": "schöne Bilder für später",
    "cp437": "déjà vu à l'été",
    "cp852": "zdjęcia kotów żółtych",
    "cp737": "οι γάτες μου",
    "cp857": "kırmızı kediler, güneş",
    "cp862": "תמונות של חתולים",
}.items():
    archive(f"names-{_encoding}.zip")(names_in(_encoding, _folder))


@archive("names-mixed.zip")
def _(path: Path) -> Archive:
    entries = [
        RawEntry("фото/cat.png".encode(), image(0), flags=0x800),
        RawEntry("фото/cat.txt".encode("cp866"), CAT.encode()),
    ]
    raw_zip(path, entries)
    return Archive(images={"фото/cat.png": CAT})


@archive("invalid-utf8-flag.zip")
def _(path: Path) -> Archive:
    wrong = RawEntry("фото.png".encode("cp866"), image(1), flags=0x800)
    raw_zip(path, [RawEntry(b"cat.png", image(0), flags=0x800), RawEntry(b"cat.txt", CAT.encode(), flags=0x800), wrong])
    return Archive(images={"cat.png": CAT, "фото.png": ""})


@archive("winrar-unicode.zip")
def _(path: Path) -> Archive:
    def entry(name: str, data: bytes) -> RawEntry:
        legacy = name.encode("ascii", "replace")
        body = struct.pack("<BL", 1, zlib.crc32(legacy)) + name.encode()
        return RawEntry(legacy, data, extra=struct.pack("<HH", 0x7075, len(body)) + body)

    raw_zip(path, [entry(name, data) for name, data in members("猫/cat.png", "猫/dog.png").items()])
    return Archive(images=both("猫/"))


@archive("dropbox.zip")
def _(path: Path) -> Archive:
    make_zip(path, {"/": b"", "set/": b"", **members("set/cat.png", "set/dog.png")})
    return Archive(images=both("set/"))


@archive("onedrive-zip64.zip")
def _(path: Path) -> Archive:
    entries = [RawEntry(name.encode(), data) for name, data in members("cat.png", "dog.png").items()]
    raw_zip(path, entries, is_zip64=True)
    data = path.read_bytes()
    # OneDrive writes 0 as the number of disks.
    path.write_bytes(data[: -22 - 4] + struct.pack("<L", 0) + data[-22:])
    return Archive(images=both())


@archive("google-takeout.zip")
def _(path: Path) -> Archive:
    album = "Takeout/Google Photos/Cats"
    note = {"title": "cat.png", "description": CAT, "photoTakenTime": {"timestamp": "1"}}
    empty = {"title": "dog.png", "description": "", "photoTakenTime": {"timestamp": "1"}}
    files = members(f"{album}/cat.png", f"{album}/dog.png", texts=False)
    files[f"{album}/cat.png.supplemental-metadata.json"] = json.dumps(note).encode()
    files[f"{album}/dog.png.supplemental-me.json"] = json.dumps(empty).encode()
    files[f"{album}/metadata.json"] = json.dumps({"title": "Cats", "description": "", "access": "protected"}).encode()
    make_zip(path, files)
    return Archive(
        images={f"{album}/cat.png": CAT, f"{album}/dog.png": ""},
        refused={f"{album}/metadata.json": RefusalKind.WITHOUT_IMAGE},
    )


@archive("icloud.zip")
def _(path: Path) -> Archive:
    movie = b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(40)
    make_zip(path, {**members("cat.png"), "cat.MOV": movie, "cat.AAE": b"<plist/>"})
    return Archive(images={"cat.png": CAT}, refused={"cat.MOV": RefusalKind.UNSUPPORTED})


@archive("synology.zip")
def _(path: Path) -> Archive:
    clutter = {
        "@eaDir/cat.png/SYNOPHOTO_THUMB_M.jpg": image(5),
        "#recycle/dog.png": image(6),
        "@eaDir/cat.png@SynoEAStream": b"x",
    }
    make_zip(path, {**members("cat.png", "dog.png"), **clutter})
    return Archive(images=both())


@archive("windows-linux.zip")
def _(path: Path) -> Archive:
    clutter = {
        "cat.png:Zone.Identifier": b"[ZoneTransfer]\r\nZoneId=3\r\n",
        "cat.pngZone.Identifier": b"[ZoneTransfer]",
    }
    make_zip(path, {**members("cat.png", "dog.png"), **clutter})
    return Archive(images=both())


@archive("self-extracting.exe")
def _(path: Path) -> Archive:
    make_zip(path, members("cat.png", "dog.png"))
    path.write_bytes(b"MZ" + bytes(5000) + path.read_bytes())
    return Archive(images=both())


@archive("comment.zip")
def _(path: Path) -> Archive:
    make_zip(path, members("cat.png", "dog.png"))
    with zipfile.ZipFile(path, "a") as writing:
        writing.comment = b"Packed by me on 1 May"
    return Archive(images=both())


@archive("bytes-behind.zip")
def _(path: Path) -> Archive:
    make_zip(path, members("cat.png", "dog.png"))
    path.write_bytes(path.read_bytes() + b"\r\n\0\0")
    return Archive(images=both())


# -- zips that are damaged or hostile in part -------------------------------------------------------------------------


@archive("one-bomb.zip")
def _(path: Path) -> Archive:
    make_zip(path, {"bomb.bmp": b"BM" + bytes(20_000_000), **members("cat.png", "dog.png")})
    return Archive(images=both(), refused={"bomb.bmp": RefusalKind.RATIO})


@archive("one-bad-checksum.zip")
def _(path: Path) -> Archive:
    entries = [RawEntry(name.encode(), data) for name, data in members("cat.png", "dog.png").items()]
    raw_zip(path, [RawEntry(b"bad.png", image(7), crc=1), *entries])
    return Archive(images=both(), refused={"bad.png": RefusalKind.DAMAGED})


@archive("one-cut-stream.zip")
def _(path: Path) -> Archive:
    cut = RawEntry(b"bad.png", image(7), method=8, packed=zlib.compress(image(7), wbits=-15)[:-200])
    raw_zip(path, [cut, *(RawEntry(name.encode(), data) for name, data in members("cat.png", "dog.png").items())])
    return Archive(images=both(), refused={"bad.png": RefusalKind.DAMAGED})


@archive("one-encrypted.zip")
def _(path: Path) -> Archive:
    make_zip(path, {"secret.png": image(7), **members("cat.png", "dog.png")})
    patch_directory(path, 8, struct.pack("<H", 1))
    return Archive(images=both(), refused={"secret.png": RefusalKind.ENCRYPTED})


@archive("methods.zip")
def _(path: Path) -> Archive:
    methods: dict[str, tuple[int, bytes]] = {
        "bzip2/cat.png": (12, bz2.compress(image(0))),
        "zstandard/cat.png": (93, packed(image(1), "zst")),
        "xz/cat.png": (95, lzma.compress(image(2))),
        "stored/cat.png": (0, image(3)),
        "ppmd/cat.png": (98, b"\0" * 30),
        "jpeg/cat.png": (96, b"\0" * 30),
    }
    raw_zip(
        path,
        [
            RawEntry(name.encode(), image(n), method=method, packed=data)
            for n, (name, (method, data)) in enumerate(methods.items())
        ],
    )
    unread = dict.fromkeys(("ppmd/cat.png", "jpeg/cat.png"), RefusalKind.UNSUPPORTED)
    return Archive(images=dict.fromkeys([*methods][:4], ""), refused=unread)


@archive("hostile-names.zip")
def _(path: Path) -> Archive:
    names = {
        "../cat.png": image(3),
        "/etc/cat.png": image(4),
        "C:\\cat.png": image(5),
        f"{'x' * 1100}.png": image(6),
        "a\nb.png": image(7),
    }
    make_zip(path, {**members("cat.png", "dog.png"), "CON.png": image(8), **names})
    make_link(path, "link.png", "cat.png")
    unsafe = dict.fromkeys(
        ("../cat.png", "/etc/cat.png", "C:\\cat.png", f"{'x' * 1100}.png", "a\\nb.png"), RefusalKind.UNSAFE_PATH
    )
    return Archive(images={**both(), "CON.png": ""}, refused={**unsafe, "link.png": RefusalKind.LINK})


@archive("twins.zip")
def _(path: Path) -> Archive:
    files = {"Cat.png": image(0), "cat.png": image(1), "Cat.txt": CAT.encode(), "cat.txt": DOG.encode()}
    raw_zip(path, [RawEntry(name.encode(), data) for name, data in [*files.items(), ("cat.png", image(2))]])
    return Archive(images={"Cat.png": CAT, "cat.png": DOG}, refused={"cat.png": RefusalKind.COLLISION})


@archive("cut-download.zip")
def _(path: Path) -> Archive:
    make_zip(path, members("cat.png", "dog.png"))
    path.write_bytes(path.read_bytes()[:-60])
    return Archive(whole=RefusalKind.DAMAGED)


@archive("overlapping.zip")
def _(path: Path) -> Archive:
    overlapping_zip(path, image(0), 20)
    return Archive(whole=RefusalKind.OVERLAP)


@archive("encrypted.zip")
def _(path: Path) -> Archive:
    make_zip(path, {"cat.png": image(0), "dog.png": image(1)})
    for entry in range(2):
        patch_directory(path, 8, struct.pack("<H", 1), entry)
    return Archive(whole=RefusalKind.ENCRYPTED)


@archive("error-page.zip")
def _(path: Path) -> Archive:
    path.write_bytes(b"<!DOCTYPE html><html><title>Quota exceeded</title></html>")
    return Archive(whole=RefusalKind.UNSUPPORTED)


@archive("really-rar.zip")
def _(path: Path) -> Archive:
    path.write_bytes(b"Rar!\x1a\7\1\0" + bytes(100))
    return Archive(whole=RefusalKind.UNSUPPORTED)


@archive("set.zip.001")
def _(path: Path) -> Archive:
    make_zip(path, members("cat.png", "dog.png"))
    return Archive(whole=RefusalKind.UNSUPPORTED)


@archive("nested.zip")
def _(path: Path) -> Archive:
    inner = make_zip(path.with_name("inner"), members("dog.png")).read_bytes()
    path.with_name("inner").unlink()
    make_zip(path, {**members("cat.png"), "more.zip": inner})
    return Archive(images={"cat.png": CAT}, refused={"more.zip": RefusalKind.NESTED_ARCHIVE})


@archive("documents.zip")
def _(path: Path) -> Archive:
    inner = make_zip(
        path.with_name("inner"), {"[Content_Types].xml": b"<x/>", "media/image1.png": image(8)}
    ).read_bytes()
    painted = make_zip(
        path.with_name("inner"), {"mimetype": b"application/x-krita", "mergedimage.png": image(9)}
    ).read_bytes()
    path.with_name("inner").unlink()
    make_zip(
        path,
        {**members("cat.png"), "captions.xlsx": inner, "notes.docx": inner, "paint.kra": painted, "paint.ora": painted},
    )
    documents = dict.fromkeys(("captions.xlsx", "notes.docx"), RefusalKind.UNSUPPORTED)
    return Archive(images={"cat.png": CAT}, refused=documents, dropped=frozenset({"paint.kra", "paint.ora"}))


@archive("pointers.zip")
def _(path: Path) -> Archive:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n"
    make_zip(
        path, {**members("cat.png"), "lost.png": pointer, "page.jpg": b"<!DOCTYPE html><html></html>", "empty.png": b""}
    )
    return Archive(images={"cat.png": CAT}, dropped=frozenset({"lost.png", "page.jpg", "empty.png"}))


@archive("comic.cbz")
def _(path: Path) -> Archive:
    make_zip(path, members("cat.png", "dog.png"))
    return Archive(images=both())


@archive("newline-before.zip")
def _(path: Path) -> Archive:
    make_zip(path, members("cat.png", "dog.png"))
    path.write_bytes(b"\r\n" + path.read_bytes())
    return Archive(images=both())


@archive("winzip-aes.zip")
def _(path: Path) -> Archive:
    entries = [RawEntry(name.encode(), data) for name, data in members("cat.png", "dog.png").items()]
    raw_zip(path, [RawEntry(b"secret.png", image(7), method=99, flags=1), *entries])
    return Archive(images=both(), refused={"secret.png": RefusalKind.ENCRYPTED})
