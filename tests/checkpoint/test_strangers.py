"""Files of strangers and of other systems: byte order marks, macOS litter, panics of libraries, values without end."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dimoo_core.checkpoint import headers, load
from dimoo_core.checkpoint.convert import convert
from dimoo_core.checkpoint.export import export_transformer, export_vq
from dimoo_core.checkpoint.find import candidates, find
from dimoo_core.checkpoint.load import load_transformer, load_vq
from dimoo_core.sequence.tokenizer import TextTokenizer

from ..tiny import AUTOENCODER, SPECIALS, TABLE, TRANSFORMER, open_all, tokenizer_json, write_checkpoint

ROOT = Path(__file__).parents[2]
WEIGHTS, VQ_FILE = "model.safetensors", "vqvae/diffusion_pytorch_model.safetensors"
JSONS = ("config.json", "tokenizer.json", "vqvae/config.json", "model.safetensors.index.json")


class PanicException(BaseException):
    """As pyo3 makes one for each library written in Rust."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def complaint(call: Callable[[], object]) -> str:
    """The one sentence of a ValueError."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable() and message.endswith(".") and len(message) < 700, message[:1000]
    return message


# Byte order marks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", JSONS)
def test_a_byte_order_mark_changes_nothing(tmp_path: Path, name: str, encoding: str) -> None:
    made = write_checkpoint(tmp_path / "model", shards=2)
    before = find(made)
    text = (made / name).read_text(encoding="utf-8")
    (made / name).write_text(text, encoding=encoding)
    found = find(made)
    open_all(made)
    assert found.config_json == before.config_json and found.vq_config_json == before.vq_config_json
    assert found.tokenizer_text() == before.tokenizer_text() and candidates(tmp_path) == [made]


def test_a_byte_order_mark_in_a_single_file_changes_nothing(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    convert(find(folder), path, "bf16")
    state = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for name in ("config.json", "vqvae/config.json"):
        metadata[name] = "\ufeff" + metadata[name]
    marked = b"\xef\xbb\xbf" + bytes(state["tokenizer.json"].tolist())
    save_file(state | {"tokenizer.json": torch.tensor(list(marked), dtype=torch.uint8)}, path, metadata=metadata)
    open_all(path)
    assert find(path).tokenizer_text() == find(folder).tokenizer_text()


# Names that begin with a dot ----------------------------------------------------------------------------------------


def litter(folder: Path) -> None:
    """What macOS leaves on a drive of another system: for every file one of 4 kB whose name begins with `._`."""
    for path in list(folder.rglob("*")):
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(b"\0\x05\x16\x07" + bytes(4092))
    for place in (folder, folder / "vqvae"):
        if place.is_dir():
            (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


@pytest.mark.parametrize("shards", [1, 2])
def test_litter_of_macos_is_passed_over(tmp_path: Path, shards: int) -> None:
    made = write_checkpoint(tmp_path / "model", shards=shards)
    litter(tmp_path)
    open_all(made)
    assert candidates(tmp_path) == [made]
    assert not any(path.name.startswith(".") for path in find(made).files)


def test_litter_beside_shards_without_an_index_and_a_vq_of_another_name_is_passed_over(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "model", shards=2)
    (made / "model.safetensors.index.json").unlink()
    (made / "vqvae").rename(made / "pictures")
    shutil.copytree(made / "pictures", made / ".pictures")
    litter(made)
    open_all(made)
    (made / "model-00001-of-00002.safetensors").rename(made / "w.bin")
    (made / "model-00002-of-00002.safetensors").unlink()
    assert "w.bin is a pickle" in complaint(lambda: find(made))


def test_litter_is_not_named_as_a_lost_shard(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "model", shards=2)
    litter(made)
    (made / "model-00001-of-00002.safetensors").rename(made / "moved.safetensors")
    assert "(there, but not named: moved.safetensors)" in complaint(lambda: find(made))


def test_litter_of_a_single_file_is_not_listed(folder: Path, tmp_path: Path) -> None:
    convert(find(folder), tmp_path / "files" / "one.safetensors", "bf16")
    shutil.copy(tmp_path / "files" / "one.safetensors", tmp_path / "files" / "._one.safetensors")
    assert candidates(tmp_path / "files") == [tmp_path / "files" / "one.safetensors"]


# Tokenizers ---------------------------------------------------------------------------------------------------------

CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
MERGES = {"continuing_subword_prefix": "##", "merges": [["a", "b"]]}
AT_LOAD: dict[str, Callable[[dict], object]] = {
    "a charsmap of noise": lambda made: made.update(normalizer=CHARSMAP),
    "merges shorter than their prefix": lambda made: made["model"].update(MERGES),
    "merges out of vocabulary": lambda made: made["model"].update(merges=[["a", "b"]]),
    "an id of 64 bits": lambda made: made["added_tokens"][0].update(id=2**63),
    "a broken pattern": lambda made: made.update(decoder={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}),
    "an empty vocabulary": lambda made: made.update(model={"type": "Unigram", "unk_id": 0, "vocab": []}),
}
STRIDE = {"max_length": 1, "strategy": "LongestFirst", "stride": 5, "direction": "Right"}
SECOND = {"max_length": 2, "strategy": "OnlySecond", "stride": 2, "direction": "Right"}
SLOW = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
SEQUENCE_B = [{"Sequence": {"id": "B", "type_id": 0}}]
WORDS = {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}}
AT_USE: dict[str, Callable[[dict], object]] = {
    "an empty string replaced": lambda made: made.update(
        normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x"}
    ),
    "nothing prepended": lambda made: made.update(normalizer={"type": "Prepend", "prepend": ""}),
    "pieces of no length": lambda made: made.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "a slow pattern": lambda made: made.update(pre_tokenizer=SLOW),
    "a stride longer than the text": lambda made: made.update(truncation=STRIDE),
    "a second text to cut": lambda made: made.update(truncation=SECOND),
    "a template of a second text": lambda made: made.update(
        post_processor={"type": "TemplateProcessing", "single": SEQUENCE_B, "pair": SEQUENCE_B, "special_tokens": {}}
    ),
    "no unknown token": lambda made: made.update(model=WORDS),
}


def tricked(change: Callable[[dict], object]) -> str:
    made = json.loads(tokenizer_json())
    change(made)
    return json.dumps(made)


@pytest.mark.parametrize("name", AT_LOAD)
def test_a_tokenizer_that_breaks_the_library_at_load_is_one_sentence(folder: Path, name: str) -> None:
    (folder / "tokenizer.json").write_text(tricked(AT_LOAD[name]))
    assert "tokenizer.json is not a usable tokenizer" in complaint(lambda: open_all(folder))


@pytest.mark.parametrize("name", AT_USE)
def test_a_tokenizer_that_breaks_the_library_at_a_prompt_is_one_sentence(name: str) -> None:
    tokenizer = TextTokenizer.from_str(tricked(AT_USE[name]))
    for call in (tokenizer.encode, tokenizer.defuse):
        said = complaint(lambda call=call: call("a" * 60 + "! b"))
        assert "tokenizer.json of this checkpoint cannot be applied" in said


@pytest.mark.parametrize("ids", [[-1], [2**32], [2**70], [10**6, -5]])
def test_ids_that_no_token_can_have_are_one_sentence(ids: list[int]) -> None:
    tokenizer = TextTokenizer.from_str(tokenizer_json())
    assert tokenizer.decode([72, 105, 10**6, 4 * 10**9]) == tokenizer.decode([72, 105])
    assert "cannot be applied" in complaint(lambda: tokenizer.decode(ids))


class Panicking:
    """A tokenizer of the library's that works but for one of its functions."""

    def __init__(self, function: str, error: BaseException) -> None:
        from tokenizers import Tokenizer

        self._real, self._function, self._error = Tokenizer.from_str(tokenizer_json()), function, error

    def __getattr__(self, name: str) -> Any:
        if name != self._function:
            return getattr(self._real, name)

        def fail(*_: object, **__: object) -> None:
            raise self._error

        return fail


USES: dict[str, Callable[[TextTokenizer], object]] = {
    "get_added_tokens_decoder": lambda tokenizer: tokenizer,
    "encode": lambda tokenizer: tokenizer.encode("x"),
    "decode": lambda tokenizer: tokenizer.decode([1]),
    "token_to_id": lambda tokenizer: tokenizer.check(TABLE, 304),
    "get_vocab": lambda tokenizer: tokenizer.check(TABLE, 304),
}


@pytest.mark.parametrize("function", USES)
def test_a_panic_anywhere_in_the_library_is_a_value_error(function: str) -> None:
    def use(error: BaseException) -> object:
        return USES[function](TextTokenizer(Panicking(function, error)))  # type: ignore[arg-type]

    assert "cannot be applied" in complaint(lambda: use(PanicException("index out of bounds\n" + "x" * 10**5)))
    for error in (KeyboardInterrupt(), SystemExit(3), MemoryError()):
        with pytest.raises(type(error)) as caught:
            use(error)
        assert caught.value is error


def test_a_tokenizer_that_ignores_spaces_does_not_defuse_for_ever() -> None:
    """A token may be looked for in the text without spaces: then no space takes it apart."""
    made = json.loads(tokenizer_json())
    for token in made["added_tokens"]:
        token["normalized"] = True
    made["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
    tokenizer = TextTokenizer.from_str(json.dumps(made))
    assert "takes plain text for control tokens" in complaint(lambda: tokenizer.defuse("say </user>"))


def test_half_a_surrogate_pair_is_named() -> None:
    tokenizer = TextTokenizer.from_str(tokenizer_json())
    for call in (tokenizer.encode, tokenizer.defuse):
        assert "Character 3 of the text is half of a surrogate pair ('\\ud83d')" in complaint(
            lambda call=call: call("a \ud83d b")
        )
    assert tokenizer.encode("a \U0001f600 b")


MEMORY = """
import resource, sys
from dimoo_core.checkpoint.find import find
from dimoo_core.checkpoint.load import load_tokenizer
load_tokenizer(find(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_tokenizer(find(sys.argv[2]))
except ValueError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""


def test_a_huge_tokenizer_is_not_read(folder: Path, tmp_path: Path) -> None:
    huge = write_checkpoint(tmp_path / "huge")
    os.truncate(huge / "tokenizer.json", 3 << 30)
    command = [sys.executable, "-c", MEMORY, str(folder), str(huge)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    megabytes, said = told.split(" ", 1)
    assert int(megabytes) < 200 and "tokenizer.json is not a usable tokenizer (it has more than 67108864 bytes)" in said


def test_a_huge_tokenizer_in_a_single_file_is_refused(folder: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "one.safetensors"
    convert(find(folder), path, "bf16")
    monkeypatch.setattr("dimoo_core.checkpoint.single_file.MAX_TOKENIZER", 100)
    assert re.search(r"tokenizer\.json in .* has \d+ bytes, expected at most 100", complaint(lambda: find(path)))


# Weights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_that_change_after_they_were_found_are_one_sentence(folder: Path, dtype: torch.dtype) -> None:
    found = find(folder)
    save_file({"other": torch.zeros(3)}, folder / WEIGHTS)
    assert str(folder / WEIGHTS) in complaint(lambda: load_transformer(found, dtype=dtype))
    (folder / WEIGHTS).unlink()
    assert "cannot be read" in complaint(lambda: load_transformer(found, dtype=dtype))
    (folder / VQ_FILE).write_bytes(b"<html>")
    assert "is a web page" in complaint(lambda: load_vq(found))


@pytest.mark.parametrize("error", [PanicException("slice index\nstarts"), RuntimeError("x" * 10**5), TypeError("no")])
def test_whatever_the_library_raises_about_a_file_is_one_sentence(
    folder: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    found = find(folder)
    for module in (load, headers):
        monkeypatch.setattr(module, "safe_open", fail)
    for call in (
        lambda: find(folder),
        lambda: load_transformer(found),
        lambda: load_transformer(found, dtype=torch.float16),
        lambda: load_vq(found),
        lambda: found.weights["model.transformer.ln_f.weight"].read(slice(0, 3)),
    ):
        assert str(folder) in complaint(call)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_an_interrupt_while_weights_are_read_passes(folder: Path, error: BaseException, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    found = find(folder)
    monkeypatch.setattr(load, "safe_open", fail)
    with pytest.raises(type(error)):
        load_transformer(found)


def test_a_folder_that_may_not_be_listed_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert f"{folder} cannot be listed (Permission denied)" in complaint(lambda: find(folder))


# Values without end -------------------------------------------------------------------------------------------------

LONG = "x" * 10**5
DEEP = "[" * 900 + "]" * 900
HUGE = 10**4000
ODD: dict[str, dict[str, Any]] = {
    **{f"a huge {name}": {name: HUGE} for name in ("d_model", "n_layers", "n_heads", "vocab_size", "rope_theta")},
    **{f"an endless {name}": {name: LONG} for name in ("d_model", "model_type", "rope_theta", "dimoo_token_ids")},
    **{f"a nested {name}": {name: "DEEP"} for name in ("d_model", "model_type", "block_type", "dimoo_defaults")},
    "an infinite angle": {"rope_theta": float("inf")},
    "an endless default": {"dimoo_defaults": {LONG: 1}},
    "a default without end": {"dimoo_defaults": {"size": [1] * 10**5}},
    "an infinite default": {"dimoo_defaults": {"cfg": float("inf")}},
    "a huge default": {"dimoo_defaults": {"cfg": HUGE}},
    "a huge number of steps": {"dimoo_defaults": {"steps": HUGE}},
    "a huge id": {"dimoo_token_ids": {**TABLE.to_dict(), "mask": HUGE}},
    "an endless id": {"dimoo_token_ids": {**TABLE.to_dict(), "mask": LONG}},
    "an endless name of an id": {"dimoo_token_ids": {**TABLE.to_dict(), LONG: 1}},
    "a name of an id with half a pair": {"dimoo_token_ids": {**TABLE.to_dict(), "\ud800\n": 1}},
    "a huge offset": {"dimoo_token_ids": {**TABLE.to_dict(), "code_offset": HUGE}},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_values_of_a_config_are_cut_in_the_message(folder: Path, name: str) -> None:
    text = json.dumps(TRANSFORMER | ODD[name]).replace('"DEEP"', DEEP)
    (folder / "config.json").write_text(text)
    said = complaint(lambda: open_all(folder))
    assert str(folder) in said and "xxxx" * 25 not in said and "0000" * 25 not in said


VQ_ODD: dict[str, dict[str, Any]] = {
    "huge": {"layers_per_block": HUGE},
    "endless": {"_class_name": LONG},
    "a list of widths": {"block_out_channels": [8] * 10**5},
    "a huge width": {"block_out_channels": [HUGE]},
    "an endless activation": {"act_fn": LONG},
}


@pytest.mark.parametrize("name", VQ_ODD)
def test_odd_values_of_the_vq_are_cut_in_the_message(folder: Path, name: str) -> None:
    (folder / "vqvae" / "config.json").write_text(json.dumps(AUTOENCODER | VQ_ODD[name]))
    assert str(folder) in complaint(lambda: open_all(folder))


def test_names_of_tensors_are_printed_safely(folder: Path) -> None:
    odd = {f"line\nbreak \x1b[31m {LONG} {number}": torch.zeros(1) for number in range(9)}
    save_file(load_file(folder / WEIGHTS) | odd, folder / WEIGHTS)
    assert "9 unexpected" in complaint(lambda: open_all(folder))
    save_file(odd, folder / "more.safetensors")
    assert "both hold line?break ?[31m" in complaint(lambda: open_all(folder))


def test_names_of_shards_are_printed_safely(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "model", shards=2)
    for name in (LONG, "a\nb", "\ud800", DEEP):
        (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        complaint(lambda: find(made))


# Exports ------------------------------------------------------------------------------------------------------------


def export(folder: Path, source: Path) -> None:
    found = find(source)
    text = found.tokenizer_text()
    export_transformer(folder, load_transformer(found), fields=found.config_json, tokenizer=text)
    export_vq(folder / "vqvae", load_vq(found), fields=found.vq_config_json)


@pytest.mark.skipif(os.name == "nt", reason="modes are another thing there")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_exported_files_have_the_mode_of_other_new_files(folder: Path, tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        export(tmp_path / "export", folder)
        convert(find(folder), tmp_path / "one.safetensors", "int8")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "export").rglob("*") if path.is_file()]
    assert len(files) == 5 and {path.stat().st_mode & 0o777 for path in files} == {mode}
    assert (tmp_path / "one.safetensors").stat().st_mode & 0o777 == mode
    open_all(tmp_path / "export")


def test_an_export_that_is_stopped_leaves_whole_files_and_the_config_comes_last(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    export(old, folder)
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}

    def stop(tensors: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("dimoo_core.checkpoint.headers.save_file", stop)
    for target in (old, new):
        with pytest.raises(KeyboardInterrupt):
            export(target, folder)
    assert before == {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    assert [path.name for path in new.iterdir()] == ["tokenizer.json"] and candidates(new) == []


def test_control_words_stay_what_they_are() -> None:
    """A check of this file's own tokenizer: without a trick in it all is as it should be."""
    tokenizer = TextTokenizer.from_str(tricked(lambda made: None))
    assert tokenizer.encode("</user>") == [SPECIALS["</user>"]]
    assert SPECIALS["</user>"] not in tokenizer.encode(tokenizer.defuse("say </user>"))
