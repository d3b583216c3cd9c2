"""The folder of a plan: small files, written whole or not at all, on a disk or an object store."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

from filelock import FileLock, Timeout
from pyarrow import fs

from product_classificator.errors import DataError
from product_classificator.remote.paths import UrlPath, as_path, open_file_system, open_input, write_bytes

DRIVER, CLOCK = "_driver.json", "_clock.json"
LEASE_SECONDS = 60.0
"""A driver that has not written `_driver.json` for so long is dead."""
_BEAT_SECONDS = 5.0
Beat: TypeAlias = Callable[..., None]
"""Notes what else `status` shows; raises `DataError` if another driver holds the folder by now."""
T = TypeVar("T")


class Storage:
    """Files of a folder by their names; the folder may be a URL."""

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path).absolute()  # workers elsewhere may be in another folder
        self.is_local = not isinstance(self.path, UrlPath)

    def __repr__(self) -> str:
        return str(self.path)

    def _find(self, name: str) -> tuple[Any, str]:
        system, root = open_file_system(self.path)
        return system, f"{root}/{name}".rstrip("/")

    def open(self, name: str) -> Any:
        """Open a file to be read in any order; `FileNotFoundError` if there is none."""
        return open_input(self.path / name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all: renamed on a disk, one PUT elsewhere."""
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

    def patiently(self, call: Callable[[], T]) -> T:
        """Return what a call returns; at a URL it is tried again for as long as a lease is valid."""
        end_s = time.monotonic() + LEASE_SECONDS * (not self.is_local)
        while True:
            try:
                return call()
            except Exception as error:  # each kind of store has its own
                if isinstance(error, FileNotFoundError) or time.monotonic() >= end_s:
                    raise
            time.sleep(min(2.0, LEASE_SECONDS / 10))

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
    """Hold a folder for this driver: by a lock beside it on a disk, else by a lease that a thread renews.

    Raises `DataError` if another driver holds it. Parts never depend on it: two drivers would do the work twice.
    """
    path = storage.path
    name = path.stem if path.suffix == ".parts" else path.name
    lease = _Lease(storage, DataError(f"another process is writing {name}: wait for it, or name another output"))
    lock = FileLock(path.with_name(path.name + ".lock") if storage.is_local else os.devnull, timeout=0)
    if storage.is_local:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise lease.refused from error
    else:
        lease.renew()
        lease.keeper.start()
    try:
        yield lease.beat
    finally:
        lease.end()
        if storage.is_local:
            with suppress(OSError):  # some systems do not remove what is open
                Path(lock.lock_file).unlink()
            lock.release()


class _Lease:
    """The file that says who drives; at a URL `keeper` renews it, on a disk it only shows."""

    def __init__(self, storage: Storage, refused: DataError) -> None:
        self._storage, self.refused, self._lost = storage, refused, list[Exception]()
        self._facts: dict[str, Any] = {"id": uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._ended, self._last_s, self.keeper = Event(), 0.0, Thread(target=self._keep, daemon=True)

    def renew(self) -> None:
        if not self._storage.is_local:
            holder = self._storage.read_json(DRIVER)
            if holder.get("id", self._facts["id"]) != self._facts["id"] and _is_fresh(self._storage, holder):
                raise self.refused
        self._storage.write_json(DRIVER, {**self._facts, "time": time.time()})
        self._last_s = time.monotonic()

    def _keep(self) -> None:
        while not self._lost and not self._ended.wait(_BEAT_SECONDS):
            try:
                self.renew()
            except Exception as error:  # a store fails now and then
                if error is self.refused or time.monotonic() - self._last_s > LEASE_SECONDS:
                    self._lost.append(error)

    def beat(self, **facts: Any) -> None:
        self._facts |= facts
        if self._lost:
            raise self._lost[0]
        if self._storage.is_local and time.monotonic() - self._last_s > _BEAT_SECONDS:
            with suppress(OSError):
                self.renew()

    def end(self) -> None:
        self._ended.set()
        if self.keeper.is_alive():
            self.keeper.join()
        with suppress(Exception):  # what a failing store keeps, ends by itself
            if self._last_s and self._storage.read_json(DRIVER).get("id") == self._facts["id"]:
                self._storage.delete(DRIVER)


def _is_fresh(storage: Storage, holder: dict[str, Any]) -> bool:
    """Return whether the holder wrote within the lease, by the clock of the store where it has one."""
    storage.write(CLOCK, b"{}")
    files = storage.list()
    storage.delete(CLOCK)
    written, now = (files[name].mtime if name in files else None for name in (DRIVER, CLOCK))
    age_s = (now - written).total_seconds() if written and now else time.time() - holder["time"]
    return bool(age_s < LEASE_SECONDS)
