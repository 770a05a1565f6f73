"""What the Hugging Face Hub, or a mirror of it, has of a repository: its files with their hashes, and their bytes.

Token, proxies, certificates, redirects and offline mode are huggingface_hub's business, which comes with transformers;
it is imported when something is asked for and never before. Its own `snapshot_download` is not used: as of version 2.4
it throws a file away when a call breaks off, compares sizes but no hashes, and can be stopped every 10 MB at best.

The token (HF_TOKEN, or that of `hf auth login`) goes to the hub or mirror that is asked, over https or to this machine
only, and to no server that it redirects to. A user and password in the mirror's address go to that mirror in its
stead; neither ever stands in a message.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ..checks import printable, shown

MAX_LISTING = 16 << 20  # bytes; the published repository's listing has a thousandth of that
MAX_FILES = 10_000  # of a repository
_PIECE = 1 << 13  # bytes; small, because requests drops a piece that is not complete when the connection breaks
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses after which a later request may well succeed
_UNSAFE = re.compile(r'[\\:*?"<>|\x00-\x1f\x7f]')
_DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10))}
_USERINFO = re.compile(r"(\w+://)\S*@|[^\s'\"(<]+@")
_QUERY = re.compile(r"\?\S*")

_log = logging.getLogger(__name__)
_without_token: set[str] = set()  # endpoints of which the log says so already


class ConnectionLost(Exception):
    """The hub could not be reached, or the connection broke; trying again may help."""


class Refused(ValueError):
    """The hub answers, but does not give what was asked for."""


@dataclass(frozen=True)
class Repo:
    """A repository, its revision (a branch, tag or commit) and the address of the hub or mirror that has it.

    `endpoint` has no user and password, so it may stand in messages; `credentials` are those, as "user:password".
    """

    name: str
    revision: str
    endpoint: str
    credentials: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its name with "/" between folders, its size in bytes and its hash.

    Large files have a SHA-256; small ones what Git names them by, the SHA-1 of "blob SIZE", a zero byte and the bytes.
    """

    name: str
    size: int
    digest: str

    def hasher(self) -> Any:
        """A hash object to `update` with the file's bytes; its `hexdigest` is then `digest`."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def repository(name: str, revision: str = "main", endpoint: str | None = None) -> Repo:
    """A repository at `endpoint`, else at HF_ENDPOINT as it is set now, else at the hub. Raises ValueError for a name
    that is not OWNER/NAME and an address that is not one."""
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or _library().constants.ENDPOINT).rstrip("/")
    if not _is_address(endpoint):
        scheme, separator, rest = endpoint.rpartition("://")
        without = _QUERY.sub("", f"{scheme}{separator}{rest.rpartition('@')[2]}")
        raise ValueError(f"Got {shown(without)} as the hub's address, expected one like https://mirror.example.")
    if not re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", name, re.ASCII):
        raise ValueError(f"Got repository {shown(name)}, expected OWNER/NAME, such as Alpha-VLLM/Lumina-DiMOO.")
    parts = urlsplit(endpoint)
    userinfo, _, host = parts.netloc.rpartition("@")
    return Repo(name, revision, parts._replace(netloc=host).geturl(), unquote(userinfo) or None)


def _is_address(endpoint: str) -> bool:
    if re.search(r"\s", endpoint):
        return False
    try:
        parts = urlsplit(endpoint)
        rest = parts.path + parts.query + parts.fragment
        if "@" in rest or parts.query or parts.fragment:  # a password with a "/" in it ends up there
            return False
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is not a number or too large, brackets that do not match
        return False


def listing(repo: Repo) -> tuple[Repo, list[RemoteFile]]:
    """The repository at the commit that its revision is now, and all of its files.

    Raises ConnectionLost, and ValueError where the hub refuses, where it lists too much or no sizes and hashes, and
    where a name would lead out of the folder that files are put into.
    """
    url = f"{repo.endpoint}/api/models/{repo.name}/revision/{quote(repo.revision, safe='')}?blobs=true"
    content = bytearray()
    with _errors(repo), _get(repo, url, _headers(repo), decoded=True) as (response, pieces):
        _check_status(repo, None, response)
        for piece in pieces():
            content += piece
            if len(content) > MAX_LISTING:
                break
    if len(content) > MAX_LISTING:
        raise ValueError(f"{repo.endpoint} lists {repo.name} in more than {MAX_LISTING} bytes; use a mirror.")
    try:
        info = json.loads(bytes(content))
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict) or not isinstance(info.get("siblings"), list):
        raise ValueError(f"{repo.endpoint} answers, but not as a hub does; check the address.")
    if len(info["siblings"]) > MAX_FILES:
        raise ValueError(f"{repo.name} has {len(info['siblings'])} files, expected at most {MAX_FILES}; name another.")
    files = [_remote_file(repo, entry) for entry in info["siblings"]]
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repo.endpoint} lists {printable(twice)} of {repo.name} twice; use a mirror.")
    sha = info.get("sha")
    commit = sha if isinstance(sha, str) and re.fullmatch(r"[0-9a-f]{40,64}", sha) else repo.revision
    return replace(repo, revision=commit), files


def stream(repo: Repo, file: RemoteFile, start: int) -> Generator[tuple[int, bytes], None, None]:
    """Pieces of a file from byte `start` on, each with its offset; from 0 where the hub cannot begin in the middle.

    Raises ConnectionLost, and ValueError where the hub refuses.
    """
    url = _library().hf_hub_url(repo.name, file.name, revision=repo.revision, endpoint=repo.endpoint)
    headers = _headers(repo) | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with _errors(repo), _get(repo, url, headers) as (response, pieces):
        _check_status(repo, file, response)
        offset = start if response.status_code == 206 else 0
        for piece in pieces():
            yield offset, piece
            offset += len(piece)


# Requests -----------------------------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise ValueError(
            f"Downloads use huggingface_hub, which comes with transformers and cannot be imported ({error}); install "
            "it, or download the files by hand."
        ) from None
    return huggingface_hub


def _timeout() -> float:
    """How long the hub may stay silent, s."""
    return _library().constants.HF_HUB_DOWNLOAD_TIMEOUT


def _headers(repo: Repo) -> dict[str, str]:
    """Headers of a request to the endpoint, with whatever it may know of the user."""
    build = _library().utils.build_hf_headers
    plain = build(token=False, library_name="dimoo-nodes")
    if repo.credentials is not None:
        return plain  # `_get` sends them
    headers = build(library_name="dimoo-nodes")
    if headers.keys() == plain.keys() or _is_private(repo.endpoint):
        return headers
    if repo.endpoint not in _without_token:
        _without_token.add(repo.endpoint)
        _log.warning("DiMOO: %s is asked without your token, which only goes over https.", repo.endpoint)
    return plain


def _is_private(endpoint: str) -> bool:
    """Whether nobody can listen in: https, or a server on this machine."""
    parts = urlsplit(endpoint)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:  # a name
        return False


@contextmanager
def _get(
    repo: Repo, url: str, headers: dict[str, str], *, decoded: bool = False
) -> Iterator[tuple[Any, Callable[[], Iterator[bytes]]]]:
    """The answer to a GET, and a function that gives its body as it arrives; `decoded`: unpacked, should it be gzip."""
    session = _library().utils.get_session()
    user, _, password = (repo.credentials or "").partition(":")
    sign = {} if repo.credentials is None else {"auth": (user, password)}
    if callable(getattr(session, "stream", None)):  # httpx, since version 1.0
        with session.stream("GET", url, headers=headers, timeout=_timeout(), follow_redirects=True, **sign) as response:
            yield response, response.iter_bytes if decoded else response.iter_raw
    else:  # requests
        with session.get(url, headers=headers, timeout=_timeout(), stream=True, **sign) as response:
            yield response, partial(response.iter_content, _PIECE)


# Answers ------------------------------------------------------------------------------------------------------------


@contextmanager
def _errors(repo: Repo) -> Iterator[None]:
    """Turns what the library raises into ConnectionLost and ValueError."""
    errors = _library().errors
    try:
        yield
    except (ConnectionLost, Refused):
        raise
    except errors.OfflineModeIsEnabled:
        raise ConnectionLost("HF_HUB_OFFLINE is set") from None
    except (OSError, *errors.HfHubHTTPError.__bases__) as error:  # OSError: requests; the base: httpx
        raise ConnectionLost(_reason(error)) from None
    except Exception as error:  # an address or a proxy that the library cannot read, a token with odd characters
        reason = f"{type(error).__name__}: {_reason(error)}"
        raise ValueError(
            f"{repo.endpoint} cannot be asked ({reason}); check HF_ENDPOINT, HF_TOKEN and the proxy settings."
        ) from None


def _check_status(repo: Repo, file: RemoteFile | None, response: Any) -> None:
    """Raises ConnectionLost or Refused unless the answer is what was asked for.

    The library's own check is not used: it reads all that comes with a refusal, however much that is.
    """
    status, code = response.status_code, response.headers.get("X-Error-Code")
    if status in (200, 206):
        return
    if status in _PASSING:
        raise ConnectionLost(f"it answers {status}")
    if code == "RevisionNotFound":
        raise Refused(f"{repo.name} has no revision {shown(repo.revision)}; give another, 'main' is the newest.")
    if code == "GatedRepo" or status == 403:
        raise Refused(
            f"{repo.endpoint} lets only some people read {repo.name} ({status}); agree to its terms on its page, "
            "set HF_TOKEN to your token and try again."
        )
    if code == "RepoNotFound" or status == 401:
        raise Refused(
            f"{repo.endpoint} shows no repository {repo.name} ({status}); check its name and, where it is private, "
            "set HF_TOKEN to a token that may read it."
        )
    what = "it" if file is None else printable(file.name)
    raise Refused(f"{repo.endpoint} does not give {what} of {repo.name} ({status}); try again later, or use a mirror.")


def _reason(error: BaseException) -> str:
    """What went wrong with a connection, in the words of the system where there are any, without secrets."""
    if "Timeout" in type(error).__name__:
        return f"no answer within {_timeout():g} s"
    cause: BaseException | None = error
    for _ in range(10):  # libraries wrap each other's errors
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = None if cause is None else cause.__cause__ or cause.__context__
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return printable(_redacted(text), 200)


def _redacted(text: str) -> str:
    """Text without the token, and without users, passwords and queries (signatures) of the addresses in it."""
    token = _library().utils.get_token()
    if token:
        text = text.replace(token, "...")
    text = re.sub(r"(Bearer|Basic) [^\s'\"]+", r"\1 ...", text)
    return _QUERY.sub("", _USERINFO.sub(r"\1", text))


def _remote_file(repo: Repo, entry: Any) -> RemoteFile:
    """A file from its entry in the hub's list; raises ValueError where that could not be one."""
    name = entry.get("rfilename") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{repo.endpoint} lists {shown(entry)}, which is not a file of {repo.name}; use a mirror.")
    for part in name.split("/"):
        reserved = part.split(".")[0].lower() in _DEVICES
        if part in ("", ".", "..") or part.endswith((" ", ".")) or _UNSAFE.search(part) or reserved:
            raise ValueError(f"{repo.name} lists a file {shown(name)}, which is not a plain name; nothing was written.")
    lfs = entry.get("lfs")
    size, digest = (entry.get("size"), entry.get("blobId")) if lfs is None else (None, None)
    if isinstance(lfs, dict):
        size, digest = lfs.get("size"), lfs.get("sha256")
    if type(size) is not int or not 0 <= size < 2**63 or not isinstance(digest, str) or not _is_digest(digest):
        raise ValueError(
            f"{repo.endpoint} lists no size and hash of {printable(name)}, so nothing was downloaded; use a mirror."
        )
    return RemoteFile(name, size, digest)


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None
