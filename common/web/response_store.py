"""Stores OpenAI Responses, so a later request can continue from one by its id.

Each response is one file in a private directory. The router creates it and all its workers share it, so a response
survives its worker's sleep and eviction, and another model can continue from it; a worker without a router creates its
own. All calls block: use a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from ..base.private_directory import PrivateDirectory

MAX_BYTES = 64 << 20
"""Maximum size of all responses. The least recently used is deleted first; the newest is always kept."""
MAX_RESPONSES = 1000
MAX_RECORD = 16 << 20
"""Maximum bytes of one response with its input, and of the previous ones: it is parsed as a whole to continue it."""
DIRECTORY_ENV = "LLAMA_CORRAL_RESPONSES"
"""Passes the directory's path to the router's workers."""
Record = TypeVar("Record")
_PREFIX = "corral-responses-"
_ID = re.compile(r"resp_[0-9A-Za-z]{32}")


class StoredText(Struct):
    """The JSON text of a response and of its input items, for answers that show them as they are."""

    response: msgspec.Raw
    input: msgspec.Raw


class ResponseStore:
    def __init__(
        self,
        directory: str = "",
        *,
        max_bytes: int = MAX_BYTES,
        max_responses: int = MAX_RESPONSES,
        max_record: int = MAX_RECORD,
    ) -> None:
        """Use `directory`, which is never deleted. If it is "", `open` creates one and `close` deletes it."""
        self._directory = PrivateDirectory(_PREFIX, directory)
        self._max_bytes = max_bytes
        self._max_responses = max_responses
        self._max_record = max_record

    def open(self) -> str:
        """Return the directory's path; create the directory if there is none yet."""
        return self._directory.open()

    def close(self) -> None:
        self._directory.close()

    def put(self, id: str, record: dict[str, Any]) -> None:
        """Store a response and delete old ones beyond the limits. Raise OSError, also if it is too large."""
        path = self._path(id)
        assert path is not None, id
        text = msgspec.json.encode(record)
        if len(text) > self._max_record:
            raise OSError(errno.EFBIG, f"it has {len(text)} bytes, and at most {self._max_record} are stored")
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(text)
        unfinished.replace(path)
        self._prune(path)

    def get(self, id: str) -> dict[str, Any] | None:
        """Return a stored response and mark it as used; None if there is none."""
        return self._read(id, dict[str, Any])

    def get_text(self, id: str) -> StoredText | None:
        """Return the text of a stored response, and mark it as used; None if there is none."""
        return self._read(id, StoredText)

    def _read(self, id: str, kind: type[Record]) -> Record | None:
        path = self._path(id)
        if path is None:
            return None
        try:
            record = msgspec.json.decode(path.read_bytes(), type=kind)
            os.utime(path)
        except (OSError, msgspec.DecodeError):
            return None
        return record

    def delete(self, id: str) -> bool:
        """Delete a response; return False if there is none."""
        path = self._path(id)
        if path is None:
            return False
        try:
            path.unlink()
        except OSError:
            return False
        return True

    def _path(self, id: str) -> Path | None:
        return Path(self.open(), f"{id}.json") if _ID.fullmatch(id) else None

    def _prune(self, newest: Path) -> None:
        kept: list[tuple[float, int, str]] = []
        with os.scandir(self.open()) as entries:
            for entry in entries:
                if entry.name.endswith(".json") and entry.path != str(newest):
                    with contextlib.suppress(FileNotFoundError):  # another worker was faster
                        facts = entry.stat()
                        kept.append((facts.st_mtime, facts.st_size, entry.path))
        n_bytes, n_responses = newest.stat().st_size + sum(size for _, size, _ in kept), len(kept) + 1
        for _, size, path in sorted(kept):
            if n_bytes <= self._max_bytes and n_responses <= self._max_responses:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            n_bytes, n_responses = n_bytes - size, n_responses - 1
