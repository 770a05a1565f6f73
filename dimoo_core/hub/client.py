"""What the Hugging Face Hub, or a mirror of it, has of a repository: its files with their hashes, and their bytes.

Token, proxies, certificates, redirects and offline mode are huggingface_hub's business, which comes with transformers;
it is imported when something is asked for and never before. Its own `snapshot_download` is not used: as of version 2.4
it throws a file away when a call breaks off, compares sizes but no hashes, and can be stopped every 10 MB at best.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

_PIECE = 1 << 13  # bytes; small, because requests drops a piece that is not complete when the line breaks
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that a later request may well not get
_UNSAFE = re.compile(r'[\\:*?"<>|\x00-\x1f\x7f]')
_DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10))}


class ConnectionLost(Exception):
    """The hub could not be reached, or the line broke; to ask again may help."""


@dataclass(frozen=True)
class Repo:
    """A repository, its revision (a branch, tag or commit) and the address of the hub or mirror that has it."""

    name: str
    revision: str
    endpoint: str


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its name with "/" between folders, its size in bytes and its hash.

    Large files have a SHA-256; small ones what Git names them by, the SHA-1 of "blob SIZE", a zero byte and the bytes.
    """

    name: str
    size: int
    digest: str

    def hasher(self) -> Any:
        """What takes the file's bytes with `update` and gives `digest` with `hexdigest`."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def repository(name: str, revision: str = "main", endpoint: str | None = None) -> Repo:
    """A repository at `endpoint`, else at HF_ENDPOINT as it is set now, else at the hub. Raises ValueError for a name
    that is not OWNER/NAME and an address that is none."""
    constants = _library().constants
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    if not _is_address(endpoint):
        raise ValueError(f"The hub's address is {endpoint!r:.80}; one like https://mirror.example is wanted.")
    if not re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", name, re.ASCII):
        raise ValueError(f"The repository is {name!r:.80}; OWNER/NAME is wanted, such as Alpha-VLLM/Lumina-DiMOO.")
    return Repo(name, revision, endpoint)


def _is_address(endpoint: str) -> bool:
    if re.search(r"\s", endpoint):
        return False
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number or too large, brackets that do not match
        return False


def listing(repo: Repo) -> tuple[Repo, list[RemoteFile]]:
    """The repository at the commit that its revision is now, and all of its files.

    Raises ConnectionLost, and ValueError where the hub refuses, where it tells no sizes and hashes, and where a name
    would lead out of the folder that files are put into.
    """
    library = _library()
    with _answers(repo, None):
        try:
            api = library.HfApi(endpoint=repo.endpoint, library_name="dimoo-nodes")
            info = api.model_info(repo.name, revision=repo.revision, files_metadata=True, timeout=_timeout())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, library.errors.HfHubHTTPError):  # some of those are ValueErrors too
                raise
            raise ValueError(f"{repo.endpoint} answers, but not as a hub does; check the address.") from None
    files = [_remote_file(repo, entry) for entry in info.siblings or []]
    return Repo(repo.name, info.sha or repo.revision, repo.endpoint), files


def stream(repo: Repo, file: RemoteFile, start: int) -> Iterator[tuple[int, bytes]]:
    """Pieces of a file from byte `start` on, each with its place; from 0 where the hub cannot begin in the middle.

    Raises ConnectionLost, and ValueError where the hub refuses.
    """
    library = _library()
    url = library.hf_hub_url(repo.name, file.name, revision=repo.revision, endpoint=repo.endpoint)
    headers = library.utils.build_hf_headers(library_name="dimoo-nodes") | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with _answers(repo, file), _get(url, headers) as (response, pieces):
        library.utils.hf_raise_for_status(response)
        place = start if response.status_code == 206 else 0
        for piece in pieces():
            yield place, piece
            place += len(piece)


# Answers ------------------------------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise ValueError(
            f"To download, huggingface_hub is needed, which comes with transformers ({error}); install it, "
            "or fetch the files by hand."
        ) from None
    return huggingface_hub


def _timeout() -> float:
    """How long the hub may stay silent, s."""
    return _library().constants.HF_HUB_DOWNLOAD_TIMEOUT


@contextmanager
def _get(url: str, headers: dict[str, str]) -> Iterator[tuple[Any, Callable[[], Iterator[bytes]]]]:
    """The answer to a GET, and a function that gives its body as it comes in."""
    session = _library().utils.get_session()
    if callable(getattr(session, "stream", None)):  # httpx, since version 1.0
        with session.stream("GET", url, headers=headers, timeout=_timeout(), follow_redirects=True) as response:
            yield response, response.iter_raw
    else:  # requests
        with session.get(url, headers=headers, timeout=_timeout(), stream=True) as response:
            yield response, partial(response.iter_content, _PIECE)


@contextmanager
def _answers(repo: Repo, file: RemoteFile | None) -> Iterator[None]:
    """Turns what the library raises into ConnectionLost and ValueError."""
    errors = _library().errors
    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in _PASSING:
            raise ConnectionLost(f"it answers {status}") from None
        raise ValueError(_refusal(repo, file, error, status)) from None
    except errors.OfflineModeIsEnabled:
        raise ConnectionLost("HF_HUB_OFFLINE is set") from None
    except (OSError, *errors.HfHubHTTPError.__bases__) as error:  # OSError: requests; the base: httpx
        raise ConnectionLost(_reason(error)) from None


def _refusal(repo: Repo, file: RemoteFile | None, error: Exception, status: int) -> str:
    errors = _library().errors
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo.name} has no revision {repo.revision!r:.80}; give another, 'main' is the newest."
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"{repo.endpoint} lets only some people read {repo.name} ({status}); agree to its terms on its page, "
            "set HF_TOKEN to your token and try again."
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return (
            f"{repo.endpoint} shows no repository {repo.name} ({status}); check its name and, where it is private, "
            "set HF_TOKEN to a token that may read it."
        )
    what = "it" if file is None else file.name
    return f"{repo.endpoint} does not give {what} of {repo.name} ({status}); try again later, or another mirror."


def _reason(error: BaseException) -> str:
    """What went wrong with a line, in the words of the system where there are any."""
    if "Timeout" in type(error).__name__:
        return f"no answer within {_timeout():g} s"
    cause: BaseException | None = error
    for _ in range(10):  # libraries wrap each other's errors
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = None if cause is None else cause.__cause__ or cause.__context__
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _remote_file(repo: Repo, entry: Any) -> RemoteFile:
    name, lfs = entry.rfilename, entry.lfs
    parts = str(name).split("/")
    for part in parts:
        reserved = part.split(".")[0].lower() in _DEVICES
        if part in ("", ".", "..") or part.endswith((" ", ".")) or _UNSAFE.search(part) or reserved:
            raise ValueError(f"{repo.name} lists a file {name!r:.80}, which is no plain name; nothing was written.")
    size, digest = (entry.size, entry.blob_id) if lfs is None else (lfs["size"], lfs["sha256"])
    if type(size) is not int or size < 0 or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", str(digest)):
        raise ValueError(f"{repo.endpoint} tells no size and hash of {name}, so nothing is taken from there.")
    return RemoteFile(name, size, digest)
