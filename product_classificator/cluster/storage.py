"""The folder of a plan: small files, written whole or not at all, on a disk or an object store."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from filelock import FileLock, Timeout
from pyarrow import fs

from product_classificator.errors import DataError
from product_classificator.remote.paths import UrlPath, as_path, open_file_system, write_bytes

DRIVER = "_driver.json"
LEASE_SECONDS = 60.0
"""A driver that has not written `_driver.json` for so long is dead."""
_BEAT_SECONDS = 5.0
Beat: TypeAlias = Callable[..., None]
"""Says in `_driver.json` that this driver is alive, and what else `status` shows, at most every few seconds."""


class Storage:
    """Files of a folder by their names; the folder may be a URL."""

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path)
        self.is_local = not isinstance(self.path, UrlPath)

    def __repr__(self) -> str:
        return str(self.path)

    def _find(self, name: str) -> tuple[Any, str]:
        system, root = open_file_system(self.path)
        return system, f"{root}/{name}".rstrip("/")

    def open(self, name: str) -> Any:
        """Open a file to be read in any order; `FileNotFoundError` if there is none."""
        system, location = self._find(name)
        return system.open_input_file(location)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all: renamed on a disk, one PUT elsewhere."""
        if self.is_local:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path / name, data)

    def list(self, folder: str = "") -> dict[str, fs.FileInfo]:
        """Return the files and folders of a folder by name, without those that are being written."""
        system, location = self._find(folder)
        infos = system.get_file_info(fs.FileSelector(location, allow_not_found=True))
        return {info.base_name: info for info in infos if info.base_name[:1] != "."}

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        system, location = self._find(name)
        with suppress(FileNotFoundError):
            system.delete_file(location)

    def clear(self) -> None:
        """Delete everything; the plan first, so that what a kill leaves is not resumed."""
        self.delete("_plan.json")
        system, location = self._find("")
        system.delete_dir(location)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file; nothing if there is none."""
        with suppress(FileNotFoundError):
            content: dict[str, Any] = json.loads(self.open(name).read())
            return content
        return {}

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        self.write(name, json.dumps(content, indent=1, ensure_ascii=False).encode())


@contextmanager
def single_driver(storage: Storage) -> Iterator[Beat]:
    """Hold a folder for this driver: by a lock beside it on a disk, else by a lease; yield what renews that.

    Raises `DataError` if another driver holds it. Parts never depend on it: two drivers would do the work twice.
    """
    me, path, last_s = uuid4().hex, storage.path, 0.0
    name = path.stem if path.suffix == ".parts" else path.name
    refused = DataError(f"another process is writing {name}: wait for it, or name another output")
    lock = FileLock(path.with_name(path.name + ".lock") if storage.is_local else os.devnull, timeout=0)

    def beat(**facts: Any) -> None:
        nonlocal last_s
        if time.monotonic() - last_s < _BEAT_SECONDS:
            return
        holder = {} if storage.is_local else storage.read_json(DRIVER)
        if holder.get("id", me) != me and time.time() - holder["time"] < LEASE_SECONDS:
            raise refused
        last_s = time.monotonic()
        who = {"id": me, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        storage.write_json(DRIVER, {**who, **facts})

    if storage.is_local:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise refused from error
    else:
        beat()
    try:
        yield beat
    finally:
        if last_s and storage.read_json(DRIVER).get("id") == me:
            storage.delete(DRIVER)
        if storage.is_local:
            with suppress(OSError):  # some systems do not remove what is open
                Path(lock.lock_file).unlink()
            lock.release()
