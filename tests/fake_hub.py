"""A stand-in for the Hugging Face Hub on loopback: its listing, its file addresses, its redirect to a second server
that has the large files; and the faults that lines and servers have."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = ".safetensors"  # what the hub keeps in LFS


@dataclass(frozen=True)
class Asked:
    """One request for a file's bytes: where they were to begin, and the token that came along."""

    name: str
    start: int
    token: str | None
    server: str


@dataclass
class Faults:
    """What goes wrong, by file name; `status` also by "listing"."""

    cut: dict[str, list[int]] = field(default_factory=dict)  # bytes after which the next answers break off
    hang: dict[str, int] = field(default_factory=dict)  # bytes after which nothing comes any more
    slow: dict[str, float] = field(default_factory=dict)  # seconds between pieces of 1 kB
    wrong: set[str] = field(default_factory=set)  # as many bytes, but others
    status: dict[str, tuple[int, str]] = field(default_factory=dict)  # an answer and the hub's word for it
    extra: list[dict[str, Any]] = field(default_factory=list)  # entries of the listing beside the real ones
    no_ranges: bool = False  # the whole file, whatever part was asked for
    page: bool = False  # a web page instead of any answer
    listing: bytes | None = None  # instead of the real one
    refusal: bytes = b'{"error":"no"}'  # what comes with a status that refuses


class Hub:
    """Serves the files that `folder` has now as repository `repo`; a context. `asked`, `sent` tell what was taken."""

    def __init__(self, folder: Path, repo: str = "Alpha-VLLM/Lumina-DiMOO") -> None:
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
        self.commit = hashlib.sha1(b"".join(self.files.values())).hexdigest()
        self._entries = {name: listed(name, content) for name, content in self.files.items()}
        self.repo, self.faults = repo, Faults()
        self.asked: list[Asked] = []
        self.sent: dict[str, int] = {}
        self.listings = 0
        self.tokens: list[str | None] = []  # of every request, for the list and for files
        self._ended = threading.Event()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, kind)) for kind in ("hub", "cdn")]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def reset(self) -> None:
        self.faults = Faults()
        self.asked.clear()
        self.sent.clear()
        self.tokens.clear()
        self.listings = 0

    def starts(self, name: str) -> list[int]:
        """The byte at which each request for a file began."""
        return [one.start for one in self.asked if one.name == name]

    @property
    def names(self) -> list[str]:
        return list(self.files)

    def bytes_of(self, name: str) -> bytes:
        return self.files[name]

    def entry(self, name: str) -> dict[str, Any]:
        """A file as the listing has it."""
        return self._entries[name]

    def wait(self, seconds: float | None) -> None:
        """Lets a handler sleep; the end of the server wakes it."""
        self._ended.wait(seconds)


def listed(name: str, content: bytes) -> dict[str, Any]:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
    if name.endswith(LARGE):
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _handler(hub: Hub, kind: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, with_body: bool) -> None:
            path, faults = unquote(urlsplit(self.path).path), hub.faults
            hub.tokens.append(self.headers.get("Authorization"))
            api = re.fullmatch(rf"/api/models/{re.escape(hub.repo)}/(revision|tree)/([^/]+)", path)
            file = re.fullmatch(rf"/{re.escape(hub.repo)}/resolve/([^/]+)/(.+)", path)
            if faults.page:
                self.reply(200, b"<html>sign in</html>", {}, with_body)
            elif kind == "cdn":
                self.send_file(parse_qs(urlsplit(self.path).query)["name"][0], with_body)
            elif api and self.may("listing", api[2]):
                hub.listings += 1
                body = json.dumps(self.listing(api[1])).encode() if faults.listing is None else faults.listing
                self.reply(200, body, {}, with_body)
            elif file and self.may(file[2], file[1]):
                self.resolve(file[2], with_body)
            elif not api and not file:
                self.refuse(401, "")  # what the hub says of repositories that there are not, to those without a token

        def may(self, name: str, revision: str) -> bool:
            """Whether a request is served; else it has been refused."""
            if name in hub.faults.status:
                self.refuse(*hub.faults.status[name])
            elif revision not in ("main", hub.commit):
                self.refuse(404, "RevisionNotFound")
            elif name != "listing" and name not in hub.names:
                self.refuse(404, "EntryNotFound")
            else:
                return True
            return False

        def listing(self, form: str) -> Any:
            entries = [hub.entry(name) for name in hub.names] + hub.faults.extra
            if form == "revision":
                return {"_id": "1", "id": hub.repo, "modelId": hub.repo, "sha": hub.commit, "siblings": entries}
            return [
                {"type": "file", "path": one["rfilename"], "size": one["size"], "oid": one["blobId"]}
                | ({"lfs": {**one["lfs"], "oid": one["lfs"]["sha256"]}} if "lfs" in one else {})
                for one in entries
            ]

        def resolve(self, name: str, with_body: bool) -> None:
            entry = hub.entry(name)
            headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{entry["blobId"]}"'}
            if "lfs" not in entry:
                self.send_file(name, with_body, headers)
                return
            headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-ETag": f'"{entry["lfs"]["sha256"]}"'}
            self.reply(302, b"", headers | {"Location": f"{hub.cdn}/blob?signed=1&name={quote(name)}"}, with_body)

        def send_file(self, name: str, with_body: bool, headers: dict[str, str] | None = None) -> None:
            content = hub.bytes_of(name)
            if name in hub.faults.wrong:
                content = content[:-1] + bytes([content[-1] ^ 1])
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start, status, headers = 0, 200, {"Accept-Ranges": "bytes"} | (headers or {})
            if asked and not hub.faults.no_ranges:
                start, status = int(asked[1]), 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if with_body:
                hub.asked.append(Asked(name, int(asked[1]) if asked else 0, self.headers.get("Authorization"), kind))
            self.head(status, len(content) - start, headers)
            if with_body:
                self.send_pieces(name, content[start:])

        def send_pieces(self, name: str, content: bytes) -> None:
            cuts, end = hub.faults.cut.get(name, []), len(content)
            if cuts:
                end = min(end, cuts.pop(0))
            end = min(end, hub.faults.hang.get(name, end))
            pause = hub.faults.slow.get(name)
            for place in range(0, end, 1024 if pause else max(end, 1)):
                piece = content[place : end if not pause else min(place + 1024, end)]
                try:
                    self.wfile.write(piece)
                except OSError:
                    break
                hub.sent[name] = hub.sent.get(name, 0) + len(piece)
                if pause:
                    time.sleep(pause)
            if name in hub.faults.hang:
                hub.wait(None)
            if end < len(content):
                self.close_connection = True

        def refuse(self, status: int, code: str) -> None:
            self.reply(status, hub.faults.refusal, {"X-Error-Code": code} if code else {}, self.command == "GET")

        def reply(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.head(status, len(body), headers)
            if with_body:
                self.wfile.write(body)

        def head(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(length), **headers}.items():
                self.send_header(key, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silent."""

    return Handler
