"""Pickled codes from strangers: the released files are read, everything else is refused and nothing in it happens."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimoo_core.sequence.token_table import RELEASED
from dimoo_core.training.released_files import MAX_CODES_FILE, _Machine, read_codes_file

from ..tiny import TABLE

ROOT = Path(__file__).parents[2]
FILES = {
    name: base64.b64decode(content)
    for name, content in json.loads((ROOT / "tests/golden_training/hostile.json").read_text("ascii")).items()
}
GOOD = [name for name in FILES if name.startswith("pictures/") and "one_code" not in name]
ANSWER = FILES["pictures/answer.pkl"]

# Reads the files named on standard input with 300 MB and 20 s beyond what the imports take; says what became of each,
# which modules that imported, and by how much the memory grew.
READER = """
import json, resource, sys
from dimoo_core.sequence.token_table import RELEASED
from dimoo_core.training.released_files import read_codes_file

names = json.loads(sys.stdin.read())
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
resource.setrlimit(resource.RLIMIT_CPU, (used + 20, used + 20))
before, modules, became = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, set(sys.modules), {}
for name in names:
    try:
        became[name] = read_codes_file(name, RELEASED).tolist()
    except ValueError as error:
        became[name] = str(error)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([became, sorted(set(sys.modules) - modules), grown]))
"""


def write(folder: Path, content: bytes, name: str = "a.pkl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refusal(folder: Path, content: bytes) -> str:
    with pytest.raises(ValueError) as refused:
        read_codes_file(write(folder, content), RELEASED)
    message = str(refused.value)
    assert "a.pkl does not hold the codes of a picture (" in message and message.count("\n") == 0
    return message


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory")
def test_hostile_files_are_refused_in_a_sentence_and_nothing_else_happens(tmp_path: Path) -> None:
    for name, content in FILES.items():
        write(tmp_path, content, name)
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(sorted(FILES)),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    became, imported, grown = json.loads(done.stdout)
    assert not imported and grown < 50_000, "kB"
    assert sorted(tmp_path.rglob("*")) == before
    for name in FILES:
        if name.startswith("pictures/") or name == "hostile/after_a_good_one.pkl":
            assert len(became[name]) == 5 and len(became[name][0]) == 7, name
        else:
            assert became[name].startswith(f"{name} does not hold the codes of a picture ("), became[name]


def test_every_way_to_write_a_picture_gives_its_codes(tmp_path: Path) -> None:
    expected = read_codes_file(write(tmp_path, ANSWER), RELEASED)
    assert expected.shape == (5, 7) and expected.dtype == torch.int64
    assert expected[0, :4].tolist() == [810, 7070, 4165, 7703]
    for name in GOOD:
        assert torch.equal(read_codes_file(write(tmp_path, FILES[name]), RELEASED), expected), name
    assert read_codes_file(write(tmp_path, FILES["pictures/one_code.pkl"]), RELEASED).unique().numel() == 1


@pytest.mark.parametrize("name", GOOD)
def test_no_part_of_a_file_is_taken_for_the_whole(tmp_path: Path, name: str) -> None:
    for size in range(len(FILES[name])):
        refusal(tmp_path, FILES[name][:size])


@given(st.sampled_from(GOOD), st.data())
@settings(max_examples=100, deadline=None)
def test_a_changed_byte_gives_codes_of_the_table_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp(), bytes(content), "changed.pkl")
    try:
        codes = read_codes_file(path, RELEASED)
    except ValueError:
        return
    assert codes.numel() == 35 and 0 <= int(codes.min()) <= int(codes.max()) < RELEASED.codebook_size


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_bytes_make_a_dict_or_a_value_error(content: bytes) -> None:
    try:
        assert isinstance(_Machine(content).run(), dict)
    except ValueError as error:
        assert str(error)


def test_bools_are_no_numbers_in_any_protocol(tmp_path: Path) -> None:
    text = FILES["pictures/protocol_0.pkl"]
    first = text.index(b"I1")
    end = text.index(b"\n", first)
    assert "not a whole number" in refusal(tmp_path, text[:first] + b"I01" + text[end:])


def test_a_refusal_names_what_is_wrong(tmp_path: Path) -> None:
    assert "operation b'c'" in refusal(tmp_path, FILES["hostile/global_os_system.pkl"])
    assert "34 codes" in refusal(tmp_path, FILES["hostile/length_differs.pkl"])
    assert f"more than {MAX_CODES_FILE} bytes" in refusal(tmp_path, b"K\1" * MAX_CODES_FILE)
    path = write(tmp_path, ANSWER)
    with pytest.raises(ValueError, match=r"id 127166 is not one of the image codes 272\.\.303 of this checkpoint"):
        read_codes_file(path, TABLE)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pkl cannot be read \(No such file"):
        read_codes_file(tmp_path / "none.pkl", RELEASED)
    with pytest.raises(ValueError, match="it is not a file"):
        read_codes_file(tmp_path, RELEASED)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pkl")
        with pytest.raises(ValueError, match="it is not a file"):
            read_codes_file(tmp_path / "pipe.pkl", RELEASED)
