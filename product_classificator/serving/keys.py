"""API keys: named, stored as hashes in a JSON file, with a quota of products per minute.

A key is 256 random bits, so its plain SHA-256 cannot be reversed by guessing, and a slow hash would protect nothing.
"""

import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from product_classificator.errors import ArtifactError, DataError, nearest
from product_classificator.files import replacing

logger = logging.getLogger(__name__)
_PREFIX = "pc_"


class Key(BaseModel, extra="forbid", frozen=True):
    """A key as it is stored; `None`: no quota."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: str
    products_per_minute: int | None = Field(default=None, ge=1)


class KeyFile(BaseModel, extra="forbid"):
    """The file of keys."""

    format: Literal[1] = 1
    keys: list[Key] = []

    @classmethod
    def read(cls, path: Path) -> "KeyFile":
        """Read a file; a missing or damaged one is an `ArtifactError`."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            way_out = f"make one (product-classificator keys add NAME --file {path})"
            raise ArtifactError(f"{path} is not a file of API keys ({reason}): {way_out}") from error

    def write(self, path: Path) -> None:
        """Write the file, which only its owner may read, unless mode and group of an older one say otherwise."""
        with replacing(path) as temporary:
            temporary.touch(mode=0o600)
            with suppress(OSError):  # there is no older one, or its group is not ours to give
                old = path.stat()
                os.chown(temporary, -1, old.st_gid)
                temporary.chmod(old.st_mode & 0o777)
            temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def add_key(path: Path, name: str, products_per_minute: int | None = None) -> str:
    """Add a key to a file, which may be new, and return it; it cannot be read again. A taken name is a `DataError`."""
    file = KeyFile.read(path) if path.exists() else KeyFile()
    if not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise DataError(f"the name of a key has 1 to 64 letters, digits, '.', '@', '_' or '-', got {name!r}")
    if any(key.name == name for key in file.keys):
        raise DataError(f"every key has a name of its own, {name!r} is taken: remove that one, or take another name")
    if products_per_minute is not None and products_per_minute < 1:
        raise DataError(f"a quota is at least one product a minute, got {products_per_minute}: leave it out for none")
    secret, created = _PREFIX + secrets.token_urlsafe(32), datetime.now(UTC).isoformat(timespec="seconds")
    key = Key(name=name, sha256=_hash(secret), created=created, products_per_minute=products_per_minute)
    KeyFile(keys=[*file.keys, key]).write(path)
    return secret


def remove_key(path: Path, name: str) -> None:
    """Remove a key from a file; an unknown name is a `DataError`."""
    keys = KeyFile.read(path).keys
    if not any(key.name == name for key in keys):
        raise DataError(f"there is no key {name!r}: {nearest(name, [key.name for key in keys])}")
    KeyFile(keys=[key for key in keys if key.name != name]).write(path)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """Finds the keys of a file, and keeps the quotas of this process, a share of `1 / workers` each."""

    def __init__(self, path: Path, workers: int = 1) -> None:
        self._path, self._workers = path, workers
        self._keys = KeyFile.read(path).keys
        self._left: dict[str, tuple[float, float]] = {}  # key -> products that it may still have answered, when

    def reload(self) -> None:
        """Read the file again; from a damaged one nothing is taken, and what is left of quotas stays."""
        try:
            self._keys = KeyFile.read(self._path).keys
        except ArtifactError as error:
            logger.error("the keys cannot be read, the old ones stay: %s", error)

    @property
    def names(self) -> set[str]:
        """The names of all keys."""
        return {key.name for key in self._keys}

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret; takes as long for a wrong one as for a right one."""
        digest = _hash(secret)
        matches = [key for key in self._keys if hmac.compare_digest(digest, key.sha256)]
        return matches[-1] if matches else None

    def take(self, key: Key, n: int) -> int:
        """Take n products from the quota and return 0, or the seconds after which it allows any.

        A large request may take it below zero, then the next one waits.
        """
        if key.products_per_minute is None:
            return 0
        quota, now = key.products_per_minute / self._workers, time.monotonic()
        left, before = self._left.get(key.name, (quota, now))
        left = min(quota, left + (now - before) * quota / 60)
        lacking = min(1, quota) - left
        self._left[key.name] = left if lacking > 0 else left - n, now
        return math.ceil(lacking * 60 / quota) if lacking > 0 else 0
