"""From the files of a checkpoint to modules: loaded strictly, never twice in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..checks import printable, shown
from ..model.config import TransformerConfig, VQConfig
from ..model.quantised import LAYERS, restore
from ..model.transformer import Transformer, hub_shapes, hub_to_module
from ..model.vq import VQ
from ..sequence.tokenizer import TextTokenizer
from .find import Found
from .headers import FLOATS, Entry, Weights, located, read_headers, read_json, some, weight_errors

_COMPUTE = (torch.float32, torch.float16, torch.bfloat16)
# what a transformer computes in where that is left to a file with other numbers: its activations outgrow fp16, and many
# cards have no fp64
_INSTEAD = {torch.float16: torch.bfloat16, torch.float64: torch.float32}

Module = TypeVar("Module", bound=nn.Module)


class Reader(Protocol):
    """How stored tensors are read; one reader serves all of a checkpoint."""

    def __call__(self, entry: Entry, rows: slice | None = None) -> Tensor:
        """Rows (None: all) of a tensor as they are stored, at best without reading them yet. Raises ValueError where
        the file cannot be read."""
        ...


class MappedFiles:
    """A `Reader` whose tensors are views of the mapped files, one mapping for all of a file."""

    def __init__(self) -> None:
        self._open: dict[Path, Any] = {}

    def __call__(self, entry: Entry, rows: slice | None = None) -> Tensor:
        with weight_errors(entry.file):
            if entry.file not in self._open:
                self._open[entry.file] = safe_open(entry.file, framework="pt")
            tensor = self._open[entry.file].get_tensor(entry.name)
        return tensor if rows is None else tensor[rows]


def load_transformer(
    found: Found,
    *,
    ops=LAYERS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    dequantised: bool = False,
    reader: Reader | None = None,
    **options: Any,
) -> Transformer:
    """The transformer, in eval mode and without gradients.

    `ops` is a namespace of layer classes (such as torch.nn or comfy.ops.*); where weights are quantised its Linear has
    to take them as `quantised.Linear` does. `dtype` None or "auto" keeps the file's, but takes bf16 for fp16, which
    activations outgrow, and fp32 for fp64; another casts each tensor as it is read. Quantised weights stay as they are
    whatever `dtype` says, unless `dequantised` asks for them in it. Tensors that are not cast stay on the CPU what
    `reader` gives (None: `MappedFiles`, which costs no memory until they are used). `options` go to `Transformer`
    (attention). Raises ValueError where the weights do not fit.
    """
    return _transformer(
        found.config,
        found.weights,
        code_offset=found.table.code_offset,
        ops=ops,
        device=device,
        dtype=dtype,
        dequantised=dequantised,
        reader=reader,
        **options,
    )


def load_vq(
    found: Found,
    *,
    ops=LAYERS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = torch.float32,
    reader: Reader | None = None,
) -> VQ:
    """The VQ, in eval mode and without gradients, in fp32, in which it was trained, unless `dtype` names another; None
    or "auto" keeps the file's.

    `ops`, `device`, `reader` and the errors are those of `load_transformer`.
    """
    return _vq(found.vq_config, found.vq_weights, ops=ops, device=device, dtype=dtype, reader=reader)


def check_weights(found: Found) -> None:
    """Raises ValueError where the weights of a network are not those of its config; reads none of them."""
    dtype = _dtype(found.weights, None), _dtype(found.vq_weights, None)
    _check_transformer(found.config, found.weights, code_offset=found.table.code_offset, dtype=dtype[0])
    _check_extent(found.vq_config, found.vq_weights)
    _check_names(found.vq_weights, _shapes(VQ(found.vq_config, ops=LAYERS, device="meta", dtype=dtype[1])))


def load_tokenizer(found: Found) -> TextTokenizer:
    """The tokenizer, checked against the id table and the vocabulary. Raises ValueError where they disagree."""
    name = found.tokenizer if isinstance(found.tokenizer, Path) else f"tokenizer.json in {found.path}"
    try:
        tokenizer = TextTokenizer.from_str(found.tokenizer_text())
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror}); check that it exists and may be read.") from None
    except ValueError as error:
        message = str(error)
        if str(found.path) in message:  # the file that it lies in cannot be read
            raise
        raise ValueError(f"{name} is not a usable tokenizer ({message}); download it again.") from None
    with located(found.path):
        tokenizer.check(found.table, found.config.vocab_size)
    return tokenizer


def read_transformer(folder: str | Path, *, code_offset: int, **options: Any) -> Transformer:
    """The transformer alone, from a folder that need not hold anything else; `options` as for `load_transformer`."""
    folder = Path(folder)
    with located(folder):
        config = TransformerConfig.from_dict(read_json(folder / "config.json"))
    if not 0 < code_offset < config.vocab_size:
        raise ValueError(
            f"Got code_offset = {code_offset}, expected an id from 1 to {config.vocab_size - 1}, which the vocabulary "
            f"in {folder} has; give the offset of this checkpoint."
        )
    return _transformer(config, read_headers(folder), code_offset=code_offset, **options)


def read_vq(folder: str | Path, **options: Any) -> VQ:
    """A VQ of any scale from its own folder; `options` as for `load_vq`."""
    folder = Path(folder)
    with located(folder):
        config = VQConfig.from_dict(read_json(folder / "config.json"))
    return _vq(config, read_headers(folder), **{"dtype": torch.float32, **options})


def _transformer(
    config: TransformerConfig,
    weights: Weights,
    *,
    code_offset: int,
    ops=LAYERS,
    device="cpu",
    dtype=None,
    dequantised: bool = False,
    reader: Reader | None = None,
    **options: Any,
) -> Transformer:
    chosen = _dtype(weights, dtype)
    dtype = chosen if dtype == chosen else _INSTEAD.get(chosen, chosen)
    _check_transformer(config, weights, code_offset=code_offset, dtype=dtype)
    sources = {key: (weights[name], rows) for name in weights for key, rows in hub_to_module(name, code_offset)}
    module = Transformer(config, code_offset=code_offset, ops=ops, device="meta", dtype=dtype, **options)
    return _fill(module, sources, device=device, dtype=dtype, dequantised=dequantised, reader=reader)


def _vq(
    config: VQConfig, weights: Weights, *, ops=LAYERS, device="cpu", dtype=None, reader: Reader | None = None
) -> VQ:
    _check_extent(config, weights)
    dtype = _dtype(weights, dtype)
    module = VQ(config, ops=ops, device="meta", dtype=dtype)
    _check_names(weights, _shapes(module))
    sources = {name: (entry, None) for name, entry in weights.items()}
    return _fill(module, sources, device=device, dtype=dtype, reader=reader)


def _check_extent(config: TransformerConfig | VQConfig, weights: Weights) -> None:
    """A config cannot ask for more than the files hold: checked before anything of its size is built."""
    numbers = sum(prod(entry.shape) for entry in weights.values())
    for field in fields(config):
        value = getattr(config, field.name)
        held = len(weights) if "layers" in field.name else numbers
        largest = max(value) if isinstance(value, tuple) else value
        if isinstance(largest, int) and largest > held:
            raise ValueError(
                f"The config says {field.name} = {largest}, but {_source(weights)} holds only {len(weights)} tensors "
                f"of {numbers} numbers in all; use the config.json that belongs to these weights."
            )


def _dtype(weights: Weights, dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype to load in; None or "auto": the one that most of the file's bytes have."""
    sizes: dict[str, int] = {}
    for name, entry in weights.items():
        if entry.quantisation is not None:
            continue
        if entry.dtype not in FLOATS:
            raise ValueError(
                f"{printable(name)} in {entry.file} is stored as {entry.dtype}, expected one of {', '.join(FLOATS)}; "
                "download such weights."
            )
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + prod(entry.shape)
    if dtype is None or dtype == "auto":
        return FLOATS[max(sizes, key=sizes.__getitem__)] if sizes else torch.float32
    if dtype not in _COMPUTE:
        raise ValueError(f"Got dtype {shown(dtype)}, expected 'auto' or one of {', '.join(map(str, _COMPUTE))}.")
    return dtype


def _check_names(weights: Weights, expected: Mapping[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        groups = {"missing": missing, "unexpected": extra}
        difference = " and ".join(f"{len(names)} {what} ({some(names)})" for what, names in groups.items() if names)
        raise ValueError(
            f"Tensors in {_source(weights)} are not those of its config.json: {difference}; download all again."
        )
    for name, shape in expected.items():
        entry = weights[name]
        if entry.shape != shape:
            raise ValueError(
                f"{name} in {entry.file} has shape {shown(list(entry.shape))}, but its config.json says {list(shape)}; "
                "use the config.json that belongs to these weights."
            )


def _check_transformer(config: TransformerConfig, weights: Weights, *, code_offset: int, dtype: torch.dtype) -> None:
    """Checks names and shapes against a module of torch's layers on meta: other layer classes may have no weights
    before they are loaded. Only a matrix that is one layer can be quantised; embedding and head are two each."""
    _check_extent(config, weights)
    plain = Transformer(config, code_offset=code_offset, ops=LAYERS, device="meta", dtype=dtype)
    _check_names(weights, hub_shapes(plain))
    for name, entry in weights.items():
        if entry.quantisation is not None and not isinstance(plain.get_submodule(name.rpartition(".")[0]), nn.Linear):
            raise ValueError(
                f"{name} in {entry.file} is quantised, which only the matrices of the blocks can be; convert the "
                "published checkpoint again."
            )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _fill(
    module: Module,
    sources: Mapping[str, tuple[Entry, slice | None]],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    dequantised: bool = False,
    reader: Reader | None = None,
) -> Module:
    """Gives a module built on meta its weights, layer by layer through each layer's own loading (comfy has its own).

    `sources`: by a parameter's name the stored tensor and its rows (None: all). A layer gets a quantised weight as in
    ComfyUI, with its `weight_scale`, the `input_scale` if there is one, and the bytes of a JSON text as `comfy_quant`.
    """
    layers: dict[str, dict[str, tuple[Entry, slice | None]]] = {}
    for name, source in sources.items():
        prefix, _, leaf = name.rpartition(".")
        layers.setdefault(prefix, {})[leaf] = source
    reader = reader or MappedFiles()
    for prefix, leaves in layers.items():
        state: dict[str, Tensor] = {}
        for leaf, (entry, rows) in leaves.items():
            if entry.quantisation is None or entry.scale is None or dequantised:
                state[leaf] = _read(entry, rows, dtype, reader).to(device)
            else:
                state[leaf] = reader(entry, rows).to(device)
                state[f"{leaf}_scale"] = entry.scale.read().to(device)
                if entry.input_scale is not None:
                    state["input_scale"] = entry.input_scale.read().to(device)
                state["comfy_quant"] = entry.quantisation.to_tensor()
        module.get_submodule(prefix).load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _read(entry: Entry, rows: slice | None, dtype: torch.dtype, reader: Reader) -> Tensor:
    """Rows (None: all) of one stored tensor in `dtype`; uncast they stay what `reader` gives.

    A tensor that is cast has a mapping to itself: it ends with the call, and with it the memory its pages took.
    """
    if entry.quantisation is not None and entry.scale is not None:
        return restore(entry.read(), entry.scale.read(), entry.quantisation, dtype)
    if FLOATS[entry.dtype] != dtype:
        return entry.read(rows).to(dtype)
    return reader(entry, rows)


def _source(weights: Weights) -> Path | str:
    """The file of the weights, or its folder where there are several files."""
    files = sorted({entry.file for entry in weights.values()})
    return (files[0] if len(files) == 1 else files[0].parent) if files else "its folder"
