"""The Python face, as a notebook uses it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import dimoo_core as dimoo
from dimoo_core import jobs, memory
from dimoo_core.checkpoint.adapter_file import read_adapter
from dimoo_core.checkpoint.defaults import Defaults
from dimoo_core.model.adapters import Adapter
from dimoo_core.nano.judge import judge, matches
from dimoo_core.pictures.pixels import from_pil, to_pil
from dimoo_core.pipeline import lora_path, mask_of, pixels_of
from dimoo_core.sampling.ml_cache import PRESETS
from dimoo_core.sampling.text_cache import SPEEDS
from dimoo_core.sequence.canvas import Canvas

from .lora_files import random_lora, word_lora, write_lora
from .tiny import write_checkpoint

ROOT = Path(__file__).parents[1]
STAR = "a large blue star on a pink background"
QUICK = {"steps": 2, "progress": False}


@pytest.fixture(scope="module")
def pipe() -> dimoo.Pipeline:
    return dimoo.load(device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dimoo.Pipeline:
    return dimoo.load(write_checkpoint(tmp_path_factory.mktemp("tiny")), device="cpu", dtype="fp32")


def shows(picture: Image.Image, caption: str) -> bool:
    return matches(judge(from_pil(picture)[0]).scene, caption)


def test_importing_it_costs_nothing() -> None:
    code = "import sys, dimoo_core; assert not {'torch', 'PIL', 'numpy', 'tokenizers'} & set(sys.modules)"
    code += "; assert {'load', 'Pipeline'} <= set(dir(dimoo_core))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = dimoo.lode


def test_three_lines_paint_edit_and_describe_what_was_asked(pipe) -> None:
    picture = pipe.generate(STAR, seed=7)[0]
    assert isinstance(picture, Image.Image) and picture.size == (128, 128) and shows(picture, STAR)
    edited = pipe.edit(picture, "make the star yellow")[0]
    assert shows(edited, "a large yellow star on a pink background")
    said = pipe.describe(picture)
    assert "blue star" in said and "pink" in said


def test_a_batch_has_consecutive_seeds_and_settings_reach_the_sampler(pipe) -> None:
    two = pipe.generate("a star", seed=3, batch=2, size=(160, 96), **QUICK)
    assert [one.size for one in two] == [(160, 96)] * 2
    (second,) = pipe.generate("a star", seed=4, size=(160, 96), **QUICK)
    assert two[1].tobytes() == second.tobytes() != two[0].tobytes()


def test_what_is_left_out_is_the_checkpoints_own(pipe, tiny) -> None:
    ours, theirs = pipe.image_settings(), tiny.image_settings()
    assert (ours.steps, ours.guidance.text) == (16, 0.0) and (theirs.steps, theirs.guidance.text) == (64, 4.0)
    changed = pipe.image_settings(
        seed=1, steps=3, cfg=1.5, image_cfg=2.5, temperature=0.5, guidance_start=0.25, ml_cache="fast"
    )
    assert (changed.seed, changed.steps, changed.temperature, changed.cache) == (1, 3, 0.5, PRESETS["fast"])
    assert (changed.guidance.text, changed.guidance.image, changed.guidance.start) == (1.5, 2.5, 0.25)
    assert pipe.text_settings().max_tokens == 32 and tiny.text_settings().max_tokens == 128
    said = pipe.text_settings(max_tokens=8, steps=4, block_length=4, temperature=1.0, cfg=1.0, seed=2, speed="fast")
    assert (said.max_tokens, said.steps, said.block_length, said.temperature) == (8, 4, 4, 1.0)
    assert (said.cfg, said.seed, said.policy) == (1.0, 2, SPEEDS["fast"])


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ({}, (32, 32, 32)),
        ({"max_tokens": 32}, (32, 32, 32)),
        ({"max_tokens": 64}, (64, 64, 32)),
        ({"max_tokens": 8}, (8, 8, 8)),
        ({"max_tokens": 100}, (100, 100, 25)),
        ({"max_tokens": 97}, (97, 97, 1)),
        ({"max_tokens": 64, "steps": 16}, (64, 16, 32)),
        ({"max_tokens": 64, "block_length": 16}, (64, 64, 16)),
        ({"block_length": 8}, (32, 32, 8)),
        ({"steps": 8}, (32, 8, 32)),
    ],
    ids=str,
)
def test_steps_and_blocks_fit_an_answer_of_any_length(pipe, typed: dict, taken: tuple) -> None:
    settings = pipe.text_settings(**typed)
    assert (settings.max_tokens, settings.steps, settings.block_length) == taken


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; expected"),
        ({"max_tokens": -1}, "max_tokens is -1; expected"),
        ({"max_tokens": 10**12}, "max_tokens is 1000000000000; expected"),
        ({"max_tokens": "many"}, "max_tokens is 'many'; expected"),
        ({"block_length": 7}, "block_length 7 does not divide max_tokens 32"),
        ({"block_length": 0}, "block_length is 0; expected"),
    ],
)
def test_answers_of_no_length_are_one_sentence(pipe, typed: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pipe.text_settings(**typed)


def test_a_size_far_from_the_checkpoints_is_said_once(pipe, caplog) -> None:
    pipe = pipe.with_adapters([])  # one that has said nothing yet
    for size in [(128, 128), (160, 96), (240, 240), (80, 80), (256, 256), (256, 256), (64, 64)]:
        pipe.generate("a star", size=size, steps=1, progress=False)
    start = "DiMOO-nano was made for about 128x128 px: choose a size near that."
    assert [one.getMessage() for one in caplog.records] == [
        f"The canvas is 256x256 px; {start}",
        f"The canvas is 64x64 px; {start}",
    ]
    pipe.edit(Image.new("RGB", (64, 64)), "make the circle blue", side=384, steps=1, progress=False)
    assert "The canvas is 384x384 px" in caplog.text


def test_sizes_between_those_of_edits_and_of_new_pictures_are_near() -> None:
    published = Defaults()
    sizes = [(512, 512), (1024, 1024), (1536, 768), (2032, 2048), (272, 256)]
    assert not any(published.is_far(*size) for size in sizes)
    assert published.is_far(2048, 2048) and published.is_far(256, 256) and published.is_far(16, 4096)


def test_inpainting_changes_the_marked_part_alone_at_any_size(tiny) -> None:
    picture = to_pil(torch.rand(3, 45, 70, generator=torch.Generator().manual_seed(0)))
    mask = Image.new("L", (7, 5))
    mask.paste(255, (0, 0, 2, 2))
    painted = tiny.inpaint(picture, "x", mask, **QUICK)[0]
    changed = (from_pil(painted) != from_pil(picture)).any(dim=1)[0]
    assert painted.size == picture.size and changed[:32, :32].any()
    assert not changed[32:].any() and not changed[:, 32:].any()
    around = tiny.outpaint(picture, "x", mask, **QUICK)[0]
    kept = (from_pil(around) == from_pil(picture)).all(dim=1)[0]
    assert kept[:16, :16].all() and not kept[32:].all()
    assert tiny.inpaint(picture, "x", mask_width=0.5, grow=1, batch=2, **QUICK)[1].size == picture.size


def test_pictures_come_as_pil_files_or_tensors(tiny, tmp_path: Path) -> None:
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    to_pil(pixels).save(tmp_path / "a.png")
    forms = (to_pil(pixels), tmp_path / "a.png", str(tmp_path / "a.png"), pixels, pixels[None])
    ask = {"max_tokens": 4, "steps": 2, "block_length": 4, "progress": False}
    assert len({tiny.describe(form, **ask) for form in forms}) == 1
    assert isinstance(tiny.describe([forms[0], forms[1]], "what changed?", **ask), str)
    style = tiny.edit(forms[0], type="image_ref_transfer", reference=forms[3], side=64, **QUICK)[0]
    assert style.size == (64, 64)


def test_an_edit_can_keep_the_pictures_own_size_and_forms_at_that_of_the_model(tiny) -> None:
    picture = Image.new("RGBA", (301, 57), (10, 200, 30, 128))
    shown: list[tuple[int, int]] = []
    given = {"side": 64, "batch": 2, "preview": lambda forming: shown.extend(one.size for one in forming), **QUICK}
    made = tiny.edit(picture, "x", own_size=True, **given)
    assert {one.size for one in (*made, picture)} == {(301, 57)} and made[0].mode == "RGBA"
    assert set(shown) == {(128, 32)}, "a sketch of every step at the size of a large picture would cost more than it"
    assert made[0].getchannel("A").getextrema() == (128, 128) and made[0].tobytes() != made[1].tobytes()
    edges = made[0].convert("RGB").crop((0, 0, 20, 57))
    assert edges.getcolors() == [(20 * 57, (10, 200, 30))], "what fitting cut off stays"
    assert tiny.edit(picture, "x", **given)[0].size == (128, 32)


def test_tensors_of_whole_numbers_are_read_as_they_are_meant(tiny) -> None:
    grey = torch.full((3, 32, 32), 51, dtype=torch.uint8)
    assert pixels_of(grey).unique().tolist() == pytest.approx([0.2])
    assert pixels_of(grey.to(torch.uint16) * 257).unique().tolist() == pytest.approx([0.2])
    drawn = torch.zeros(32, 32)
    drawn[:16, :16] = 1
    forms = (drawn, drawn[None], drawn[None, None], drawn > 0, drawn.byte(), drawn.byte() * 255, drawn.double())
    assert all(torch.equal(mask_of(form), drawn[None]) for form in forms)
    assert len({tiny.inpaint(grey, "x", form, **QUICK)[0].tobytes() for form in forms}) == 1


def test_a_thin_line_of_a_mask_larger_than_the_picture_is_repainted(tiny) -> None:
    line = torch.zeros(1024, 1024)
    line[133] = 1
    picture = Image.new("RGB", (64, 64), "green")
    changed = (from_pil(tiny.inpaint(picture, "x", line, **QUICK)[0]) != from_pil(picture)).any(dim=1)[0]
    assert changed[:16].any() and not changed[16:].any()
    around = from_pil(tiny.outpaint(picture, "x", 1 - line, **QUICK)[0]) != from_pil(picture)
    assert torch.equal(around.any(dim=1)[0], changed), "what is not marked is a line too"


def test_a_profile_of_other_colours_is_not_given_to_rgb(tiny) -> None:
    for mode, space in (("CMYK", b"CMYK"), ("L", b"GRAY"), ("RGB", b"RGB ")):
        picture = Image.new(mode, (64, 64))
        picture.info["icc_profile"] = bytes(16) + space + bytes(108)
        painted = tiny.inpaint(picture, "x", mask_width=0.6, **QUICK)[0]
        assert ("icc_profile" in painted.info) == (mode == "RGB")


def test_progress_is_a_bar_or_a_callable_and_what_it_raises_comes_out(tiny, capsys) -> None:
    seen: list[tuple[int, int]] = []
    tiny.generate("x", size=(32, 32), steps=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.generate("x", size=(32, 32), steps=2, progress=stop)
    tiny.generate("x", size=(32, 32), steps=2)
    assert capsys.readouterr().err == "", "no bar where nobody looks"


def test_the_bar_is_shown_in_a_terminal(tiny, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    tiny.generate("x", size=(32, 32), steps=2)
    assert "generate" in (shown := capsys.readouterr().err) and "2/2" in shown
    tiny.generate("x", size=(32, 32), steps=2, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda pipe: pipe.generate("x", steps=0), "steps is 0; expected"),
        (lambda pipe: pipe.generate("x", cfg=-1), "cfg is -1; expected"),
        (lambda pipe: pipe.generate("x", ml_cache="warp"), "ml_cache is 'warp'; expected one of off"),
        (lambda pipe: pipe.generate("x", size=(100, 64)), "use 96x64"),
        (lambda pipe: pipe.edit("gone.png", "x"), "gone.png"),
        (lambda pipe: pipe.edit(Image.new("RGB", (32, 32)), "x", type="dance"), "Unknown edit type 'dance'"),
        (lambda pipe: pipe.inpaint(Image.new("RGB", (32, 32)), "x", Image.new("L", (32, 32))), "[Mm]ask"),
        (lambda pipe: pipe.inpaint(Image.new("RGB", (32, 32)), "x"), "mask is None; expected a mask, or mask_width or"),
        (lambda pipe: pipe.inpaint(Image.new("RGB", (32, 32)), "x", torch.zeros(32, 32)), "mask is empty"),
        (lambda pipe: pipe.inpaint(Image.new("RGB", (32, 32)), "x", torch.zeros(3, 32, 32)), "Got a mask of shape"),
        (lambda pipe: pipe.inpaint(Image.new("RGB", (32, 32)), "x", 7), "Got a mask of type int"),
        (lambda pipe: pipe.describe([]), "Got 0 images"),
        (lambda pipe: pipe.describe(None), "Got a picture of type NoneType; expected"),
        (lambda pipe: pipe.describe(torch.rand(2, 3, 32, 32)), "Got a batch of 2 pictures; expected a single one"),
        (lambda pipe: pipe.edit([Image.new("RGB", (32, 32))], "x"), "Got a picture of type list"),
        (lambda pipe: pipe.describe(Image.new("RGB", (32, 32)), 5), "is of type int; expected words"),
        (lambda pipe: pipe.generate(["x"]), "is of type list; expected words"),
        (lambda pipe: pipe.generate("x", batch=0), "batch is 0; expected"),
        (lambda pipe: pipe.generate("x", size=64), r"size is 64; expected \(width, height\)"),
        (lambda pipe: pipe.generate("x", size=(64.0, 64)), "width is 64.0; expected a whole number"),
        (lambda pipe: pipe.generate("x", ml_cache=3), "ml_cache is 3; expected one of off"),
        (lambda pipe: pipe.describe(Image.new("RGB", (32, 32)), speed=None), "speed is None; expected one of exact"),
        (lambda pipe: pipe.describe(Image.new("RGB", (32, 32)), speed="warp"), "speed is 'warp'"),
        (lambda _: dimoo.load("nowhere"), "nowhere does not exist"),
        (lambda _: dimoo.load("Alpha-VLLM/No-Such"), "no such model was downloaded"),
        (lambda _: dimoo.load(dtype="fp7"), "dtype is 'fp7'; expected one of auto"),
        (lambda _: dimoo.load(dtype=torch.float16), "dtype is torch.float16; expected one of auto"),
        (lambda _: dimoo.load(""), "checkpoint is ''; expected a folder"),
        (lambda _: dimoo.load(5), "checkpoint is 5; expected a folder"),
        (lambda _: dimoo.load(device="toaster"), "'toaster' cannot be used"),
    ],
)
def test_mistakes_are_one_sentence(tiny, ask, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as told:
        ask(tiny)
    assert "\n" not in str(told.value)


# LoRAs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def style(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny checkpoint that changes all that it makes, in fp16."""
    state = {key: tensor.half() for key, tensor in random_lora(tiny.checkpoint).items()}
    return write_lora(tmp_path_factory.mktemp("loras") / "style.safetensors", state)


def test_a_lora_acts_in_every_job_and_the_pipeline_without_it_stays(tiny, style: Path) -> None:
    picture = to_pil(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)))
    jobs_of = {
        "generate": lambda pipe: pipe.generate("x", size=(64, 64), **QUICK)[0].tobytes(),
        "edit": lambda pipe: pipe.edit(picture, "x", side=64, **QUICK)[0].tobytes(),
        "inpaint": lambda pipe: pipe.inpaint(picture, "x", mask_width=0.5, **QUICK)[0].tobytes(),
        "outpaint": lambda pipe: pipe.outpaint(picture, "x", mask_width=0.5, **QUICK)[0].tobytes(),
        "describe": lambda pipe: pipe.describe(picture, max_tokens=16, steps=4, block_length=16, progress=False),
    }
    before = {name: job(tiny) for name, job in jobs_of.items()}
    content, styled = style.read_bytes(), tiny.with_lora(style)
    with_it = {name: job(styled) for name, job in jobs_of.items()}
    assert all(with_it[name] != made for name, made in before.items())
    assert {name: job(styled) for name, job in jobs_of.items()} == with_it, "the same, run after run"
    assert (
        {name: job(tiny) for name, job in jobs_of.items()}
        == before
        == {name: job(tiny.with_lora(style, 0)) for name, job in jobs_of.items()}
    )
    assert style.read_bytes() == content


def test_a_lora_does_what_it_was_made_for_and_strength_says_how_much(pipe) -> None:
    """With this one nano reads "red" as "blue"; and with ML-Cache as well."""
    lora = word_lora("red", "blue")
    changed, prompt = pipe.with_lora(lora), "a large red circle on a cyan background"
    for settings in ({}, {"ml_cache": "quality"}):
        assert shows(pipe.generate(prompt, **settings)[0], prompt)
        assert shows(changed.generate(prompt, **settings)[0], prompt.replace("red", "blue"))
    assert shows(pipe.with_lora(lora, 0.0).generate(prompt)[0], prompt)
    assert shows(changed.with_lora(lora, -1.0).generate(prompt)[0], prompt), "one takes the other away"


def test_several_loras_in_any_order_give_equal_pictures(tiny, style: Path) -> None:
    other = random_lora(tiny.checkpoint, seed=1)
    one = tiny.with_lora(style, 0.7).with_lora(other, -0.5)
    two = tiny.with_lora(other, -0.5).with_lora(style, 0.7)
    made = [pipe.generate("x", size=(64, 64), **QUICK)[0].tobytes() for pipe in (one, two, tiny.with_lora(style, 0.7))]
    assert made[0] == made[1] != made[2]
    assert [(lora.name, lora.strength) for lora in one.model.adapters] in (
        [("style.safetensors", 0.7), ("The LoRA", -0.5)],
        [("The LoRA", -0.5), ("style.safetensors", 0.7)],
    )


def test_a_lora_is_moved_to_the_dtype_that_is_computed_in_and_counted(tiny, style: Path) -> None:
    styled = tiny.with_lora(style)
    (lora,) = styled.model.adapters
    assert (
        {part.dtype for part in lora.adapter.parameters()}
        == {torch.float32}
        == {part.dtype for part in tiny.model.transformer.parameters()}
    )
    numbers = sum(tensor.numel() for key, tensor in random_lora(tiny.checkpoint).items() if not key.endswith("alpha"))
    assert styled.model.adapters.nbytes == 4 * numbers
    assert styled.model.transformer is tiny.model.transformer and styled.vq is tiny.vq
    codes = torch.zeros(1, 4, 4, dtype=torch.int64)
    plans = [jobs.plan_text(pipe.model, [codes], "x", pipe.text_settings()) for pipe in (styled, tiny)]
    assert plans[0].scratch_bytes(4) > plans[1].scratch_bytes(4)


def test_a_lora_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside = Path("models") / "loras" / "sets" / "ink.v2.safetensors"
    write_lora(inside, {})
    write_lora(Path("here.safetensors"), {})
    Path("sets").mkdir()  # no LoRA, so that it hides none
    for name in ("sets/ink.v2.safetensors", "sets\\ink.v2.safetensors", "sets/ink.v2", "sets\\ink.v2"):
        assert lora_path(name) == inside
    for name in ("here.safetensors", "here", str(tmp_path / "here"), Path("here.safetensors")):
        assert lora_path(name).absolute() == tmp_path / "here.safetensors"
    write_lora(Path("sets") / "peft" / "adapter_model.safetensors", {})
    assert lora_path("sets/peft") == Path("sets/peft")
    place = tmp_path / "ComfyUI" / "custom_nodes" / "dimoo-nodes" / "dimoo_core" / "pipeline.py"
    monkeypatch.setattr("dimoo_core.pipeline.__file__", str(place))
    there = write_lora(tmp_path / "ComfyUI" / "models" / "loras" / "ink.safetensors", {})
    assert lora_path("ink") == there


def test_a_lora_that_is_absent_is_told_with_names_that_are_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'style' is no file, .* in models/loras: give the path of a \.safetensors"):
        lora_path("style")
    for name in ("models/loras/ink/styled.safetensors", "styles.safetensors", "models/loras/._style.safetensors"):
        write_lora(Path(name), {})
    Path("style.safetensors").symlink_to("nowhere")
    for name in ("style", "style.safetensors"):
        with pytest.raises(ValueError, match=r": name one of styles\.safetensors"):
            lora_path(name)
    with pytest.raises(ValueError, match=r": name one of styles\.safetensors, ink/styled\.safetensors\.$"):
        lora_path("style.safetensor")
    with pytest.raises(ValueError, match=r": name one of ink/styled\.safetensors"):
        lora_path("ink/style.safetensors")


def test_what_has_to_be_said_of_a_lora_is_in_the_log(tiny, style: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.with_lora(style)
    assert caplog.text == ""
    state = random_lora(tiny.checkpoint)
    tiny.with_lora({key: tensor * 0 for key, tensor in state.items()} | {"te.lora_down.weight": torch.ones(1)})
    assert "The LoRA changes nothing" in caplog.text
    assert "1 of the keys in The LoRA fit no module of this model and are not used: te.lora_down.weight." in caplog.text


@pytest.mark.parametrize(
    ("lora", "strength", "sentence"),
    [
        (5, 1.0, "Got a LoRA of type int; expected a file, its name, or tensors by key"),
        ("", 1.0, "'' is no file"),
        ({}, float("nan"), "strength is nan; expected a number from -100 to 100"),
        ({}, 101, "strength is 101; expected a number from -100 to 100"),
        ({}, "1", "strength is '1'; expected a number"),
        ({}, 1.0, "has no key that fits this model"),
    ],
)
def test_a_lora_that_is_none_is_one_sentence(tiny, lora: object, strength: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as told:
        tiny.with_lora(lora, strength)
    assert "\n" not in str(told.value)


def test_a_lora_that_was_read_for_another_model_is_refused(tiny, pipe) -> None:
    found = tiny.checkpoint
    file = read_adapter(random_lora(found), found.config, found.table.code_offset, name="style")
    assert tiny.with_lora(file).model.adapters
    deeper = {name.replace("blocks.0", "blocks.99"): branch for name, branch in file.branches.items()}
    for model, other, sentence in (
        (pipe, file, r"blocks\.0\.q_proj \[32, 32\], which this one has as \[160, 160\]"),
        (tiny, replace(file, adapter=Adapter(deeper)), r"blocks\.99\.q_proj \[32, 32\], which this one does not have"),
    ):
        with pytest.raises(
            ValueError, match=rf"^style was read for another model: it changes model\.transformer\.{sentence}"
        ):
            model.with_lora(other)


def test_a_lora_that_is_too_strong_is_one_sentence(tiny) -> None:
    state = {
        key: tensor * 1e29 if key.endswith("alpha") else tensor for key, tensor in random_lora(tiny.checkpoint).items()
    }
    with pytest.raises(ValueError, match=r"numbers are not finite .* or lower the strength of a LoRA\.$"):
        tiny.with_lora(state, 100).generate("x", size=(64, 64), **QUICK)


# Where models and memory are ----------------------------------------------------------------------------------------


def test_the_hubs_name_finds_what_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "models" / "Lumina-Tiny")
    assert dimoo.load("Owner/Lumina-Tiny", device="cpu").checkpoint.path == Path("models/Lumina-Tiny")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    write_checkpoint(tmp_path / "cache" / "models--Owner--Other" / "snapshots" / "0123abcd")
    assert dimoo.load("Owner/Other", device="cpu").checkpoint.path.name == "0123abcd"


def test_where_memory_is_short_the_picture_is_the_same(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny.generate("x", size=(64, 64), **QUICK)[0]
    placed: list[jobs.Placement] = []
    run = jobs.ImagePlan.run
    monkeypatch.setattr(
        jobs.ImagePlan, "run", lambda plan, where, *rest: placed.append(where) or run(plan, where, *rest)
    )
    monkeypatch.setattr("dimoo_core.pipeline.free_bytes", lambda _: 1)
    little = tiny.generate("x", size=(64, 64), **QUICK)[0]
    assert placed[0].chunk_rows is not None and little.size == plain.size
    difference = (from_pil(little) - from_pil(plain)).abs().max()
    assert float(difference) <= 2 / 255, "tiles round otherwise, codes are equal"


def test_graphs_are_given_up_before_work_goes_in_chunks(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tiny.image_settings(steps=4, ml_cache="balanced")
    plan = jobs.plan_image(tiny.model, jobs.text_prompt("x"), Canvas.empty(1, 4, 4), cached)
    recorded, whole = (plan.scratch_bytes(4, graphs=graphs) for graphs in (True, False))
    monkeypatch.setattr(jobs.Model, "device", torch.device("cuda"))
    for free, placement in {
        recorded: jobs.Placement(torch.device("cuda"), None, graphs=True),
        recorded - 1: jobs.Placement(torch.device("cuda"), None, graphs=False),
        whole - 1: jobs.Placement(torch.device("cuda"), memory.CHUNK_ROWS, graphs=False),
    }.items():
        monkeypatch.setattr("dimoo_core.pipeline.free_bytes", lambda _, free=free: free)
        assert tiny.place(plan) == placement
