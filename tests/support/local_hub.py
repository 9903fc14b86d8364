"""A local Hugging Face hub with optional faults; has the part of the API that llama-server and our client use.

    /api/models/<repo>/refs · /api/models/<repo>/tree/<commit>?recursive=true · /<repo>/resolve/<commit>/<path> (Range)

Files that are not part of a repository, for `--model-url`, are under /plain/.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from llama_corral.common.hub import hub_cache


@dataclass
class HubFaults:
    """The faults of the hub; a test may change them while it runs."""

    cut_after: int | None = None
    """Number of bytes after which the connection breaks, `cuts` times."""
    cuts: int = 1
    status: int | None = None
    """The status of all file requests."""
    ignore_ranges: bool = False
    gated: bool = False
    page_size: int = 1000
    redirect: str | None = None
    """The other hub that serves the files, by redirects."""
    damaged: bool = False
    hold: threading.Event | None = None
    """Transfers of files stop in the middle until this is set."""


@dataclass
class LocalHub:
    """A hub to be used as a context manager. `files` maps repository → path → content."""

    files: dict[str, dict[str, bytes]]
    plain: dict[str, bytes] = field(default_factory=dict)
    faults: HubFaults = field(default_factory=HubFaults)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers (names in lower case) of every request."""

    def __enter__(self) -> LocalHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _HubServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, repo: str) -> str:
        content = json.dumps({path: hashlib.sha1(data).hexdigest() for path, data in sorted(self.files[repo].items())})
        return hashlib.sha1(content.encode()).hexdigest()

    def paths(self, method: str = "GET") -> list[str]:
        return [path for verb, path, _ in self.requests if verb == method]

    def ranges(self) -> list[str]:
        """Return the Range headers of the file requests, "" if there was none."""
        return [headers.get("range", "") for _, path, headers in self.requests if "/api/" not in path]


class _HubServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of connections: some tests kill the client."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.command, self.path, headers))
        path = unquote(urlsplit(self.path).path)
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(refs|tree/([^/]+))", path):
            self._api(api[1], api[2])
        elif file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(self.hub.files.get(file[1], {}).get(file[3]), self.hub.commit(file[1]))
        else:
            self._file(self.hub.plain.get(path.removeprefix("/plain/")), None)

    do_HEAD = do_GET

    def _api(self, repo: str, what: str) -> None:
        if self.hub.faults.gated:
            return self._json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        if repo not in self.hub.files:
            return self._json(401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"})
        if what == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": self.hub.commit(repo)}
                for name in ("dev", "main")
            ]
            return self._json(200, {"tags": [], "converts": [], "branches": branches})
        return self._tree(repo)

    def _tree(self, repo: str) -> None:
        items: list[dict[str, object]] = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "folder"}]
        for path, data in sorted(self.hub.files[repo].items()):
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            item: dict[str, object] = {"type": "file", "oid": blob, "size": len(data), "path": path}
            if path.endswith(".gguf"):
                item["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            items.append(item)
        query = dict(part.split("=", 1) for part in urlsplit(self.path).query.split("&"))
        start, size = int(query.get("cursor", 0)), self.hub.faults.page_size
        following = f'<{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={start + size}>; rel="next"'
        more = {"Link": following} if start + size < len(items) else {}
        self._json(200, items[start : start + size], more)

    def _json(self, status: int, answer: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _file(self, data: bytes | None, commit: str | None) -> None:
        faults = self.hub.faults
        if data is None:
            return self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        if faults.status:
            return self._json(faults.status, {"error": "fault"})
        if faults.redirect:
            return self._send(302, b"", {"Location": faults.redirect + self.path})
        if faults.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if commit:
            headers["X-Repo-Commit"] = commit
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        if not wanted or faults.ignore_ranges or not unchanged:
            return self._send(200, data, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if first > last:
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._send(206, data[first : last + 1], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        faults = self.hub.faults
        if self.command == "HEAD":
            return
        if status in (200, 206) and faults.cut_after is not None and faults.cuts and len(body) > faults.cut_after:
            faults.cuts -= 1
            self.wfile.write(body[: faults.cut_after])
            self.close_connection = True
            return
        if faults.hold is not None and status in (200, 206) and "/resolve/" in self.path:
            half = len(body) // 2
            self.wfile.write(body[:half])
            faults.hold.wait(30)
            body = body[half:]
        self.wfile.write(body)


def cache_repo(cache: Path, repo: str, *paths: str, commit: str = "a" * 40, branch: str = "main") -> None:
    """Create a repository in the cache, as after a download."""
    folder = hub_cache.repo_dir(cache, repo)
    for path in paths:
        blob = folder / "blobs" / hashlib.sha256(path.encode()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(path)
        hub_cache.link(blob, folder / "snapshots" / commit / path)
    hub_cache.write_ref(cache, repo, branch, commit)
