"""LoRA files: read under the names that people's tools give them, written under names that ComfyUI reads too.

A key is PREFIX + MODULE + SUFFIX. A module is called as in the published checkpoint, where embedding and head are one
layer each, or as in `Transformer`, where they are two.

prefixes   none, diffusion_model., transformer., base_model.model. (PEFT), one after the other too; kohya's lora_unet_,
           lora_transformer_ and lycoris_, followed by the module's name with an underscore for each dot
suffixes   .lora_A and .lora_B (also .lora_A.default); .lora_down and .lora_up; .lora.down and .lora.up; _lora.down and
           _lora.up; .lora_linear_layer.down and .lora_linear_layer.up; each with or without .weight at its end; PEFT's
           .lora_embedding_A and .lora_embedding_B; .alpha

What a LoRA adds to a weight is alpha / r * B A, with r its rank. Alpha is what the file says; else what PEFT's
adapter_config.json beside it says; else r, which scales by 1, as in ComfyUI and diffusers.

Whatever else would change a module of the model (DoRA, LoKr, LoHa, whole weights) is refused: a part of what was
trained may look like anything. Keys that belong to no module of the model are passed over, and named.

Shapes: K inputs, N outputs, r rank, V rows of an embedding, D width.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import printable, shown
from ..model.adapters import Adapter, LowRank, digest_of
from ..model.config import TransformerConfig
from ..model.quantised import LAYERS
from ..model.transformer import Transformer, hub_shapes, hub_to_module
from .headers import FLOATS, read_header, read_json, refuse_pickle, some, write_tensors

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")  # PEFT's ways to begin

_MOST_ALPHA = 1e30  # so that products with strengths stay in fp32
_WRITTEN = "diffusion_model."  # before the names of modules in files of our own
_PREFIXES = re.compile(r"(?:diffusion_model\.|base_model\.model\.|transformer\.)*")
_FLAT_PREFIXES = re.compile(r"lora_unet_|lora_transformer_|lycoris_")
_KEY = re.compile(
    r"(?P<stem>.+?)(?:"
    r"(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)(?P<half>down|up)(?:\.weight)?"
    r"|\.lora_(?P<letter>A|B|embedding_A|embedding_B)(?:\.default)?(?:\.weight)?"
    r"|\.(?P<alpha>alpha))"
)
# PEFT has the weight of an embedding transposed
_TRANSPOSED = {"embedding_A": "up", "embedding_B": "down"}
_HALVES = {"A": "down", "B": "up", **_TRANSPOSED}
_LETTERS = {"down": "lora_A", "up": "lora_B"}
_WHOLE = "a change of whole weights"
_OTHER_KINDS = tuple(
    (re.compile(rf"(?P<stem>.+?)\.(?:{suffix})", re.DOTALL), kind)
    for suffix, kind in (
        (r"dora_scale|lora_magnitude_vector.*", "DoRA"),
        (r"lokr_.*", "LoKr"),
        (r"hada_.*", "LoHa"),
        (r"[ab][12]\.weight", "GLoRA"),
        (r"boft_.*", "BOFT"),
        (r"oft_.*|rescale", "OFT or BOFT"),
        (r"lora_E|ranknum", "AdaLoRA"),
        (r"vera_.*", "VeRA"),
        (r"ia3_.*", "IA3"),
        (r"lora_mid.*", "a LoRA of convolutions"),
        (r"lora_(?:A|B|down|up)(?:\.default)?\.bias", "a LoRA with biases"),
        (r"diff|diff_b|set_weight|w_norm|b_norm|reshape_weight", _WHOLE),
    )
)


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """A LoRA as it was read: its `adapter`, without gradients and in the dtype of the file, where `name` is what people
    call it. unused: keys that belong to no module of the model. metadata: what the file says of itself."""

    name: str
    adapter: Adapter
    unused: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def changes_nothing(self) -> bool:
        """Whether all that it adds is zero."""
        return not any(one.alpha and bool(one.up.any()) and bool(one.down.any()) for one in self.branches.values())

    @property
    def branches(self) -> dict[str, LowRank]:
        """The adapter's, by module."""
        return self.adapter.branches

    @property
    def remarks(self) -> list[str]:
        """What its user has to be told, a sentence each; none of it keeps it from being used."""
        said = []
        if self.changes_nothing:
            said.append(
                f"{self.name} changes nothing, since all of its lora_A, lora_B or alpha are zero; its training did not "
                "reach them: take a later file, or train again."
            )
        if self.unused:
            said.append(
                f"{len(self.unused)} of the keys in {self.name} fit no module of this model and are not used: "
                f"{some(self.unused)}."
            )
        return said


def read_adapter(
    source: str | Path | Mapping[str, Tensor], config: TransformerConfig, code_offset: int, *, name: str = ""
) -> AdapterFile:
    """A LoRA for the transformer of `config` whose codes begin at `code_offset`.

    source: a safetensors file, a folder that PEFT wrote, or the tensors by key, such as ComfyUI's LORA_MODEL. What is
    read is copied to the CPU: the file is not kept open, and never changed. name: what messages call it (the file's
    name). Raises ValueError, one sentence, where it is no LoRA of this model, or one that cannot be added as it was
    trained; see the head of this file.
    """
    given = _from_tensors(source, name) if isinstance(source, Mapping) else _from_file(Path(source), name)
    modules = _Modules(config, code_offset)
    pairs, alphas, unused = _sorted(given, modules)
    if not pairs:
        raise ValueError(
            f"{given.name} has no key that fits this model ({some(unused) or 'it is empty'}); expected a LoRA of "
            "Lumina-DiMOO, with keys such as diffusion_model.model.transformer.blocks.0.q_proj.lora_A.weight: take one "
            "that was trained on this model."
        )
    for key in unused:
        stem, _, part = key.rpartition(".")
        module = modules.called(stem) if part in ("weight", "bias") else None
        if module:  # PEFT's modules_to_save
            raise _other_kind(given, module, _WHOLE, key)
    branches: dict[str, LowRank] = {}
    for module, keys in pairs.items():
        down, up = (_half(given, module, keys, half) for half in ("down", "up"))
        _check_pair(given, module, down, up, modules.shapes[module])
        rank = len(down)
        alpha = _alpha(given, module, alphas[module]) if module in alphas else given.alpha(rank)
        for leaf, rows in modules.leaves(module):
            if leaf in branches:
                raise ValueError(f"{given.name} changes {leaf} twice, once as a part of {module}; keep one of the two.")
            branches[leaf] = LowRank(down, up if rows is None else up[rows], alpha)
    adapter = Adapter(branches).requires_grad_(False)
    adapter.digest = digest_of(adapter_state(adapter, torch.float32))
    return AdapterFile(given.name, adapter, unused, given.metadata)


def adapter_files(path: Path) -> tuple[Path, ...]:
    """The files that the LoRA at `path` is read from: itself, or the weights in a folder that PEFT wrote; with PEFT's
    weights their config, where it lies beside them. Raises ValueError for a folder without such weights."""
    weights = path
    if os.path.isdir(path):
        weights, pickled = path / PEFT_WEIGHTS, path / "adapter_model.bin"
        if not os.path.isfile(weights) and os.path.isfile(pickled):
            refuse_pickle(pickled)
        if not os.path.isfile(weights):
            raise ValueError(
                f"{path} is a folder without {PEFT_WEIGHTS}; expected a LoRA file, or a folder that PEFT wrote: name "
                "the file."
            )
    config = weights.with_name(PEFT_CONFIG)
    return (weights, config) if weights.name == PEFT_WEIGHTS and os.path.isfile(config) else (weights,)


def adapter_state(adapter: Adapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a LoRA under the names that are written, copied to the CPU, down and up in `dtype`.

    Raises ValueError, naming the module, where a number is none, or none in `dtype` any more.
    """
    state = {}
    for module, branch in adapter.branches.items():
        for half, weight in (("down", branch.down), ("up", branch.up)):
            copied = weight.detach().to("cpu", dtype, copy=True).contiguous()
            if not bool(copied.isfinite().all()):
                was = "became" if bool(weight.isfinite().all()) else "is"
                raise ValueError(
                    f"A number in {_LETTERS[half]} of {module} {was} infinite or NaN; expected finite numbers in "
                    f"{dtype}: save it in another dtype, or train with a lower learning rate."
                )
            state[f"{_WRITTEN}{module}.{_LETTERS[half]}.weight"] = copied
        state[f"{_WRITTEN}{module}.alpha"] = torch.tensor(branch.alpha, dtype=torch.float32)
    return state


def write_adapter(
    path: str | Path, adapter: Adapter, metadata: Mapping[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Writes a LoRA, whole or not at all; the errors are those of `adapter_state` and `write_tensors`."""
    state = adapter_state(adapter, dtype)
    write_tensors(path, state, {"format": "pt", **metadata})


# What was given -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """A LoRA before it is understood: its keys, the tensor of each, and alpha by rank where no key says it."""

    name: str
    keys: Collection[str]
    read: Callable[[str], Tensor]
    alpha: Callable[[int], float] = float
    metadata: dict[str, str] = field(default_factory=dict)


def _from_tensors(tensors: Mapping[str, Tensor], name: str) -> _Given:
    return _Given(name or "The LoRA", [str(key) for key in tensors], tensors.__getitem__)


def _from_file(path: Path, name: str) -> _Given:
    weights, *configs = adapter_files(path)
    refuse_pickle(weights)
    metadata, entries = read_header(weights)
    alpha = _peft_alpha(configs[0]) if configs else float
    return _Given(name or str(path), entries, lambda key: entries[key].read(), alpha, metadata)


def _peft_alpha(path: Path) -> Callable[[int], float]:
    """Alpha by rank, from PEFT's config: its scale is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."""
    fields = read_json(path)
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGE_THE_BASE):
        raise ValueError(
            f"{path} says init_lora_weights = {shown(start)}, with which the base model changes, too; save the LoRA "
            "with PEFT's path_initial_model_for_weight_conversion, which makes a plain one of it."
        )
    if fields.get("alpha_pattern"):
        raise ValueError(
            f"{path} gives modules an alpha of their own (alpha_pattern), which is not read from there; save the LoRA "
            "with one alpha, or with a key .alpha per module."
        )
    if fields.get("lora_alpha") is None:
        return float
    alpha = fields["lora_alpha"]
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= _MOST_ALPHA:
        raise ValueError(f"{path} says lora_alpha = {shown(alpha)}; expected a number up to {_MOST_ALPHA:g}.")
    return lambda rank: alpha * math.sqrt(rank) if fields.get("use_rslora") else float(alpha)


# From keys to modules -----------------------------------------------------------------------------------------------


class _Modules:
    """The modules that a LoRA can stand beside, under the published names and those of `Transformer`; `shapes` [N,K] or
    [V,D] of their weights."""

    def __init__(self, config: TransformerConfig, code_offset: int):
        network = Transformer(config, code_offset=code_offset, ops=LAYERS, device="meta")
        leaves = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        every = {name.removesuffix(".weight"): shape for name, shape in (leaves | hub_shapes(network)).items()}
        self.shapes = {name: shape for name, shape in every.items() if len(shape) == 2}
        self._names = {name: name for name in every}
        self._flat = {name.replace(".", "_"): name for name in every}
        self._code_offset = code_offset

    def called(self, stem: str) -> str | None:
        """The module that the beginning of a key means; None: none of these."""
        flat = _FLAT_PREFIXES.match(stem)
        if flat:
            return self._flat.get(stem[flat.end() :])
        prefix = _PREFIXES.match(stem)
        return self._names.get(stem[prefix.end() :] if prefix else stem)

    def leaves(self, module: str) -> Iterator[tuple[str, slice | None]]:
        """The layers of `Transformer` that a module is, and the rows of each (None: all)."""
        for name, rows in hub_to_module(f"{module}.weight", self._code_offset):
            yield name.removesuffix(".weight"), rows


Pairs = dict[str, dict[str, str]]  # by module: the keys of its halves


def _sorted(given: _Given, modules: _Modules) -> tuple[Pairs, dict[str, str], list[str]]:
    """The keys of both halves by module, the keys of alphas by module, and the keys that are none of this model's.

    Raises ValueError for a module that is changed in a way that is not served, or that has two keys for one thing.
    """
    found: dict[str, dict[str, str]] = {}
    unused = []
    for key in given.keys:
        for pattern, kind in _OTHER_KINDS:
            match = pattern.fullmatch(key)
            module = match and modules.called(match["stem"])
            if module:
                raise _other_kind(given, module, kind, key)
        match = _KEY.fullmatch(key)
        module = match and modules.called(match["stem"])
        if not match or module not in modules.shapes:
            unused.append(key)
            continue
        part = match["half"] or match["alpha"] or _HALVES[match["letter"]]
        keys = found.setdefault(module, {})
        if part in keys:
            raise ValueError(
                f"{given.name} has two keys for one part of {module} ({printable(keys[part])}, {printable(key)}); keep "
                "one of them."
            )
        keys[part] = key
    alphas = {module: keys.pop("alpha") for module, keys in found.items() if "alpha" in keys}
    unused += [key for module, key in alphas.items() if not found[module]]
    return {module: keys for module, keys in found.items() if keys}, alphas, unused


def _other_kind(given: _Given, module: str, kind: str, key: str) -> ValueError:
    return ValueError(
        f"{given.name} changes {module} by {kind} ({printable(key)}); expected a plain LoRA, which is all that can be "
        "added without loss: train one, or merge this into a checkpoint with the program that made it."
    )


def _half(given: _Given, module: str, keys: Mapping[str, str], half: str) -> Tensor:
    """down [r,K] or up [N,r] of a module, fp64 narrowed to fp32; its shape is not checked."""
    if half not in keys:
        (other,) = keys.values()
        raise ValueError(
            f"{given.name} has only half of the LoRA of {module} ({printable(other)}); expected lora_A and lora_B: "
            "download it again, or save it again with the program that made it."
        )
    key = keys[half]
    tensor = _tensor(given, key)
    if tensor.dtype not in FLOATS.values():
        raise ValueError(
            f"{given.name} stores {_LETTERS[half]} of {module} as {tensor.dtype}; expected one of {', '.join(FLOATS)}: "
            "save it in one of these."
        )
    kept = torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
    copied = tensor.detach().to("cpu", kept, copy=True)
    if not bool(copied.isfinite().all()):
        raise ValueError(
            f"{given.name} has NaN or infinity in {_LETTERS[half]} of {module}; expected finite numbers: its training "
            "failed, take an earlier file or train again with a lower learning rate."
        )
    transposed = any(key.partition(".lora_")[2].startswith(name) for name in _TRANSPOSED)
    return copied.t().contiguous() if transposed and copied.ndim == 2 else copied


def _check_pair(given: _Given, module: str, down: Tensor, up: Tensor, shape: tuple[int, ...]) -> None:
    outputs, inputs = shape
    rank = down.shape[0] if down.ndim else 0
    if rank and (tuple(down.shape), tuple(up.shape)) == ((rank, inputs), (outputs, rank)):
        return
    raise ValueError(
        f"{given.name} has lora_A {shown(list(down.shape))} and lora_B {shown(list(up.shape))} for {module}; expected "
        f"[r, {inputs}] and [{outputs}, r] with a rank r of at least 1: take a LoRA that was trained on this model."
    )


def _alpha(given: _Given, module: str, key: str) -> float:
    tensor = _tensor(given, key)
    alpha = float(tensor.item()) if tensor.numel() == 1 and not tensor.is_complex() else math.nan
    if not abs(alpha) <= _MOST_ALPHA:
        said = shown(list(tensor.shape)) if tensor.numel() != 1 else shown(tensor.item())
        raise ValueError(
            f"{given.name} says alpha of {module} is {said}; expected one number up to {_MOST_ALPHA:g}: save it again "
            "with the program that made it."
        )
    return alpha


def _tensor(given: _Given, key: str) -> Tensor:
    tensor: Any = given.read(key)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{given.name} has a {type(tensor).__name__} under {printable(key)}; expected a tensor.")
    if tensor.is_meta or tensor.layout is not torch.strided:
        kind = "on meta" if tensor.is_meta else str(tensor.layout)
        raise ValueError(f"{given.name} has a tensor {kind} under {printable(key)}; expected plain numbers.")
    return tensor
