"""An object store, by fsspec: `s3://bucket/darkroom`, `file:///mnt/store`, …; an object is whole or not there."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Any


class Objects:
    """The objects below one address. Blocking; errors are OSErrors, as fsspec's file systems raise them."""

    def __init__(self, url: str) -> None:
        # An extra of its own (darkroom[ray]): the door itself needs nothing but pydantic.
        import fsspec

        #: Caches of listings would hide what others write.
        self._fs: Any = None
        self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        self.url = url
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self._is_local = "file" in protocols

    def __repr__(self) -> str:
        return f"<Objects {self.url}>"

    def read(self, name: str) -> bytes | None:
        """The content of an object, None if there is none."""
        try:
            content: bytes = self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Make or replace an object."""
        with _Whole(self, name) as path:
            self._fs.pipe_file(path, content)

    def upload(self, local: Path, name: str) -> None:
        """Make or replace an object from a file."""
        with _Whole(self, name) as path:
            self._fs.put_file(str(local), path)

    def download(self, name: str, local: Path) -> None:
        """Write an object into a file, by rename.

        Raises:
            FileNotFoundError: there is no such object.
        """
        local.parent.mkdir(parents=True, exist_ok=True)
        part = local.with_name(f"{local.name}.{os.getpid()}.part")
        try:
            self._fs.get_file(self._path(name), str(part))
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)

    def pack(self, folder: Path, name: str, *, leave_out: Collection[str] = ()) -> None:
        """Make one object of the files of a folder, but those (and folders of those names) that are left out."""

        def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
            return None if leave_out and member.name.rpartition("/")[2] in leave_out else member

        with (
            _Whole(self, name) as path,
            self._fs.open(path, "wb") as file,
            tarfile.open(fileobj=file, mode="w|") as archive,
        ):
            archive.add(folder, arcname=".", filter=kept)

    def unpack(self, name: str, folder: Path) -> None:
        """Write the files of a packed folder, the folder by rename.

        Raises:
            FileNotFoundError: there is no such object.
        """
        part = folder.with_name(folder.name + ".part")
        part.mkdir(parents=True)
        with (
            self._fs.open(self._path(name), "rb") as file,
            tarfile.open(fileobj=file, mode="r|") as archive,
        ):
            archive.extractall(part, filter="data")
        part.replace(folder)

    def exists(self, name: str) -> bool:
        return bool(self._fs.exists(self._path(name)))

    def names(self, folder: str) -> list[str]:
        """All objects below a folder, from the root on, in order."""
        start = len(self._root.rstrip("/")) + 1
        try:
            found: list[str] = self._fs.find(self._path(folder))
        except FileNotFoundError:
            return []
        return sorted(path[start:] for path in found if not path.endswith(".part"))

    def numbers(self, folder: str) -> list[int]:
        """The folders right below a folder whose names are numbers, in order; without a look at what is in them."""
        try:
            found: list[str] = self._fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in found]
        return sorted(int(name) for name in names if name.isdecimal())

    def delete_folder(self, folder: str) -> None:
        """Take all objects below a folder away; one that is gone is no error."""
        try:
            self._fs.rm(self._path(folder), recursive=True)
        except FileNotFoundError:
            return

    def delete(self, name: str) -> None:
        """Take an object away; one that is gone is no error."""
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


class _Whole:
    """The path to write an object to. An object store shows it when it is whole; a folder, by rename at the end."""

    def __init__(self, objects: Objects, name: str) -> None:
        self._objects = objects
        self._final = objects._path(name)
        self._part = f"{self._final}.{os.getpid()}.part" if objects._is_local else self._final

    def __enter__(self) -> str:
        if self._objects._is_local:
            Path(self._final).parent.mkdir(parents=True, exist_ok=True)
        return self._part

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if not self._objects._is_local:
            return
        if kind is None:
            Path(self._part).replace(self._final)
        else:
            Path(self._part).unlink(missing_ok=True)
