"""How the loader reads weights: as ComfyUI reads them, so that they reach a card by its own road."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from .. import nodepack
from ..tiny import write_checkpoint

NODES = nodepack.nodes()
host, checkpoints = (nodepack.part(f"nodes.{name}") for name in ("host", "checkpoints"))
finding, loading, converting = (nodepack.part(f"dimoo_core.checkpoint.{name}") for name in ("find", "load", "convert"))
BF16 = torch.bfloat16
DTYPES = {"BF16": BF16, "F32": torch.float32, "I8": torch.int8, "U8": torch.uint8}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """What ComfyUI has read, by the file's path."""
    import comfy.utils

    files: dict[str, dict[str, Tensor]] = {}
    known = comfy.utils.load_torch_file

    def load_torch_file(path: str, *args, **options) -> Any:
        assert path not in files, "a file is read twice"
        files[path] = known(path, *args, **options)
        return files[path]

    monkeypatch.setattr(comfy.utils, "load_torch_file", load_torch_file)
    monkeypatch.setattr(host, "transformer_dtypes", lambda *_: (BF16, torch.float32))  # as on a card, uncast
    return files


def bare(weight: Tensor) -> Tensor:
    """The stored numbers of a weight, which ComfyUI wraps where they are quantised."""
    return getattr(weight, "_qdata", weight).detach()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a checkpoint in bf16, its VQ in fp32 as published, and files made of it."""
    place = tmp_path_factory.mktemp("models")
    folder = write_checkpoint(place / "tiny", shards=2, dtype=BF16)
    for kind in ("bf16", "fp8", "int8"):
        converting.convert(finding.find(folder), place / f"{kind}.safetensors", kind)
    return place


@pytest.mark.parametrize("name", ["tiny", "bf16.safetensors", "fp8.safetensors", "int8.safetensors"])
def test_the_loader_hands_comfyui_the_very_tensors_that_comfyui_read(
    read: dict, name: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodepack.put_checkpoint(models, monkeypatch)
    model, vq = nodepack.run(NODES["DimooLoader"], checkpoint=name).args
    assert set(read) == {str(entry.file) for part in (vq.found.weights, vq.found.vq_weights) for entry in part.values()}
    spans = [(one.data_ptr(), one.data_ptr() + one.nbytes) for file in read.values() for one in file.values()]
    matrices = [bare(weight) for weight in model.patcher.model.parameters() if weight.ndim == 2 and weight.shape[1] > 1]
    assert len(matrices) == 7 * model.found.config.n_layers + 2
    for one in (*matrices, *vq.patcher.model.parameters()):
        assert any(start <= one.data_ptr() and one.data_ptr() + one.nbytes <= end for start, end in spans)


class Note(NamedTuple):
    """What newer ones note at a storage: which part of which file it is."""

    file_ref: Path
    lock: object
    offset: int
    size: int


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], dict[str, Tensor]]:
    """Reads as a newer ComfyUI does where its memory is dynamic: each tensor has a storage of its own, with a note."""
    import comfy.utils

    def load_torch_file(path: str) -> dict[str, Tensor]:
        content = memoryview(bytearray(Path(path).read_bytes()))
        length = int.from_bytes(content[:8], "little")
        read = {}
        for name, entry in header(Path(path)).items():
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            tensor = torch.frombuffer(content[begin:end], dtype=DTYPES[entry["dtype"]]).view(entry["shape"])
            storage: Any = tensor.untyped_storage()
            storage._comfy_tensor_file_slice = Note(Path(path), None, begin, end - begin)
            storage._comfy_tensor_mmap_refs = (content,)
            read[name] = tensor
        return read

    monkeypatch.setattr(comfy.utils, "load_torch_file", load_torch_file)
    return load_torch_file


def header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    content.pop("__metadata__", None)
    return content


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_every_weight_knows_its_part_of_the_file_split_ones_too(noted, kind: str, models: Path) -> None:
    found = finding.find(models / f"{kind}.safetensors")
    network = loading.load_transformer(found, dtype=BF16, reader=host.FileReader())
    plain = loading.load_transformer(found, dtype=BF16)
    matrices = {name: weight for name, weight in network.named_parameters() if weight.ndim == 2 and weight.shape[1] > 1}
    assert {"wte.text", "wte.codes", "ff_out.text", "ff_out.codes"} <= {
        name.removeprefix("model.transformer.").removesuffix(".weight") for name in matrices
    }
    for name, weight in matrices.items():
        storage: Any = weight.untyped_storage()
        note = storage._comfy_tensor_file_slice
        assert weight.storage_offset() == 0 and weight.is_contiguous() and weight.nbytes == note.size
        with note.file_ref.open("rb") as file:
            file.seek(note.offset)
            assert file.read(note.size) == plain.get_parameter(name).detach().view(torch.uint8).numpy().tobytes()
        assert storage._comfy_tensor_mmap_refs, "the mapping stays open as long as its rows are used"


def test_a_damaged_file_is_told_of_in_our_words_before_comfyui_reads_it(
    read: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodepack.put_checkpoint(tmp_path, monkeypatch)
    weights = write_checkpoint(tmp_path / "tiny") / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=f"^{re.escape(str(weights))} is cut short or garbled"):
        nodepack.run(NODES["DimooLoader"], checkpoint="tiny")
    assert not read


def test_a_file_that_is_damaged_later_is_told_of_too(tmp_path: Path) -> None:
    found = finding.find(write_checkpoint(tmp_path / "tiny"))
    entry = next(iter(found.weights.values()))
    entry.file.write_bytes(entry.file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"^{re.escape(str(entry.file))} is cut short or garbled"):
        host.FileReader()(entry)


def test_a_file_is_not_blamed_for_want_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --disable-mmap, or where newer ones cannot map a file."""
    import comfy.utils

    def fail(path: str) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(comfy.utils, "load_torch_file", fail)
    found = finding.find(write_checkpoint(tmp_path / "tiny"))
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        host.FileReader()(next(iter(found.weights.values())))


# Cards without bf16 --------------------------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., list[str]]]:
    """What the log says of computing in fp32 after loading a checkpoint on a CUDA card without bf16, or as told."""
    import comfy.model_management as management

    monkeypatch.setattr(host, "_logged", set())
    card = SimpleNamespace(bf16=False, device=torch.device("cuda", 0))
    monkeypatch.setattr(management, "get_torch_device", lambda: card.device)
    monkeypatch.setattr(management, "should_use_bf16", lambda *_, **__: card.bf16)

    def load(*formats: Any, compute: torch.dtype = torch.float32, wanted: Any = None, **changed: Any) -> list[str]:
        card.__dict__.update(changed)
        for _ in range(2):
            host.note_fp32(compute, wanted, formats)
        return [one.getMessage() for one in caplog.records if "no bf16" in one.getMessage()]

    yield load


def test_a_card_without_bf16_is_told_of_once_with_the_way_out(said) -> None:
    (line,) = said()
    assert "computes in fp32, which is slow; choose int8 as weight_dtype" in line


def test_nothing_is_said_where_it_is_no_news(said, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.cli_args

    assert said(host.INT8) == []
    assert said(wanted=torch.float32) == []
    assert said(bf16=True) == []
    assert said(bf16=False, compute=BF16) == []
    assert said(device=torch.device("cpu")) == []
    monkeypatch.setattr(comfy.cli_args.args, "force_fp32", True)
    assert said(device=torch.device("cuda", 0)) == []


def test_the_loader_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[tuple] = []
    monkeypatch.setattr(host, "note_fp32", lambda *given: noted.append(given))
    nodepack.run(NODES["DimooLoader"], checkpoint=checkpoints.BUILT_IN)
    assert noted == [(torch.float32, None, frozenset())]
