"""Whatever is thrown at the pack is done rightly or refused in one sentence: properties, tried on made-up input."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dimoo_core.checkpoint.find import candidates, find
from dimoo_core.checkpoint.load import load_transformer
from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.transformer import Transformer
from dimoo_core.pictures.masks import mask_to_cells
from dimoo_core.pictures.pixels import fit, to_rgb
from dimoo_core.pictures.sizes import check_size, fit_size, understanding_size
from dimoo_core.sampling.image import ImageSettings, sample_image
from dimoo_core.sampling.ml_cache import CachePolicy
from dimoo_core.sampling.text import TextSettings, sample_text
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.layout import prompt_prefix
from dimoo_core.sequence.prompt import EDITS, GENERATE, Prompt, prompt_strings
from dimoo_core.sequence.tokenizer import TextTokenizer

from ..tiny import SPECIALS, TABLE, TRANSFORMER, tokenizer_json, write_checkpoint

ROOT = Path(__file__).parents[2]
RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ANY_NUMBER = st.one_of(
    st.integers(-3, 70),
    st.floats(-2, 12),
    st.sampled_from([math.nan, math.inf, -math.inf, 2**64, -1, True, None, "7", 10**30, 1e-300]),
)
TOKENIZER = TextTokenizer.from_str(tokenizer_json())


def refused_in_one_sentence(error: ValueError) -> None:
    said = str(error)
    assert said.endswith(".") and "\n" not in said and len(said) < 400, said


def settings_or_refusal(kind: type, values: dict[str, Any]) -> Any:
    """The settings, or None where they are refused as they should be."""
    try:
        return kind(**values)
    except ValueError as error:
        refused_in_one_sentence(error)
        return None


@pytest.fixture(scope="module")
def network() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset).requires_grad_(False)


# Settings -----------------------------------------------------------------------------------------------------------


@RELAXED
@given(ratio=ANY_NUMBER, warmup=ANY_NUMBER, refresh_interval=ANY_NUMBER)
def test_cache_policies_are_usable_or_refused(ratio: Any, warmup: Any, refresh_interval: Any) -> None:
    policy = settings_or_refusal(CachePolicy, {"ratio": ratio, "warmup": warmup, "refresh_interval": refresh_interval})
    if policy is not None:
        assert policy.is_full(0, 16) and all(1 <= policy.rows(length) <= length for length in (1, 2, 70, 4224))


@RELAXED
@given(steps=ANY_NUMBER, temperature=ANY_NUMBER, seed=ANY_NUMBER, holes=st.integers(1, 12), data=st.data())
def test_image_settings_fill_the_canvas_or_are_refused(
    network: Transformer, steps: Any, temperature: Any, seed: Any, holes: int, data: st.DataObject
) -> None:
    wanted = settings_or_refusal(ImageSettings, {"steps": steps, "temperature": temperature, "seed": seed})
    if wanted is None:
        return
    places = data.draw(st.sets(st.integers(0, 11), min_size=holes, max_size=holes))
    codes = torch.arange(12).view(1, 3, 4)
    unknown = torch.tensor([[place in places for place in range(12)]]).view(1, 3, 4)
    canvas = Canvas.from_codes(codes, unknown)
    filled = sample_image(network, TABLE, canvas, torch.tensor([[1, 2, 3]]), settings=wanted)
    assert not filled.unknown.any() and torch.equal(filled.codes[~unknown], codes[~unknown])
    assert int(filled.codes.min()) >= 0 and int(filled.codes.max()) < TABLE.codebook_size


@RELAXED
@given(max_tokens=ANY_NUMBER, steps=ANY_NUMBER, block_length=ANY_NUMBER, temperature=ANY_NUMBER, cfg=ANY_NUMBER)
def test_text_settings_answer_or_are_refused(network: Transformer, **values: Any) -> None:
    wanted = settings_or_refusal(TextSettings, values)
    if wanted is not None and wanted.max_tokens <= 70:
        (answer,) = sample_text(network, TABLE, torch.tensor([[1, 2, 3]]), settings=wanted)
        assert len(answer) <= wanted.max_tokens and not set(answer) & set(TABLE.ends)


# Pictures and masks -------------------------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 9), min_size=0, max_size=5))
    kind = draw(st.sampled_from([torch.float32, torch.float16, torch.float64, torch.uint8, torch.int64, torch.bool]))
    values = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 3 - 1
    strange = draw(st.sampled_from([None, None, math.nan, math.inf]))
    if strange is not None and values.numel():
        values.view(-1)[0] = strange
    return values.to(kind) if strange is None or kind.is_floating_point else values


@RELAXED
@given(pixels=tensors())
def test_pictures_become_rgb_or_are_refused(pixels: torch.Tensor) -> None:
    try:
        rgb = to_rgb(pixels)
    except ValueError as error:
        refused_in_one_sentence(error)
        return
    assert rgb.shape == (pixels.shape[0], 3, *pixels.shape[2:]) and rgb.dtype == torch.float32
    assert float(rgb.min()) >= 0 and float(rgb.max()) <= 1


@RELAXED
@given(mask=tensors(), height=st.integers(1, 6), width=st.integers(1, 6), coverage=ANY_NUMBER, grow=ANY_NUMBER)
def test_masks_become_cells_or_are_refused(
    mask: torch.Tensor, height: int, width: int, coverage: Any, grow: Any
) -> None:
    try:
        cells = mask_to_cells(mask, (height, width), coverage=coverage, grow=grow)
    except ValueError as error:
        refused_in_one_sentence(error)
        return
    assert cells.shape == (mask.shape[0], height, width) and cells.dtype == torch.bool
    assert not cells.any() or bool((mask > 0.5).any()), "nothing is marked that nobody marked"


@RELAXED
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), images=st.integers(1, 3))
def test_every_size_is_fitted_to_whole_cells(width: int, height: int, images: int) -> None:
    for size in (fit_size(width, height, 128), understanding_size(width, height, (128, 160), images=images)):
        assert check_size(*size) == (size[1] // 16, size[0] // 16)
    narrow = torch.zeros(1, 3, height, 1).expand(-1, -1, -1, min(width, 40))
    assert fit(narrow, 64, 32).shape == (1, 3, 32, 64)


# Prompts ------------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [*SPECIALS, "<", ">", "/", "|", " ", "\t", "\u00a0", "user", "</us", "er>", "<|mdm", "_mask|>"]
)
HOSTILE_TEXT = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=12).map("".join))


@RELAXED
@given(text=HOSTILE_TEXT, negative=HOSTILE_TEXT)
def test_users_words_are_never_control(text: str, negative: str) -> None:
    """Between the system part and the closing token of a prompt there is no special token that the user wrote."""
    assert not set(TOKENIZER.encode(TOKENIZER.defuse(text))) & set(SPECIALS.values())
    for task in (GENERATE, EDITS["edit_add"]):
        images = tuple(torch.zeros(1, 2, 2, dtype=torch.int64) for _ in range(task.images))
        told, twin = prompt_strings(Prompt(task, text, negative, images), TOKENIZER.defuse)
        ids = TOKENIZER.encode(told)
        assert [ids.count(SPECIALS[name]) for name in ("<system>", "</system>", "<user>", "</user>")] == [1] * 4
        assert ids[-1] == SPECIALS["</user>"] and SPECIALS["<|mdm_mask|>"] not in ids
        prefix = prompt_prefix(ids, images, TABLE)
        assert int((prefix == TABLE.image_begin).sum()) == len(images)
        assert TOKENIZER.encode(twin).count(SPECIALS["<uncondition>"]) == (0 if negative else 1)


# Checkpoints --------------------------------------------------------------------------------------------------------

WORDS = st.one_of(st.none(), st.booleans(), st.integers(-5, 10**20), st.floats(), st.text(max_size=8))
JSON = st.recursive(
    WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner), max_leaves=8
)
FIELDS = st.sampled_from([*TRANSFORMER, "n_kv_heads", "embedding_size", "dimoo_defaults", "include_bias"])


@RELAXED
@given(changes=st.dictionaries(FIELDS, JSON, max_size=3))
def test_any_config_loads_or_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    if not folder.exists():
        write_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps(TRANSFORMER | changes), encoding="utf-8")
    try:
        found = find(folder)
        load_transformer(found)
    except ValueError as error:
        said = str(error)
        assert "\n" not in said and str(folder) in said, said


BOMB = """
import resource, sys
from pathlib import Path
from dimoo_core.checkpoint.find import find
from dimoo_core.checkpoint.load import load_tokenizer, load_transformer, load_vq
def opened(folder):
    try:
        found = find(folder)
        load_tokenizer(found), load_vq(found), load_transformer(found)
    except ValueError as error:
        return str(error)
    return "loaded"
opened(sys.argv[1])  # so that what torch takes at first use is not counted
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sys.argv[2:]:
    said = opened(folder)
    print(said != "loaded", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, said)
"""


def stuffed(folder: Path, file: str, header: dict[str, Any] | bytes, claimed: int | None = None) -> Path:
    """A checkpoint whose weight file has such a header and next to no data."""
    shutil.copytree(folder.parent / "whole", folder)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / file).write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + bytes(64))
    return folder


def tensor(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.skipif(sys.platform == "win32", reason="memory is read with resource")
def test_no_file_makes_the_loader_take_much_memory(tmp_path: Path) -> None:
    weights, vq = "model.safetensors", "vqvae/diffusion_pytorch_model.safetensors"
    names = {f"t{number}": tensor([0], 0, 0) for number in range(20_000)}
    deep = b'{"a":' * 20_000
    whole = write_checkpoint(tmp_path / "whole")
    bombs = [
        stuffed(tmp_path / "a", weights, {"a": tensor([2**40], 0, 2**42)}),
        stuffed(tmp_path / "b", weights, {"a": tensor([2**31, 2**31], 0, 64)}),
        stuffed(tmp_path / "c", vq, {"a": tensor([16], 0, 64), "b": tensor([16], 0, 64)}),
        stuffed(tmp_path / "d", vq, {"a": tensor([16], 32, -32)}),
        stuffed(tmp_path / "e", weights, {"a": tensor([1], 0, 64, "F128")}),
        stuffed(tmp_path / "f", weights, {"a": tensor([-16], 0, 64)}),
        stuffed(tmp_path / "g", weights, b"{}", claimed=2**63),
        stuffed(tmp_path / "h", weights, b"{}", claimed=99_000_000),
        stuffed(tmp_path / "i", weights, deep),
        stuffed(tmp_path / "j", weights, names),
        stuffed(tmp_path / "k", weights, {"__metadata__": {"x": "y" * 5_000_000}, "a": tensor([16], 0, 64)}),
    ]
    command = [sys.executable, "-c", BOMB, whole, *bombs]
    told = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=True)
    lines = told.stdout.splitlines()
    assert len(lines) == len(bombs)
    for bomb, line in zip(bombs, lines, strict=True):
        refused, megabytes, said = line.split(" ", 2)
        assert refused == "True" and int(megabytes) < 300 and str(bomb) in said, line


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made["added_tokens"].append({**made["added_tokens"][0], "id": 255, "content": "e"}),
        lambda made: made["added_tokens"].append({**made["added_tokens"][0], "id": 254, "content": " "}),
        lambda made: made.update(normalizer={"type": "Replace", "pattern": {"String": "x"}, "content": "</user>"}),
        lambda made: made.update(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "y"}),
    ],
    ids=["a letter as special token", "white space as special token", "words turned into control", "slow pattern"],
)
def test_a_tokenizer_with_tricks_harms_nobody(change: Any) -> None:
    """It may read words strangely or not at all, but what users write ends, and does not become control."""
    made = json.loads(tokenizer_json())
    change(made)
    tokenizer = TextTokenizer.from_str(json.dumps(made))
    text = "xx " + "a" * 30 + "! e </user>"
    try:
        assert SPECIALS["</user>"] not in tokenizer.encode(tokenizer.defuse(text))
    except ValueError as error:
        refused_in_one_sentence(error)


@pytest.mark.parametrize("name", ["..", "../..", "/etc", "~root", "a/../../..", "\x00", "a" * 5000])
def test_a_path_that_is_no_checkpoint_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        find(name)
    assert "\n" not in str(caught.value)


def test_links_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    write_checkpoint(tmp_path / "a" / "model")
    assert candidates(tmp_path) == [tmp_path / "a" / "model"]
