"""Downloads one file over HTTP. An interrupted download is resumed, also after a crash or a kill.

Called by `resolve` for files of a repository and for `--model-url`. This module does not know repositories or caches:
it gets a URL and a path. The unfinished file is in the target's folder; a lock file prevents two processes from
downloading the same file. All calls block: callers that have an event loop must use a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec import Struct, field

from ..base.errors import ModelFilesError
from ..base.user_files import read_limited

if TYPE_CHECKING:
    import httpx

UNFINISHED = ".downloadInProgress"
"""llama-server's suffix."""
ATTEMPTS = 3
"""The transfer fails after this number of consecutive failures without a received byte."""
RETRY_DELAY = 1.0
"""Seconds. The first retry is immediate, the second waits twice this time."""
CONNECT_TIMEOUT = 15.0
READ_TIMEOUT = 60.0
"""Seconds without a byte after which a read times out."""
REPORT_EVERY = 0.1
"""Seconds between two progress reports of one file."""
SEGMENT = 32 << 30
"""Maximum bytes per request; content delivery networks refuse responses larger than 50 GB."""
CHUNK = 1 << 20

logger = logging.getLogger("corral.presets")


class DownloadProgress(Struct, frozen=True):
    """Progress of one file in bytes; `total` is 0 while unknown. Reported from the downloading thread."""

    url: str
    downloaded: int
    total: int


class Transfer(Struct, frozen=True):
    """One file to download. `size` and `sha256` are checked if they are known in advance."""

    url: str
    target: Path
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    sha256: str | None = None
    lock: Path | None = None
    """Path of the lock file, for caches shared with other programs; default: in the target's folder."""
    retry_delay: float = RETRY_DELAY
    """Seconds, see RETRY_DELAY."""

    @property
    def unfinished(self) -> Path:
        return self.target.with_name(self.target.name + UNFINISHED)

    def length(self) -> int:
        """Return the bytes downloaded so far. The file may disappear at any time if another process finishes it."""
        try:
            return self.unfinished.stat().st_size
        except FileNotFoundError:
            return 0


class _Retry(Exception):
    """An attempt failed; the next one may succeed."""


def new_client() -> httpx.Client:
    """Create a client that follows redirects; httpx does not send credentials to another host then."""
    import httpx  # imported here: a process whose files are in the cache does not pay for the import

    return httpx.Client(
        follow_redirects=True,
        timeout=httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT),
        headers={"User-Agent": "llama-corral", "Accept-Encoding": "identity"},
    )


def fetch(
    client: httpx.Client, transfer: Transfer, on_progress: Callable[[DownloadProgress], None], stop: threading.Event
) -> None:
    """Download the file; return when the target is complete. Raise ModelFilesError."""
    try:
        transfer.target.parent.mkdir(parents=True, exist_ok=True)
        with _lock_file(transfer.lock or transfer.target.with_name(transfer.target.name + ".lock")):
            if not transfer.target.exists():  # otherwise another process was faster
                _FileDownload(client, transfer, on_progress, stop).run()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelFilesError(
                f"no space left in {transfer.target.parent} for {redacted_url(transfer.url)}"
            ) from None
        raise ModelFilesError(f"cannot write {transfer.target}: {error.strerror or error}") from None


def redacted_url(url: str) -> str:
    """Return the URL without parts that may be secret: credentials, query (signatures) and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[None]:
    """Lock the file. The operating system releases the lock if the process dies."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


class _FileDownload:
    """One download of one file. The total size and the ETag are taken from the responses."""

    def __init__(
        self,
        client: httpx.Client,
        transfer: Transfer,
        on_progress: Callable[[DownloadProgress], None],
        stop: threading.Event,
    ) -> None:
        self.client = client
        self.transfer = transfer
        self.on_progress = on_progress
        self.stop = stop
        self.total = transfer.size
        self.validator_file = transfer.unfinished.with_name(transfer.unfinished.name + ".etag")

    def run(self) -> None:
        inherited = self.transfer.length() > 0
        self._fetch()
        while not self._is_intact():
            self._restart()
            if not inherited:
                raise ModelFilesError(
                    f"{redacted_url(self.transfer.url)}: the downloaded file is damaged (checksum differs); try again"
                )
            inherited = False  # the part from an earlier run may have been damaged: try once more without it
            self._fetch()
        os.replace(self.transfer.unfinished, self.transfer.target)
        self.validator_file.unlink(missing_ok=True)

    def _fetch(self) -> None:
        failures, furthest = 0, 0
        while not self._complete():
            try:
                self._request(self.transfer.length())
                if self.transfer.length() <= furthest and not self._complete():
                    raise _Retry("the server sent nothing")
            except _Retry as reason:
                failures = failures + 1 if self.transfer.length() <= furthest else 1
                if failures >= ATTEMPTS:
                    raise ModelFilesError(f"cannot download {redacted_url(self.transfer.url)}: {reason}") from None
                logger.warning("download of %s interrupted (%s), retrying", redacted_url(self.transfer.url), reason)
                self.stop.wait(self.transfer.retry_delay * (2**failures - 2))
            furthest = max(furthest, self.transfer.length())

    def _complete(self) -> bool:
        if self.stop.is_set():
            raise ModelFilesError(f"download of {redacted_url(self.transfer.url)} stopped")
        length = self.transfer.length()
        if self.total is not None and length > self.total:
            self._restart()
            return False
        return self.total is not None and length == self.total and self.transfer.unfinished.exists()

    def _restart(self) -> None:
        self.transfer.unfinished.unlink(missing_ok=True)
        self.validator_file.unlink(missing_ok=True)

    def _request(self, offset: int) -> None:
        import httpx

        headers = dict(self.transfer.headers)
        validator = read_limited(self.validator_file).decode(errors="replace") if self.validator_file.exists() else ""
        if offset and not (self.transfer.size or validator):
            self._restart()  # the server's file may have changed since these bytes were downloaded
            offset = 0
        if offset and validator:
            headers["If-Range"] = validator
        if offset or (self.total or 0) > SEGMENT:
            headers["Range"] = f"bytes={offset}-{offset + SEGMENT - 1}"
        try:
            with self.client.stream("GET", self.transfer.url, headers=headers) as response:
                self._receive(response, offset)
        except httpx.InvalidURL as error:
            raise ModelFilesError(f"{self.transfer.url!r} is not a valid URL: {error}") from None
        except httpx.UnsupportedProtocol:
            raise ModelFilesError(f"{redacted_url(self.transfer.url)} is neither http nor https") from None
        except httpx.HTTPError as error:
            raise _Retry(str(error) or type(error).__name__) from None

    def _receive(self, response: httpx.Response, offset: int) -> None:
        if response.status_code == 416 and offset:
            self._restart()
            raise _Retry("the server refused to send the rest of the file")
        if response.status_code == 429 or response.status_code >= 500:
            raise _Retry(f"the server answered {response.status_code}")
        if response.status_code not in (200, 206):
            raise ModelFilesError(refusal(response, redacted_url(self.transfer.url)))
        partial = response.status_code == 206
        total = _total(response, partial)
        if self.transfer.size is None:
            self.total = total
            self._remember(response.headers.get("ETag", ""))
        elif total is not None and total != self.transfer.size:
            raise ModelFilesError(
                f"{redacted_url(self.transfer.url)} has {total} bytes, not the expected {self.transfer.size}"
            )
        self._append(response, offset if partial else 0)
        if self.total is None:
            self.total = self.transfer.length()

    def _remember(self, validator: str) -> None:
        """Save the ETag, unless it is weak: only a strong one guarantees that the bytes are the same."""
        if validator and not validator.startswith("W/"):
            self.validator_file.write_text(validator)

    def _append(self, response: httpx.Response, offset: int) -> None:
        with self.transfer.unfinished.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.truncate()
            done, reported = offset, 0.0
            for chunk in response.iter_bytes(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if time.monotonic() - reported >= REPORT_EVERY or done == self.total:
                    self.on_progress(DownloadProgress(self.transfer.url, done, self.total or 0))
                    reported = time.monotonic()
                if self.stop.is_set():
                    return

    def _is_intact(self) -> bool:
        """Compare with the hub's checksum, since after a crash a file of the right length may contain zeros."""
        if self.transfer.sha256 is None:
            return True
        with self.transfer.unfinished.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.transfer.sha256.lower()


def _total(response: httpx.Response, partial: bool) -> int | None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None  # the length is that of the compressed form
    if partial:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdecimal() else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def refusal(response: httpx.Response, what: str) -> str:
    """Return an error message for the user that says why the server refused to send `what`."""
    code = response.headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        return f"{what} is gated: accept its conditions on the hub, then pass your token with --hf-token or HF_TOKEN"
    if response.status_code in (401, 403) or code == "RepoNotFound":
        return f"{what} does not exist, or is private and needs --hf-token (or HF_TOKEN) [{response.status_code}]"
    if response.status_code in (404, 410):
        return f"{what} does not exist"
    return f"{what}: the server answered {response.status_code}"
