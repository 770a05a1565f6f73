"""Start-up flags of ComfyUI that are meant for other models, and those for memory: all works with each of them, in bf16
or fp32."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.rehearsal import Rehearsal

from .. import nodepack
from ..tiny import write_checkpoint

NODES = nodepack.nodes()
host, finding, converting = (
    nodepack.part(name) for name in ("nodes.host", "dimoo_core.checkpoint.find", "dimoo_core.checkpoint.convert")
)
PARAMETERS = 8_000_000_000


def flags(words: str) -> list[str]:
    """The names of all flags without a value whose spelling matches."""
    import comfy.cli_args

    actions = comfy.cli_args.parser._actions
    found = [one.dest for one in actions if one.nargs == 0 and any(re.fullmatch(words, o) for o in one.option_strings)]
    return sorted(found)


UNET = flags(r"--(fp|bf)\w+-unet")
VAE = [*flags(r"--(fp|bf)\w+-vae"), "cpu_vae"]
FORCED = flags(r"--force-fp\d+")
OTHERS = [*flags(r"--(fp|bf)\w+-text-enc"), "supports_fp8_compute", "force_channels_last", "deterministic"]
OTHERS += flags(r"--(disable-smart-memory|gpu-only|(high|normal|low|no)vram|force-upcast-attention)")  # newer: fewer
SERVED = (torch.bfloat16, torch.float32)


def test_the_flags_of_0_3_75_are_among_them() -> None:
    assert {"fp8_e4m3fn_unet", "fp8_e5m2_unet", "fp8_e8m0fnu_unet", "fp16_unet", "fp32_unet"} <= set(UNET)
    assert {"fp64_unet", "bf16_unet"} <= set(UNET) and {"fp16_vae", "bf16_vae", "fp32_vae"} <= set(VAE)
    assert set(FORCED) == {"force_fp16", "force_fp32"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    folder = write_checkpoint(place / "tiny")
    for kind in ("fp8", "int8"):
        converting.convert(finding.find(folder), place / f"tiny-{kind}.safetensors", kind)
    return place


@pytest.fixture(autouse=True)
def started(models: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets a flag as it would be after a start with it; what stood in the log before does not count."""
    import comfy.cli_args
    import comfy.ldm.modules.attention as attention
    import comfy.model_management as management

    nodepack.put_checkpoint(models, monkeypatch)
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    monkeypatch.setattr(host, "_logged", set())

    def start(flag: str) -> None:
        monkeypatch.setattr(comfy.cli_args.args, flag, True)
        if flag == "force_fp16":
            monkeypatch.setattr(comfy.cli_args.args, "fp16_unet", True)
        if flag == "force_fp32":
            monkeypatch.setattr(management, "FORCE_FP32", True)

    return start


@pytest.fixture(params=["CPU", "new card", "card without bf16"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What ComfyUI says that the device computes in; a CPU says it itself."""
    import comfy.model_management as management

    kind = request.param
    if kind != "CPU":
        monkeypatch.setattr(management, "should_use_fp16", lambda *_, **__: True)
        has_bf16 = kind == "new card"
        monkeypatch.setattr(management, "should_use_bf16", lambda *_, **__: has_bf16 and not management.FORCE_FP32)
    return kind


@pytest.mark.parametrize("fast", [False, True], ids=["", "--fast"])
@pytest.mark.parametrize("wanted", [None, torch.bfloat16, torch.float32], ids=["auto", "bf16", "fp32"])
@pytest.mark.parametrize("flag", [*UNET, *FORCED, "supports_fp8_compute"])
def test_a_transformer_is_bf16_or_fp32_whatever_was_asked_for(
    flag: str, wanted: torch.dtype | None, fast: bool, device: str, started, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    monkeypatch.setattr(management, "PRIORITIZE_FP16", fast)
    started(flag)
    weight, compute = host.transformer_dtypes(PARAMETERS, wanted)
    assert weight in SERVED and compute in SERVED
    assert wanted is None or weight == wanted
    assert compute == torch.float32 or device == "new card"
    if wanted is None:
        exact = {"fp32_unet": torch.float32, "fp64_unet": torch.float32, "bf16_unet": torch.bfloat16}
        exact |= {"force_fp32": torch.float32}
        bf16 = torch.bfloat16 if device == "new card" else torch.float32
        assert weight == exact.get(flag, bf16)


@pytest.mark.parametrize("flag", VAE)
def test_a_vq_is_never_fp16(flag: str, device: str, started) -> None:
    started(flag)
    assert host.vq_dtype() == (torch.bfloat16 if flag == "bf16_vae" else torch.float32)


def said_about_dtypes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if "was started with" in one.getMessage()]


@pytest.mark.parametrize("flag", [*UNET, *VAE, *FORCED, *OTHERS])
def test_everything_works_with_it_and_the_log_says_once_what_was_not_done(
    flag: str, started, caplog: pytest.LogCaptureFixture
) -> None:
    plain = work("tiny")
    assert said_about_dtypes(caplog) == []
    started(flag)
    first, second = work("tiny"), work("tiny")
    assert torch.equal(first.pixels, second.pixels) and first.text == second.text
    assert first.weight in SERVED and first.vq == (torch.bfloat16 if flag == "bf16_vae" else torch.float32)
    if flag not in ("bf16_unet", "bf16_vae"):
        assert torch.equal(first.pixels, plain.pixels) and first.text == plain.text
    refused = {"fp16_vae"} | {one for one in UNET if one not in ("fp32_unet", "bf16_unet")} | {"force_fp16"}
    assert len(said_about_dtypes(caplog)) == (1 if flag in refused else 0)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("flag", ["fp8_e4m3fn_unet", "fp8_e5m2_unet", "fp16_unet", "fp64_unet", "fp16_vae"])
def test_quantised_files_work_with_it(flag: str, kind: str, started) -> None:
    plain = work(f"tiny-{kind}.safetensors")
    started(flag)
    assert torch.equal(work(f"tiny-{kind}.safetensors").pixels, plain.pixels)


# Memory -------------------------------------------------------------------------------------------------------------


MEMORY = {  # what ComfyUI makes of a flag when it starts: settings of `model_management`, and of the command line
    "--normalvram": ({"vram_state": "NORMAL_VRAM"}, {}),
    "--highvram": ({"vram_state": "HIGH_VRAM"}, {}),
    "--gpu-only": ({"vram_state": "HIGH_VRAM"}, {"gpu_only": True}),
    "--lowvram": ({"vram_state": "LOW_VRAM"}, {}),
    "--novram": ({"vram_state": "NO_VRAM"}, {}),
    "--cpu-vae": ({"vram_state": "NORMAL_VRAM"}, {"cpu_vae": True}),
    "--cpu-vae --novram": ({"vram_state": "NO_VRAM"}, {"cpu_vae": True}),
    "--reserve-vram 1": ({"vram_state": "NORMAL_VRAM", "EXTRA_RESERVED_VRAM": 1 << 30}, {}),
    "--disable-smart-memory": ({"vram_state": "NORMAL_VRAM", "DISABLE_SMART_MEMORY": True}, {}),
}
STREAMING = ("--novram", "--cpu-vae --novram", "--reserve-vram 1")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsal]:
    """A card that ComfyUI's own memory management works with: it has room for the weights, and 64 MiB beside them."""
    import comfy.model_management as management

    monkeypatch.setattr(management, "EXTRA_RESERVED_VRAM", 0)
    free = management.minimum_inference_memory() + (64 << 20)

    def free_memory(*_: object, torch_free_too: bool = False) -> int | tuple[int, int]:
        return (free, 0) if torch_free_too else free

    with Rehearsal() as seen:
        monkeypatch.setattr(management, "cpu_state", management.CPUState.GPU)
        monkeypatch.setattr(management, "get_torch_device", lambda: seen.device)
        monkeypatch.setattr(management, "get_free_memory", free_memory)
        monkeypatch.setattr(management, "soft_empty_cache", lambda *_: None)
        for name in ("should_use_fp16", "should_use_bf16"):
            monkeypatch.setattr(management, name, lambda *_, **__: False)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)  # newer ones wait for the card when they load
        monkeypatch.setattr(torch, "_has_compatible_shallow_copy_type", lambda *_: False)  # a rehearsed tensor never is
        yield seen
        management.unload_all_models()


@pytest.mark.parametrize("flag", MEMORY)
def test_flags_for_memory_change_no_token(
    flag: str, started, request: pytest.FixtureRequest, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    import comfy.cli_args
    import comfy.model_management as management

    plain, seen = work("tiny"), request.getfixturevalue("card")
    settings, arguments = MEMORY[flag]
    for name, value in settings.items():
        state = getattr(management.VRAMState, value) if isinstance(value, str) else value
        monkeypatch.setattr(management, name, state)
    for name, value in arguments.items():
        monkeypatch.setattr(comfy.cli_args.args, name, value)
    for _ in range(2):
        came = work("tiny")
        assert torch.equal(came.pixels.cpu(), plain.pixels) and came.text == plain.text
        assert (came.pixels.device == seen.device) == (flag == "--gpu-only")
    assert ("stream from RAM" in caplog.text) == (flag in STREAMING)
    assert seen.copies_to_device, "the card was used"


def work(checkpoint: str) -> SimpleNamespace:
    """A picture and an answer."""
    run = nodepack.run
    model, vq = run(NODES["DimooLoader"], checkpoint=checkpoint).args
    prompt = run(NODES["DimooTextEncode"], text="a red fox").args[0]
    canvas = run(NODES["DimooEmptyCanvas"], width=64, height=64, batch_size=1).args[0]
    codes = run(
        NODES["DimooSampler"], model=model, prompt=prompt, canvas=canvas, seed=3, steps=2, cfg=2.0, temperature=1.0
    ).args[0]
    pixels = run(NODES["DimooVQDecode"], vq=vq, canvas=codes).args[0]
    assert pixels.dtype == torch.float32 and bool(torch.isfinite(pixels).all())
    run(NODES["DimooVQEncode"], vq=vq, image=pixels)
    told = run(NODES["DimooDescribe"], model=model, vq=vq, image=pixels, max_tokens=4, steps=2, block_length=4).args[0]
    dtypes = {part.dtype for part in model.core.transformer.parameters() if part.dtype in (*SERVED, torch.float16)}
    assert dtypes <= set(SERVED)
    return SimpleNamespace(
        pixels=pixels, text=told, weight=max(dtypes, key=str), vq=next(vq.patcher.model.parameters()).dtype
    )
