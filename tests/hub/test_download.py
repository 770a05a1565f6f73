"""Downloads from a stand-in for the hub: what is fetched and checked, what a fault leaves, and what the user reads."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
from filelock import FileLock, Timeout
from hypothesis import given
from hypothesis import strategies as st

import dimoo_core.hub.download as module
from dimoo_core.checkpoint.find import candidates, find
from dimoo_core.cli.main import main
from dimoo_core.hub import client as remote
from dimoo_core.hub.background import run_in_background
from dimoo_core.hub.download import download

from ..fake_hub import Hub
from ..readonly import read_only
from ..tiny import write_checkpoint

ROOT = Path(__file__).parents[2]
NAME = "Lumina-DiMOO"
SHARD, VQ = "model-00001-of-00002.safetensors", "vqvae/diffusion_pytorch_model.safetensors"
NEEDED = [
    *("config.json", SHARD, "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"),
    *("vqvae/config.json", VQ),
]
NOT_NEEDED = ["README.md", "modeling_llada.py", "pytorch_model.bin", "generation_config.json", "vqvae/old.pt"]
NOT_NEEDED += ["vqvae/deep/x.safetensors", "assets/x.safetensors", "config.json.py", ".gitattributes"]
NOT_NEEDED += ["._config.json", "._x.safetensors", ".DS_Store", "vqvae/._diffusion_pytorch_model.safetensors"]  # macOS


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = write_checkpoint(tmp_path_factory.mktemp("hub"), shards=2)
    for name in NOT_NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not for us")
    with Hub(folder) as hub:
        yield hub


@pytest.fixture
def hub(served: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The stand-in, sound, as the hub that HF_ENDPOINT names; nobody waits before trying again."""
    served.reset()
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    return served


def contents(folder: Path) -> dict[str, bytes]:
    """What a folder has, but for the empty file that is locked."""
    files = [path for path in folder.rglob("*") if not path.is_dir() and path.name != module.LOCK]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def parts(folder: Path) -> dict[str, int]:
    """What is not complete yet: sizes by the name that each file will have."""
    found = [path for path in folder.rglob("*.part") if path.stat().st_size]
    return {path.relative_to(folder).as_posix().rsplit(".", 2)[0]: path.stat().st_size for path in found}


def is_all_right(hub: Hub, folder: Path) -> bool:
    return contents(folder) == {name: hub.bytes_of(name) for name in NEEDED}


def is_near(numbers: list[int], wanted: list[int]) -> bool:
    """Whether these are the numbers of bytes wanted; requests drops up to 8 kB that came just before a cut."""
    import huggingface_hub

    lost = 0 if int(huggingface_hub.__version__.split(".")[0]) else 8192
    pairs = enumerate(zip(numbers, wanted, strict=True))
    return all(want - lost * (number + 1) <= got <= want for number, (got, want) in pairs)


def size(hub: Hub, name: str) -> int:
    return len(hub.bytes_of(name))


def says(call: Callable[[], object]) -> str:
    """The sentence of the ValueError that a call ends with."""
    with pytest.raises(ValueError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".") and len(said) < 600
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "one error, not a chain of them"
    return said


# What is fetched ----------------------------------------------------------------------------------------------------


def test_only_what_is_needed_is_fetched_each_file_once(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    target = download(folder=tmp_path, on_progress=lambda *numbers: seen.append(numbers))
    assert target == tmp_path / NAME and is_all_right(hub, target)
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert sorted(one.name for one in hub.asked) == sorted(NEEDED) and hub.listings == 1
    assert hub.sent == {name: size(hub, name) for name in NEEDED}
    total = sum(hub.sent.values())
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    find(target)


def test_what_is_there_and_right_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    target = download(folder=tmp_path)
    stamps = {name: (target / name).stat().st_mtime_ns for name in NEEDED}
    content = bytearray(hub.bytes_of(SHARD))
    content[-1] ^= 1
    (target / SHARD).write_bytes(content)
    hub.reset()
    download(folder=tmp_path)
    assert hub.sent == {SHARD: size(hub, SHARD)} and is_all_right(hub, target)
    assert {name: (target / name).stat().st_mtime_ns for name in NEEDED if name != SHARD}.items() <= stamps.items()


def test_nothing_is_written_outside_the_folder(hub: Hub, tmp_path: Path) -> None:
    """Told by the interpreter itself: every file that is opened for writing, made, moved or removed."""
    code = (
        "import os, sys; from pathlib import Path; seen = set()\n"
        "def hook(event, args):\n"
        "    if event == 'open' and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT): seen.add(args[0])\n"
        "    if event in ('os.mkdir', 'os.remove', 'os.rename', 'os.symlink', 'os.link', 'shutil.move'):\n"
        "        seen.update(args[:2] if event != 'os.mkdir' else args[:1])\n"
        "sys.addaudithook(hook)\n"
        "from dimoo_core.hub.download import download\n"
        f"download(folder={str(tmp_path / 'models')!r})\n"
        "print(*[os.fsdecode(one) for one in seen if one and not isinstance(one, int)], sep='\\n')"
    )
    home = {name: str(tmp_path / "home") for name in ("HOME", "USERPROFILE", "HF_HOME", "XDG_CACHE_HOME")}
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=ROOT, env=os.environ | home, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    written = {path for path in done.stdout.decode().splitlines() if path != os.devnull}
    assert any(path.endswith(SHARD) for path in written), "the hook sees what happens"
    assert [path for path in written if not Path(path).is_relative_to(tmp_path / "models")] == []
    assert not (tmp_path / "home").exists() and is_all_right(hub, tmp_path / "models" / NAME)


def test_what_locks_is_imported_when_something_is_downloaded() -> None:
    code = "import sys; sys.modules['filelock'] = None; import dimoo_core.__main__, dimoo_core.hub.download"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_stand_in_speaks_the_protocol_of_the_real_library(hub: Hub, tmp_path: Path) -> None:
    import huggingface_hub

    place = huggingface_hub.hf_hub_download(
        hub.repo, "tokenizer.json", local_dir=tmp_path / "a", cache_dir=tmp_path / "cache", endpoint=hub.url
    )
    assert Path(place).read_bytes() == hub.bytes_of("tokenizer.json")
    info = huggingface_hub.HfApi(endpoint=hub.url).model_info(hub.repo, files_metadata=True, revision="main")
    assert info.sha == hub.commit and {one.rfilename for one in info.siblings} == set(hub.names)
    tree = huggingface_hub.HfApi(endpoint=hub.url).list_repo_tree(hub.repo, recursive=True, revision=hub.commit)
    assert {one.path: one.size for one in tree} == {name: size(hub, name) for name in hub.names}


# Cuts, cancels, wrong bytes -----------------------------------------------------------------------------------------


def test_after_a_cut_it_goes_on_from_the_last_byte(hub: Hub, tmp_path: Path) -> None:
    hub.faults.cut = {SHARD: [30_000, 20_000, 0, 40_000], VQ: [100_000], "tokenizer.json": [0]}
    target = download(folder=tmp_path)
    assert is_all_right(hub, target) and parts(target) == {}
    assert is_near(hub.starts(SHARD), [0, 30_000, 50_000, 50_000, 90_000])
    assert is_near(hub.starts(VQ), [0, 100_000]) and hub.starts("tokenizer.json") == [0, 0]
    assert is_near([-hub.sent[name] for name in NEEDED], [-size(hub, name) for name in NEEDED]), "hardly a byte twice"


def test_what_a_dead_line_left_is_where_the_next_download_begins(hub: Hub, tmp_path: Path) -> None:
    hub.faults.cut = {SHARD: [50_000, *[0] * 5]}
    said = says(lambda: download(folder=tmp_path))
    target = tmp_path / NAME
    assert (
        f" kB of 114.0 kB of {SHARD}; what has arrived is kept" in said
        and str(target) in said
        and "by hand" in said
        and hub.url in said
    )
    assert len(hub.starts(SHARD)) == 1 + 5 and is_near([kept := parts(target)[SHARD]], [50_000])
    assert candidates(tmp_path) == [], "half a checkpoint is not listed"
    hub.reset()
    download(folder=tmp_path)
    assert hub.starts(SHARD) == [kept] and is_all_right(hub, target)
    assert hub.sent[SHARD] == size(hub, SHARD) - kept


def test_a_killed_download_goes_on_too(hub: Hub, tmp_path: Path) -> None:
    hub.faults.hang = {VQ: 200_000}
    code = f"from dimoo_core.hub.download import download; download(folder={str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: VQ in hub.sent and process.poll() is None)
    finally:
        process.kill()
        process.wait()
    kept = parts(tmp_path / NAME)
    assert kept.keys() >= set(NEEDED) - {VQ}
    hub.reset()
    assert is_all_right(hub, download(folder=tmp_path))
    assert hub.starts(VQ) == [kept.get(VQ, 0)] and {one.name for one in hub.asked} == {VQ}


def wait_until(true: Callable[[], bool]) -> None:
    ended = threading.Event()
    for _ in range(600):
        if true():
            return
        ended.wait(0.05)
    raise TimeoutError("it did not come to that within 30 s")


def test_killed_while_files_get_their_names_nothing_is_lost_or_listed(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, left = os.replace, len(NEEDED) - 1

    def replace(*where: Path) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        really(*where)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        download(folder=tmp_path)
    assert candidates(tmp_path) == [] and parts(tmp_path / NAME).keys() == {"config.json"}
    monkeypatch.setattr(os, "replace", really)
    hub.reset()
    assert is_all_right(hub, download(folder=tmp_path)) and hub.asked == []


def test_a_server_that_cannot_begin_in_the_middle_sends_it_anew(hub: Hub, tmp_path: Path) -> None:
    hub.faults.no_ranges, hub.faults.cut = True, {SHARD: [70_000]}
    assert is_all_right(hub, download(folder=tmp_path))
    assert is_near(hub.starts(SHARD), [0, 70_000]) and hub.sent[SHARD] == 70_000 + size(hub, SHARD)


@pytest.mark.parametrize("name", [SHARD, "tokenizer.json"])
def test_wrong_bytes_are_thrown_away_and_named(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.faults.wrong = {name}
    said = says(lambda: download(folder=tmp_path))
    assert name in said and "checksum" in said and "discarded" in said and hub.url in said
    assert not (tmp_path / NAME / name).exists() and name not in parts(tmp_path / NAME)
    hub.faults.wrong = set()
    assert is_all_right(hub, download(folder=tmp_path))


def test_a_checkpoint_that_worked_stays_whole_until_the_new_one_is(hub: Hub, tmp_path: Path) -> None:
    old = write_checkpoint(tmp_path / NAME, shards=2, seed=9)
    before = contents(old)
    hub.faults.wrong = {VQ}
    says(lambda: download(folder=tmp_path))
    assert {name: contents(old)[name] for name in before} == before
    hub.faults.wrong = set()
    download(folder=tmp_path)
    assert is_all_right(hub, old)


def test_pieces_of_another_version_are_not_mixed_in(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / NAME
    target.mkdir()
    stale = target / f"{SHARD}.00000000.part"
    stale.write_bytes(b"x" * 60_000)
    longer = target / f"tokenizer.json.{hub.entry('tokenizer.json')['blobId'][:8]}.part"
    longer.write_bytes(b"x" * 60_000)
    assert is_all_right(hub, download(folder=tmp_path))
    assert hub.starts(SHARD) == hub.starts("tokenizer.json") == [0]


class Stop(Exception):
    """As ComfyUI's InterruptProcessingException is."""


class LineStop(OSError):
    """One that could be taken for a fault of the line or the disk."""


@pytest.mark.parametrize("kind", [Stop, LineStop, KeyboardInterrupt])
def test_cancel_is_heard_while_nothing_comes_and_leaves_what_came(hub: Hub, tmp_path: Path, kind: type) -> None:
    hub.faults.hang = {SHARD: 30_000}
    heard: list[int] = []
    stop = kind("enough")

    def on_progress(done: int, total: int) -> None:
        if SHARD in hub.sent and done + 8192 > sum(hub.sent.values()):  # all that came has been taken
            heard.append(done)
        if heard.count(done) == 3:
            raise stop

    with pytest.raises(kind) as caught:
        download(folder=tmp_path, on_progress=on_progress)
    assert caught.value is stop
    assert hub.starts(SHARD) == [0] and is_near([kept := parts(tmp_path / NAME)[SHARD]], [30_000])
    assert candidates(tmp_path) == []
    hub.reset()
    assert is_all_right(hub, download(folder=tmp_path))
    assert hub.starts(SHARD) == [kept]


def test_cancel_is_heard_in_the_middle_of_a_slow_file(hub: Hub, tmp_path: Path) -> None:
    hub.faults.slow = {VQ: 0.02}

    def on_progress(done: int, total: int) -> None:
        if hub.sent.get(VQ, 0) > 20_000:
            raise Stop

    with pytest.raises(Stop):
        download(folder=tmp_path, on_progress=on_progress)
    assert 0 < parts(tmp_path / NAME)[VQ] < size(hub, VQ) / 2


def test_cancel_is_heard_while_the_hub_is_asked_for_its_list(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call and says nothing

        def stop(done: int, total: int) -> None:
            raise Stop

        with pytest.raises(Stop):
            download(folder=tmp_path, endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", on_progress=stop)
    assert not (tmp_path / NAME).exists()


def test_two_at_once_do_not_spoil_each_other(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with FileLock(tmp_path / NAME / module.LOCK):
        assert "Another download" in says(lambda: download(folder=tmp_path))
    assert is_all_right(hub, download(folder=tmp_path))


def test_who_locks_a_folder_that_was_just_freed_has_it_alone(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, third = (FileLock(tmp_path / NAME / module.LOCK, timeout=0) for _ in range(2))

    class Followed(FileLock):
        """Somebody else locks the folder as soon as it is free."""

        def release(self, *options: object, **more: object) -> None:
            held = self.is_locked
            super().release(*options, **more)
            if held:
                second.acquire()

    monkeypatch.setattr(filelock, "FileLock", Followed)
    assert is_all_right(hub, download(folder=tmp_path))
    assert second.is_locked
    with pytest.raises(Timeout):
        third.acquire()
    second.release()


def test_a_name_that_begins_as_another_does_not_cost_the_other(tmp_path: Path) -> None:
    """model.safetensors comes last, when its index has come already and waits for its name."""
    made = write_checkpoint(tmp_path / "hub")
    for name in ("model.safetensors", VQ):
        (made / f"{name}.index.json").write_text('{"weight_map": {}}')
    with Hub(made) as both:
        target = download(folder=tmp_path, endpoint=both.url)
        assert contents(target) == {name: both.bytes_of(name) for name in both.names}
        assert sorted(one.name for one in both.asked) == sorted(both.names)


def test_a_drive_that_cannot_lock_serves(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert is_all_right(hub, download(folder=tmp_path))


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "status", "code", "words"),
    [
        ("listing", 401, "RepoNotFound", f"no repository Alpha-VLLM/{NAME} (401); check its name"),
        ("listing", 404, "RepoNotFound", f"no repository Alpha-VLLM/{NAME} (404); check its name"),
        ("listing", 401, "GatedRepo", "agree to its terms on its page, set HF_TOKEN"),
        ("listing", 403, "GatedRepo", "agree to its terms on its page, set HF_TOKEN"),
        ("listing", 403, "", "agree to its terms on its page, set HF_TOKEN"),
        ("listing", 404, "RevisionNotFound", "has no revision 'main'"),
        ("listing", 418, "", "does not give it of Alpha-VLLM/Lumina-DiMOO (418)"),
        ("listing", 503, "", "cannot be reached (it answers 503)"),
        (SHARD, 404, "EntryNotFound", f"does not give {SHARD} of Alpha-VLLM/{NAME} (404)"),
        (SHARD, 403, "", "agree to its terms on its page, set HF_TOKEN"),
        (SHARD, 500, "", f"failed 6 times in a row (it answers 500) at 0 bytes of 114.0 kB of {SHARD}"),
    ],
)
def test_what_the_hub_refuses_is_told(hub: Hub, tmp_path: Path, where: str, status: int, code: str, words: str) -> None:
    hub.faults.status = {where: (status, code)}
    said = says(lambda: download(folder=tmp_path))
    assert words in said and (hub.url in said or "revision" in said)
    assert candidates(tmp_path) == []


def test_another_repository_than_there_is(hub: Hub, tmp_path: Path) -> None:
    assert "shows no repository some/other (401)" in says(lambda: download("some/other", tmp_path))
    assert "no revision 'v9'" in says(lambda: download(folder=tmp_path, revision="v9"))
    assert not list(tmp_path.iterdir())


def test_offline_the_files_and_their_folder_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
    said = says(lambda: download(folder=tmp_path, endpoint=dead))
    assert f"{dead} cannot be reached (Connection refused)" in said and "HF_ENDPOINT" in said
    assert str(tmp_path / NAME) in said
    assert all(name in said for name in ("config.json", "tokenizer.json", "*.safetensors", "vqvae/"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be reached (HF_HUB_OFFLINE is set)" in says(lambda: download(folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_is_no_name_and_what_is_no_hub(hub: Hub, tmp_path: Path) -> None:
    for name in ("", "x", "a/b/c", "../..", "a/..", "a/.", "a b/c", "https://x.example/a/b"):
        assert "expected OWNER/NAME" in says(lambda name=name: download(name, tmp_path))
    strange = ("http://127.0.0.1:x", "http://127.0.0.1:99999", "http://127.0.0.1:0", "http://:80", "http://[::1")
    white = ("http://mirror. example", "http://mirror.example/a b", " http://mirror.example", "http://mirror.exa\nmple")
    for address in ("mirror.example", "file:///etc", "ftp://mirror.example", *strange, *white):
        assert "one like https://" in says(lambda address=address: download(folder=tmp_path, endpoint=address))
    hub.faults.page = True
    assert "answers, but not as a hub does" in says(lambda: download(folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_repository_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / "hub" / name).write_text("{}")
    with Hub(tmp_path / "hub") as bare:
        said = says(lambda: download(folder=tmp_path / "models", endpoint=bare.url))
    assert "it has no tokenizer.json, vqvae/config.json, *.safetensors, vqvae/*.safetensors" in said
    assert bare.asked == [] and not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("../x.safetensors", "vqvae/../../x.safetensors", "/x.safetensors", "//host/x.safetensors", "", "."),
        *("..\\x.safetensors", "C:\\x.safetensors", "C:x.safetensors", "vqvae//x.safetensors", "./config.json"),
        *("nul.safetensors", "x.safetensors:y", "x\n.safetensors", "x\0.safetensors", "x.safetensors ", "..", "a/.."),
    ],
)
def test_a_list_that_leads_out_of_the_folder_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.faults.extra = [{**hub.entry(SHARD), "rfilename": name}]
    assert "not a plain name; nothing was written" in says(lambda: download(folder=tmp_path / "models"))
    assert hub.asked == [] and not list(tmp_path.iterdir())


@given(st.text(st.sampled_from("ab./\\: *\0\n\u00e9~") | st.characters(), max_size=12))
def test_any_name_is_refused_or_lies_in_the_folder(name: str) -> None:
    repo, target = remote.Repo("a/b", "main", "http://x.example"), Path("/models/b")
    entry = {"rfilename": name, "size": 1, "blobId": "0" * 40}
    try:
        file = remote._remote_file(repo, entry)
    except ValueError:
        return
    transfer = module.Transfer(repo, target)
    for path in (transfer.path(file), transfer.part(file)):
        assert target in Path(os.path.normpath(path)).parents


@pytest.mark.parametrize("entry", [{"size": 3}, {"size": None, "blobId": "0" * 40}, {"size": 3, "blobId": "../x"}])
def test_a_list_without_hashes_is_refused(hub: Hub, tmp_path: Path, entry: dict) -> None:
    hub.faults.extra = [{"rfilename": "more.safetensors", **entry}]
    assert "lists no size and hash of more.safetensors" in says(lambda: download(folder=tmp_path))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (None, "lists None, which is not a file"),
        ("model.safetensors", "lists 'model.safetensors', which is not a file"),
        ({"rfilename": None, "size": 1, "blobId": "0" * 40}, "which is not a file"),
        ({"rfilename": 7, "size": 1, "blobId": "0" * 40}, "which is not a file"),
        ({"rfilename": "x.bin", "lfs": "0" * 64, "size": 3}, "lists no size and hash of x.bin"),
        ({"rfilename": "x.bin", "lfs": [3], "size": 3}, "lists no size and hash of x.bin"),
        ({"rfilename": "x.bin", "lfs": {}, "size": 3}, "lists no size and hash of x.bin"),
        ({"rfilename": "x.bin", "lfs": {"size": "3", "sha256": "0" * 64}}, "lists no size and hash of x.bin"),
        ({"rfilename": "x.bin", "lfs": None, "size": "3", "blobId": "0" * 40}, "lists no size and hash of x.bin"),
        ({"rfilename": "x.bin", "size": True, "blobId": "0" * 40}, "lists no size and hash of x.bin"),
        ({"rfilename": "x.bin", "size": 10**30, "blobId": "0" * 40}, "lists no size and hash of x.bin"),
        ({"rfilename": "x" * 10**5 + ":", "size": 1, "blobId": "0" * 40}, "not a plain name"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_odd_entry_of_the_list_is_one_sentence(hub: Hub, tmp_path: Path, entry: object, words: str) -> None:
    hub.faults.extra = [entry]
    assert words in says(lambda: download(folder=tmp_path / "models"))
    assert hub.asked == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "body",
    [b"[]", b"null", b"{}", b'{"siblings": null}', b'{"siblings": {"a": 1}}', b'{"siblings": "x"}', b"[" * 10**6]
    + [b'{"siblings": 1' + b"0" * 10**4 + b"}", b"\xff\xfe"],
    ids=lambda body: str(body[:30]),
)
def test_an_odd_list_is_one_sentence(hub: Hub, tmp_path: Path, body: bytes) -> None:
    hub.faults.listing = body
    assert "answers, but not as a hub does" in says(lambda: download(folder=tmp_path))


def test_a_list_without_end_is_not_read_to_its_end(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_LISTING", 100_000)
    hub.faults.listing = b" " * 200_000
    assert "in more than 100000 bytes" in says(lambda: download(folder=tmp_path))
    monkeypatch.setattr(remote, "MAX_LISTING", 1 << 20)
    monkeypatch.setattr(remote, "MAX_FILES", 5)
    hub.faults.listing = None
    assert f"has {len(hub.names)} files, expected at most 5" in says(lambda: download(folder=tmp_path))


def test_a_file_that_is_listed_twice_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.faults.extra = [hub.entry(SHARD)]
    assert f"lists {SHARD} of Alpha-VLLM/{NAME} twice" in says(lambda: download(folder=tmp_path))


@pytest.mark.parametrize("body", [b"[]", b'{"error": 7, "errors": [1]}', b"x" * 10**6])
@pytest.mark.parametrize("where", ["listing", SHARD])
def test_what_comes_with_a_refusal_does_not_matter(hub: Hub, tmp_path: Path, where: str, body: bytes) -> None:
    hub.faults.status, hub.faults.refusal = {where: (404, "EntryNotFound")}, body
    assert "(404)" in says(lambda: download(folder=tmp_path))


# Secrets ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets requests to servers that there are not arrive at the stand-in: it is the proxy."""
    from huggingface_hub.utils import close_session

    def through(url: str) -> None:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        close_session()

    yield through
    monkeypatch.undo()
    close_session()


def test_without_encryption_the_token_stays_here_and_the_log_says_so_once(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked_over: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    asked_over(hub.url)
    target = download(folder=tmp_path, endpoint="http://mirror.example")
    assert is_all_right(hub, target) and len(hub.tokens) > len(NEEDED)
    assert set(hub.tokens) == {None}, "neither the list nor a file"
    said = [one.getMessage() for one in caplog.records if "token" in one.getMessage()]
    assert said == ["DiMOO: http://mirror.example is asked without your token, which only goes over https."]
    hub.reset()
    download(folder=tmp_path / "b", endpoint=hub.url)
    assert "Bearer hf_secret" in hub.tokens, "this machine may have it"


@pytest.mark.parametrize(
    ("endpoint", "goes"),
    [
        ("https://huggingface.co", True),
        ("https://mirror.example:8443/hf", True),
        ("http://127.0.0.1:80", True),
        ("http://localhost", True),
        ("http://[::1]:9", True),
        ("http://huggingface.co", False),
        ("http://mirror.example", False),
        ("http://192.168.0.7", False),
        ("http://localhost.mirror.example", False),
        ("http://127.0.0.1.mirror.example", False),
    ],
)
def test_where_the_token_goes(endpoint: str, goes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    headers = remote._headers(remote.repository("a/b", endpoint=endpoint))
    assert ("Bearer hf_secret" in headers.values()) == goes and ("hf_secret" in str(headers)) == goes


@pytest.mark.parametrize("userinfo", ["ann:S3CRET", "ann:S3%40CRET", "S3CRET", ":S3CRET", "ann:S3@CRET"])
def test_a_password_in_the_address_is_used_and_never_told(
    hub: Hub, tmp_path: Path, userinfo: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import base64
    import logging
    from urllib.parse import unquote

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http://", f"http://{userinfo}@"))
    assert is_all_right(hub, download(folder=tmp_path))
    user, _, password = unquote(userinfo).partition(":")
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    assert {one.token for one in hub.asked if one.server == "hub"} == {f"Basic {login}"}
    assert {one.token for one in hub.asked if one.server == "cdn"} == {None}
    hub.faults.status = {"listing": (403, "")}
    said = says(lambda: download(folder=tmp_path))
    hub.faults.status = {SHARD: (500, "")}
    said += says(lambda: download(folder=tmp_path / "b"))
    said += repr(remote.repository("a/b"))
    for text in (said, caplog.text):
        assert hub.url in text and "S3" not in text and "CRET@" not in text and "hf_secret" not in text


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://ann:S3CRET@127.0.0.1:x",
        "http://ann:S3/CRET@mirror.example",
        "http://ann:12/S3CRET@mirror.example",
        "http://ann:S3 CRET@mirror.example",
        "ann:S3CRET@mirror.example",
        "ftp://ann:S3CRET@mirror.example",
        "http://mirror.example?token=S3CRET",
        "http://mirror.example/#S3@CRET",
    ],
)
def test_an_address_that_cannot_be_used_is_told_without_its_password(tmp_path: Path, endpoint: str) -> None:
    said = says(lambda: download(folder=tmp_path, endpoint=endpoint))
    assert "one like https://" in said and "S3" not in said and "CRET@" not in said


@pytest.mark.parametrize("token", ["hf_\u00e9S3CRET"])
def test_a_token_that_cannot_be_sent_is_not_repeated(
    hub: Hub, tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert "S3CRET" not in says(lambda: download(folder=tmp_path))


@pytest.mark.parametrize("proxy", ["http://ann:S3CRET@127.0.0.1:1", "sox://ann:S3CRET@127.0.0.1", "http://ann:S3@c:x"])
def test_the_password_of_a_proxy_is_never_told(
    tmp_path: Path, proxy: str, asked_over: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    asked_over(proxy)
    said = says(lambda: download(folder=tmp_path, endpoint="http://mirror.example"))
    assert "S3" not in said and "http://mirror.example" in said


# Links --------------------------------------------------------------------------------------------------------------


def test_no_link_is_written_through(hub: Hub, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    target = tmp_path / "models" / NAME
    target.mkdir(parents=True)
    digest = hub.entry(SHARD)["lfs"]["sha256"][:8]
    (target / f"{SHARD}.{digest}.part").symlink_to(precious)
    (target / f"{SHARD}.00000000.part").symlink_to(precious)
    (target / "config.json").symlink_to(precious)
    assert is_all_right(hub, download(folder=target.parent))
    assert precious.read_bytes() == b"precious" and not any(path.is_symlink() for path in target.iterdir())
    (target / "tokenizer.json").unlink()
    (target / module.LOCK).unlink()
    (target / module.LOCK).symlink_to(precious)
    assert "is a link" in says(lambda: download(folder=target.parent))
    assert precious.read_bytes() == b"precious"


@pytest.mark.skipif(os.name == "nt", reason="modes are another thing there")
def test_files_have_the_mode_of_other_new_files(hub: Hub, tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        target = download(folder=tmp_path)
    finally:
        os.umask(umask)
    assert {(target / name).stat().st_mode & 0o777 for name in NEEDED} == {0o640}


# Folders that cannot take it ----------------------------------------------------------------------------------------


def test_too_little_room_is_told_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    said = says(lambda: download(folder=tmp_path))
    assert f"needs 402.9 kB more in {tmp_path / NAME}, where 100.0 kB are free" in said
    assert hub.asked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_disk_that_fills_up_is_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAME).mkdir()
    part = tmp_path / NAME / f"{SHARD}.{hub.entry(SHARD)['lfs']['sha256'][:8]}.part"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_open_to_append", lambda path: (Path("/dev/full") if path == part else path).open("a+b"))
        said = says(lambda: download(folder=tmp_path))
    assert f"no space left for {tmp_path / NAME}, which needs 402.9 kB in all" in said
    assert is_all_right(hub, download(folder=tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="files are limited by another means there")
def test_a_disk_that_takes_no_large_files_is_told(hub: Hub, tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        said = says(lambda: download(folder=tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "takes no file of 246.2 kB" in said and "another disk" in said


def test_a_folder_that_is_read_only_or_no_folder_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    assert f"{tmp_path / 'file' / NAME} cannot be written" in says(lambda: download(folder=tmp_path / "file"))
    monkeypatch.setenv("HF_TOKEN", "x")  # else the library looks for one in a home that is not ours to read
    with read_only(lambda folder: None) as folder:
        said = says(lambda: download(folder=folder))
    assert f"{folder / NAME} cannot be written (Permission denied)" in said
    assert "choose another folder with 402.9 kB free" in said and hub.asked == []


def test_a_read_only_folder_that_has_everything_is_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "x")
    with read_only(lambda folder: download(folder=folder)) as folder:
        hub.reset()
        assert is_all_right(hub, download(folder=folder))
    assert hub.listings == 1 and hub.asked == []


# Settings and the command -------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download(folder=tmp_path)
    tokens = {one.server: set() for one in hub.asked}
    for one in hub.asked:
        tokens[one.server].add(one.token)
    assert tokens == {"hub": {"Bearer hf_secret"}, "cdn": {None}}


def test_the_mirror_is_read_when_the_download_begins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_all_right(hub, download(folder=tmp_path / "a", revision=hub.commit))
    folder = tmp_path / "a" / NAME
    with Hub(folder) as mirror, Hub(folder) as other:
        monkeypatch.setenv("HF_ENDPOINT", mirror.url)
        assert is_all_right(hub, download(folder=tmp_path / "b"))
        assert is_all_right(hub, download(folder=tmp_path / "c", endpoint=f"{other.url}/"))
        assert (hub.listings, mirror.listings, other.listings) == (1, 1, 1)


def test_the_command_tells_where_it_is(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "with space \u00e9\u5199"
    assert main(["download", "--folder", str(folder), "--endpoint", hub.url]) == 0
    said = capsys.readouterr()
    assert said.out == f"{folder / NAME}\n" and "403k/403k" in said.err.replace("403kB", "403k")
    assert is_all_right(hub, folder / NAME)
    hub.faults.status = {"listing": (404, "RevisionNotFound")}
    assert main(["download", "--folder", str(folder), "--revision", "v2"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m dimoo_core download: Alpha-VLLM/Lumina-DiMOO")


def test_the_stopped_command_says_how_to_go_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_grow", stop)
    assert main(["download", "--folder", str(tmp_path)]) == 130
    assert "what is downloaded is kept, the same command resumes" in capsys.readouterr().err


def test_the_command_knows_the_comfyui_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dimoo_core.pipeline as command

    assert command.model_folder() == Path("models")
    place = tmp_path / "ComfyUI" / "custom_nodes" / "dimoo-nodes" / "dimoo_core" / "pipeline.py"
    monkeypatch.setattr(command, "__file__", str(place))
    assert command.model_folder() == tmp_path / "ComfyUI" / "models" / "dimoo"


# Its parts ----------------------------------------------------------------------------------------------------------


def test_hashes_are_those_of_git_and_sha256(tmp_path: Path) -> None:
    content = b"test content\n"
    small = remote.RemoteFile("a", len(content), "d670460b4b4aece5915caf5c68d12f560a9fe3e4")  # `git hash-object`
    large = remote.RemoteFile("a", len(content), hashlib.sha256(content).hexdigest())
    for file in (small, large):
        hasher = file.hasher()
        hasher.update(content)
        assert hasher.hexdigest() == file.digest


def test_background_work_hands_on_its_items_and_its_error() -> None:
    def work() -> Iterator[int]:
        yield from range(100)
        raise KeyError("lost")

    seen = []
    with pytest.raises(KeyError, match="lost"):
        for one in run_in_background(work(), lambda: None):
            seen.append(one)
    assert seen == list(range(100))


def test_background_work_that_is_given_up_is_closed() -> None:
    closed = threading.Event()

    def work() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    items = run_in_background(work(), lambda: None)
    next(items)
    items.close()
    assert closed.wait(10)
