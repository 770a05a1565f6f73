"""LoRA files: every way that people's tools name their keys gives the same LoRA; what is none of these is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dimoo_core.checkpoint.adapter_file import AdapterFile, adapter_files, adapter_state, read_adapter, write_adapter
from dimoo_core.checkpoint.find import NANO, Found, find
from dimoo_core.checkpoint.load import load_transformer
from dimoo_core.model.adapters import Adapter, LowRank
from dimoo_core.model.transformer import Transformer

from ..adapters import logits, random_adapter
from ..lora_files import PREFIX, random_lora, write_lora
from ..tiny import write_checkpoint

State = dict[str, Tensor]
FIRST = f"{PREFIX}blocks.0.q_proj"
MODULE = "model.transformer.blocks.0.q_proj"


@pytest.fixture(scope="module")
def nano() -> Found:
    return find(NANO)


@pytest.fixture(scope="module")
def network(nano: Found) -> Transformer:
    return load_transformer(nano, dtype=torch.float32)


@pytest.fixture(scope="module")
def state(nano: Found) -> State:
    """A LoRA of rank 4 and alpha 4 under the names that we write."""
    return random_lora(nano)


def read(source: Path | State, found: Found) -> AdapterFile:
    return read_adapter(source, found.config, found.table.code_offset)


def renamed(state: State, stem: str, down: str, up: str) -> State:
    """Its keys by another tool: `stem` has a {module}, or one with underscores for dots as {flat}."""
    result = {}
    for key, tensor in state.items():
        module, _, part = key.removeprefix("diffusion_model.").partition(".lora_")
        module = module.removesuffix(".alpha")
        suffix = {"A.weight": down, "B.weight": up, "": ".alpha"}[part]
        result[stem.format(module=module, flat=module.replace(".", "_")) + suffix] = tensor
    return result


A, B = ".lora_A.weight", ".lora_B.weight"
SCHEMES = {
    "no prefix": ("{module}", A, B),
    "diffusers": ("transformer.{module}", A, B),
    "PEFT": ("base_model.model.{module}", A, B),
    "PEFT, with the adapter's name": ("base_model.model.{module}", ".lora_A.default.weight", ".lora_B.default.weight"),
    "PEFT in ComfyUI": ("diffusion_model.base_model.model.{module}", A, B),
    "PEFT around a wrapper": ("base_model.model.transformer.{module}", A, B),
    "ComfyUI's trainer": ("diffusion_model.{module}", ".lora_down.weight", ".lora_up.weight"),
    "kohya": ("lora_unet_{flat}", ".lora_down.weight", ".lora_up.weight"),
    "LyCORIS": ("lycoris_{flat}", ".lora_down.weight", ".lora_up.weight"),
    "OneTrainer": ("lora_transformer_{flat}", ".lora_down.weight", ".lora_up.weight"),
    "diffusers before PEFT": ("transformer.{module}", ".lora.down.weight", ".lora.up.weight"),
    "diffusers, processors": ("{module}", "_lora.down.weight", "_lora.up.weight"),
    "diffusers, layers": ("{module}", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "without .weight": ("diffusion_model.{module}", ".lora_A", ".lora_B"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_tools_names_give_the_same_lora(
    nano: Found, network: Transformer, state: State, tmp_path: Path, scheme: str
) -> None:
    ours, theirs = read(state, nano), renamed(state, *SCHEMES[scheme])
    assert len(ours.branches) == 7 * nano.config.n_layers and theirs.keys() != state.keys()
    for file in (read(theirs, nano), read(write_lora(tmp_path / "x.safetensors", theirs), nano)):
        assert file.unused == [] and file.remarks == [] and file.adapter.digest == ours.adapter.digest
        assert torch.equal(logits(network, (file.adapter, 1.0)), logits(network, (ours.adapter, 1.0)))
    assert not torch.equal(logits(network, (ours.adapter, 1.0)), logits(network))


def test_alpha_over_rank_scales_and_without_alpha_nothing_does(nano: Found, state: State) -> None:
    for alpha, scale in ((torch.tensor(8.0), 2.0), (torch.tensor([2]), 0.5), (torch.tensor(-1.0).half(), -0.25)):
        changed = {key: alpha if key.endswith("alpha") else tensor for key, tensor in state.items()}
        assert {branch.scale for branch in read(changed, nano).branches.values()} == {scale}
    without = {key: tensor for key, tensor in state.items() if not key.endswith("alpha")}
    assert {branch.scale for branch in read(without, nano).branches.values()} == {1.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_dtype_of_floats_is_read(nano: Found, state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    cast = {key: tensor.to(dtype) for key, tensor in state.items()}
    branch = read(write_lora(tmp_path / "x.safetensors", cast), nano).branches[MODULE]
    assert branch.down.dtype is (torch.float32 if dtype is torch.float64 else dtype)
    assert torch.equal(branch.up, cast[f"{FIRST}.lora_B.weight"].to(branch.up.dtype)) and branch.alpha == 4.0
    assert not branch.up.requires_grad and not branch.down.requires_grad


def test_the_hubs_embedding_and_head_are_split_in_two(nano: Found, network: Transformer) -> None:
    """PEFT has an embedding's halves transposed, and calls them by other names."""
    vocab, width = nano.config.vocab_size, nano.config.d_model
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(2, size, generator=generator) for size in (width, vocab))
    up = up.t().contiguous()
    hub, offset = "model.transformer", nano.table.code_offset
    whole = {f"{hub}.{name}{half}": part for name in ("wte", "ff_out") for half, part in ((A, down), (B, up))}
    parts = {
        f"{hub}.{name}.{leaf}{half}": part
        for name in ("wte", "ff_out")
        for leaf, rows in (("text", slice(0, offset)), ("codes", slice(offset, None)))
        for half, part in ((A, down), (B, up[rows].contiguous()))
    }
    peft = {key: tensor for key, tensor in whole.items() if "wte" not in key}
    peft |= {f"{hub}.wte.lora_embedding_A": up.t().contiguous(), f"{hub}.wte.lora_embedding_B": down.t().contiguous()}
    flat = {f"lora_unet_{hub.replace('.', '_')}_{name}{half}": whole[f"{hub}.{name}{half}"]
            for name in ("wte", "ff_out") for half in (A, B)}  # fmt: skip
    files = [read(one, nano) for one in (whole, parts, peft, flat)]
    assert len({file.adapter.digest for file in files}) == 1 and set(files[0].branches) == {
        f"{hub}.{name}.{leaf}" for name in ("wte", "ff_out") for leaf in ("text", "codes")
    }
    changed = load_transformer(nano, dtype=torch.float32)
    for name in files[0].branches:
        rows = slice(0, offset) if name.endswith("text") else slice(offset, None)
        layer = changed.get_submodule(name)
        layer.weight.data = layer.weight + 0.01 * up[rows] @ down
    torch.testing.assert_close(logits(network, (files[0].adapter, 0.01)), logits(changed), rtol=1e-3, atol=1e-3)


# PEFT's folder ------------------------------------------------------------------------------------------------------


def peft_folder(folder: Path, state: State, **config: object) -> Path:
    write_lora(folder / "adapter_model.safetensors", renamed(state, *SCHEMES["PEFT"]))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8, "r": 4}, 2.0),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True, "alpha_pattern": {}}, 4.0),
        ({"lora_alpha": None, "init_lora_weights": "gaussian"}, 1.0),
        ({}, 1.0),
    ],
    ids=str,
)
def test_pefts_config_says_alpha_where_the_keys_do_not(
    nano: Found, state: State, tmp_path: Path, config: dict[str, object], scale: float
) -> None:
    bare = {key: tensor for key, tensor in state.items() if not key.endswith("alpha")}
    folder = peft_folder(tmp_path / "style", bare, **config)
    for path in (folder, folder / "adapter_model.safetensors"):
        assert {branch.scale for branch in read(path, nano).branches.values()} == {scale}
        assert adapter_files(path) == (folder / "adapter_model.safetensors", folder / "adapter_config.json")
    other = write_lora(folder / "other.safetensors", bare)
    assert read(other, nano).branches[MODULE].scale == 1.0 and adapter_files(other) == (other,)
    assert read(peft_folder(tmp_path / "keys", state, **config), nano).branches[MODULE].scale == 1.0, "keys win"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"lora_alpha": 8, "alpha_pattern": {"q_proj": 2}}, "gives modules an alpha of their own"),
        ({"lora_alpha": "many"}, "says lora_alpha = 'many'; expected a number up to"),
        ({"lora_alpha": 10**400}, "says lora_alpha = 1000.*; expected a number up to"),
        ({"lora_alpha": float("inf")}, "says lora_alpha = inf; expected a number up to"),
        ({"init_lora_weights": "pissa_niter_16"}, "says init_lora_weights = 'pissa_niter_16', with which the base"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_followed_is_refused(
    nano: Found, state: State, tmp_path: Path, config: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(peft_folder(tmp_path, state, **config), nano)


# What is refused ----------------------------------------------------------------------------------------------------


def plus(**tensors: Tensor) -> Callable[[State], State]:
    """The LoRA with further keys of the first module; a double underscore stands for a dot."""
    return lambda state: state | {f"{FIRST}.{name.replace('__', '.')}": tensor for name, tensor in tensors.items()}


ONE = torch.ones(1)
BAD: dict[str, tuple[Callable[[State], State], str]] = {
    "another width": (
        plus(lora_A__weight=torch.ones(4, 99)),
        rf"has lora_A \[4, 99\] and lora_B \[\d+, 4\] for {MODULE}; expected \[r, \d+\] and \[\d+, r\]",
    ),
    "two ranks": (plus(lora_A__weight=torch.ones(3, 160)), rf"has lora_A \[3, 160\] and lora_B .* for {MODULE}"),
    "rank 0": (
        plus(lora_A__weight=torch.ones(0, 160), lora_B__weight=torch.ones(160, 0)),
        rf"has lora_A \[0, 160\] .* for {MODULE}; .* rank r of at least 1",
    ),
    "no matrix": (plus(lora_A__weight=torch.tensor(1.0)), rf"has lora_A \[\] .* for {MODULE}"),
    "a convolution": (plus(lora_A__weight=torch.ones(4, 160, 1, 1)), rf"has lora_A \[4, 160, 1, 1\] .* for {MODULE}"),
    "NaN": (plus(lora_B__weight=torch.full((160, 4), torch.nan)), f"has NaN or infinity in lora_B of {MODULE}"),
    "infinity": (plus(lora_A__weight=torch.full((4, 160), -torch.inf)), f"has NaN or infinity in lora_A of {MODULE}"),
    "too large for fp32": (
        plus(lora_A__weight=torch.full((4, 160), 1e300, dtype=torch.float64)),
        f"has NaN or infinity in lora_A of {MODULE}",
    ),
    "half a pair": (
        lambda state: {key: tensor for key, tensor in state.items() if key != f"{FIRST}{B}"},
        rf"has only half of the LoRA of {MODULE} \({FIRST}.lora_A.weight\)",
    ),
    "int8": (plus(lora_A__weight=torch.ones(4, 160, dtype=torch.int8)), f"stores lora_A of {MODULE} as torch.int8"),
    "fp8": (
        plus(lora_A__weight=torch.ones(4, 160).to(torch.float8_e4m3fn)),
        f"stores lora_A of {MODULE} as torch.float8_e4m3fn; expected one of F64, F32, F16, BF16",
    ),
    "alpha NaN": (plus(alpha=torch.tensor(torch.nan)), f"says alpha of {MODULE} is nan; expected one number up to"),
    "alpha that overflows": (
        plus(alpha=torch.tensor(3e38)),
        f"says alpha of {MODULE} is 3.*; expected one number up to",
    ),
    "alpha beyond fp32": (
        plus(alpha=torch.tensor(1e300, dtype=torch.float64)),
        f"says alpha of {MODULE} is 1e\\+300; expected one",
    ),
    "two alphas": (plus(alpha=torch.ones(2)), rf"says alpha of {MODULE} is \[2\]; expected one number up to"),
    "one half twice": (plus(lora_down__weight=torch.ones(4, 160)), f"has two keys for one part of {MODULE}"),
    "a whole and a part": (
        lambda state: (
            state
            | {
                f"{PREFIX}{name}{half}": torch.ones(size)
                for name, rows in (("ff_out", 534), ("ff_out.codes", 441))
                for half, size in ((A, (2, 160)), (B, (rows, 2)))
            }
        ),
        "changes model.transformer.ff_out.codes twice",
    ),
    "DoRA": (plus(dora_scale=ONE), f"changes {MODULE} by DoRA"),
    "PEFT's DoRA": (plus(lora_magnitude_vector__default__weight=ONE), f"changes {MODULE} by DoRA"),
    "LoKr": (plus(lokr_w1=ONE), f"changes {MODULE} by LoKr"),
    "LoHa": (plus(hada_w1_a=ONE), f"changes {MODULE} by LoHa"),
    "GLoRA": (plus(a1__weight=ONE), f"changes {MODULE} by GLoRA"),
    "OFT": (plus(oft_blocks=ONE), f"changes {MODULE} by OFT"),
    "OFT's constraint": (plus(rescale=ONE), f"changes {MODULE} by OFT"),
    "BOFT": (plus(boft_R=ONE), f"changes {MODULE} by BOFT"),
    "AdaLoRA": (plus(lora_E=torch.ones(4, 1)), f"changes {MODULE} by AdaLoRA"),
    "VeRA": (plus(vera_lambda_b=ONE), f"changes {MODULE} by VeRA"),
    "IA3": (plus(ia3_l=ONE), f"changes {MODULE} by IA3"),
    "LoCon": (plus(lora_mid__weight=ONE), f"changes {MODULE} by a LoRA of convolutions"),
    "a bias": (plus(lora_B__bias=ONE), f"changes {MODULE} by a LoRA with biases"),
    **{
        name: (plus(**{name: ONE}), f"changes {MODULE} by a change of whole weights")
        for name in ("diff", "diff_b", "set_weight", "w_norm", "reshape_weight", "weight", "bias")
    },
    "a norm": (
        lambda state: state | {f"{PREFIX}blocks.0.attn_norm.w_norm": ONE},
        "changes model.transformer.blocks.0.attn_norm by a change of whole weights",
    ),
    "modules that PEFT saved whole": (
        lambda state: state | {"base_model.model.model.transformer.ff_out.weight": torch.ones(534, 160)},
        "changes model.transformer.ff_out by a change of whole weights",
    ),
    "a whole checkpoint": (
        lambda _: {f"{MODULE}.weight": torch.ones(160, 160)},
        rf"has no key that fits this model \({MODULE}.weight\)",
    ),
    "another model's": (
        lambda _: {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": ONE},
        r"has no key that fits this model \(lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight\)",
    ),
    "nothing": (lambda _: {}, r"has no key that fits this model \(it is empty\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_added_rightly_is_one_sentence_that_names_the_module(
    nano: Found, state: State, tmp_path: Path, kind: str
) -> None:
    change, sentence = BAD[kind]
    bad = change(state)
    path = write_lora(tmp_path / "bad.safetensors", bad)
    for source, name in ((bad, "The LoRA"), (path, str(path))):
        with pytest.raises(ValueError, match=sentence) as error:
            read(source, nano)
        said = str(error.value)
        assert said.startswith(name) and said.endswith(".") and "\n" not in said


def test_the_shapes_in_these_tests_are_nanos(nano: Found) -> None:
    config = nano.config
    assert (config.d_model, config.vocab_size, nano.table.code_offset) == (160, 534, 534 - 441)


def test_another_checkpoints_lora_is_refused(state: State, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="take a LoRA that was trained on this model"):
        read(state, find(write_checkpoint(tmp_path / "tiny")))


def test_a_file_that_is_no_safetensors_is_never_opened(nano: Found, state: State, tmp_path: Path) -> None:
    content = write_lora(tmp_path / "good.safetensors", state).read_bytes()
    files = {
        "a.pt": (b"", "is a pickle; a pickle can run code"),
        "b.bin": (b"", "is a pickle; a pickle can run code"),
        "c.safetensors": (b"PK\x03\x04" + bytes(99), "is a pickle in spite of its name"),
        "d.safetensors": (content[:5000], "is cut short or garbled"),
        "e.safetensors": (b"<!doctype html>", "is a web page"),
        "f.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    }
    for name, (bytes_, sentence) in files.items():
        (tmp_path / name).write_bytes(bytes_)
        with pytest.raises(ValueError, match=sentence):
            read(tmp_path / name, nano)
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "absent.safetensors", nano)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"is a folder without adapter_model\.safetensors"):
        read(folder, nano)
    (folder / "adapter_model.bin").touch()
    with pytest.raises(ValueError, match="is a pickle; a pickle can run code"):
        read(folder, nano)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [(torch.ones(4, 160, device="meta"), "on meta"), (torch.ones(4, 160).to_sparse(), "torch.sparse")],
)
def test_a_tensor_without_plain_numbers_is_refused(nano: Found, state: State, tensor: Tensor, kind: str) -> None:
    with pytest.raises(ValueError, match=f"has a tensor {kind}.* under {FIRST}{A}; expected plain numbers"):
        read(state | {f"{FIRST}{A}": tensor}, nano)


def test_a_strangers_names_are_shown_short_and_printable(nano: Found) -> None:
    with pytest.raises(ValueError, match=r"x\?y") as error:
        read({"x\ny" + "z" * 5000: ONE}, nano)
    assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match="has a str under"):
        read({f"{FIRST}{A}": "text", f"{FIRST}{B}": "text"}, nano)  # type: ignore[dict-item]


# What runs, and is said ---------------------------------------------------------------------------------------------


def test_keys_that_fit_no_module_are_named_and_the_rest_is_used(nano: Found, state: State) -> None:
    layers = nano.config.n_layers
    more = {
        f"{PREFIX}blocks.{layers}.q_proj{A}": ONE,
        "lora_te_text_model_encoder.lora_down.weight": ONE,
        f"{PREFIX}blocks.0.attn_norm{A}": ONE,
        "te.hada_w1_a": ONE,
        "lora_te_x.alpha": ONE,
    }
    file = read(state | more, nano)
    assert sorted(file.unused) == sorted(more) and file.adapter.digest == read(state, nano).adapter.digest
    (remark,) = file.remarks
    assert remark.startswith("5 of the keys in The LoRA fit no module of this model and are not used: ")
    alone = {f"{FIRST}.alpha": ONE, f"{PREFIX}blocks.1.q_proj{A}": torch.ones(4, 160)}
    alone[f"{PREFIX}blocks.1.q_proj{B}"] = torch.ones(160, 4)
    assert read(alone, nano).unused == [f"{FIRST}.alpha"], "an alpha without a pair"


@pytest.mark.parametrize("zero", ["lora_A.weight", "lora_B.weight", "alpha"])
def test_one_that_changes_nothing_says_so(nano: Found, network: Transformer, state: State, zero: str) -> None:
    dead = {key: tensor * 0 if key.endswith(zero) else tensor for key, tensor in state.items()}
    file = read(dead, nano)
    assert file.changes_nothing and "The LoRA changes nothing" in file.remarks[0]
    assert torch.equal(logits(network, (file.adapter, 1.0)), logits(network))
    some = dead | {key: tensor for key, tensor in state.items() if key.startswith(FIRST)}
    assert not read(some, nano).changes_nothing and read(some, nano).remarks == []


# Writing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_what_is_written_is_read_again(nano: Found, network: Transformer, tmp_path: Path, dtype: torch.dtype) -> None:
    adapter, path = random_adapter(network, rank=3, alpha=5.0), tmp_path / "x.safetensors"
    write_adapter(path, adapter, {"trigger": "sks"}, dtype)
    file = read(path, nano)
    assert file.metadata == {"format": "pt", "trigger": "sks"} and file.name == str(path)
    assert file.branches.keys() == adapter.branches.keys() and file.adapter.rank == 3
    for name, branch in adapter.branches.items():
        came = file.branches[name]
        assert torch.equal(came.up, branch.up.to(dtype)) and torch.equal(came.down, branch.down.to(dtype))
        assert came.alpha == 5.0
    assert set(load_file(path)) == {
        f"diffusion_model.{name}.{part}"
        for name in adapter.branches
        for part in ("lora_A.weight", "lora_B.weight", "alpha")
    }
    assert read(adapter_state(adapter, dtype), nano).adapter.digest == file.adapter.digest


def test_numbers_that_do_not_fit_are_never_written(nano: Found, network: Transformer, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"what was there")
    adapter = random_adapter(network)
    adapter.branches[MODULE].up.data[0, 0] = 1e6
    with pytest.raises(ValueError, match=f"lora_B of {MODULE} became infinite or NaN; expected .* in torch.float16"):
        write_adapter(path, adapter, {}, torch.float16)
    adapter.branches[MODULE].up.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=f"lora_B of {MODULE} is infinite or NaN"):
        write_adapter(path, adapter, {}, torch.float32)
    assert path.read_bytes() == b"what was there" and list(tmp_path.iterdir()) == [path]


def test_parts_that_share_memory_are_written_too(nano: Found, network: Transformer, tmp_path: Path) -> None:
    """A head of the hub becomes two branches with one lora_A."""
    down, up = torch.ones(2, 160), torch.ones(534, 2)
    file = read({f"{PREFIX}ff_out{A}": down, f"{PREFIX}ff_out{B}": up}, nano)
    write_adapter(tmp_path / "x.safetensors", file.adapter, {}, torch.float32)
    assert read(tmp_path / "x.safetensors", nano).adapter.digest == file.adapter.digest


def test_a_file_is_read_and_then_left_alone(nano: Found, state: State, tmp_path: Path) -> None:
    """It may be written again while its LoRA is in use, and what is done to the LoRA does not reach it."""
    path = write_lora(tmp_path / "x.safetensors", state)
    before = path.read_bytes()
    file = read(path, nano)
    file.branches[MODULE].up.data.zero_()
    assert path.read_bytes() == before
    down = file.branches[MODULE].down.clone()
    with path.open("r+b") as stream:
        stream.write(bytes(len(before)))
    assert torch.equal(file.branches[MODULE].down, down)
    given = {key: tensor.clone() for key, tensor in state.items()}
    read(given, nano).branches[MODULE].up.data.zero_()
    assert all(torch.equal(given[key], state[key]) for key in state)


def test_name_and_metadata_are_kept_as_they_were_given(nano: Found, tmp_path: Path) -> None:
    branch = LowRank(torch.ones(1, 160), torch.ones(160, 1), 0.5)
    write_adapter(tmp_path / "x.safetensors", Adapter({MODULE: branch}), {"a": "<b>"})
    with safe_open(tmp_path / "x.safetensors", framework="pt") as stream:
        assert stream.metadata() == {"format": "pt", "a": "<b>"}
    file = read_adapter(tmp_path / "x.safetensors", nano.config, nano.table.code_offset, name="mine")
    assert file.name == "mine" and file.metadata["a"] == "<b>" and file.branches[MODULE].scale == 0.5
