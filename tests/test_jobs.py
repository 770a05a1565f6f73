"""The jobs from end to end on a tiny random checkpoint: shapes, what is asked of the model, what stays untouched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dimoo_core import jobs, memory
from dimoo_core.model.config import TransformerConfig, VQConfig
from dimoo_core.model.quantised import FP8
from dimoo_core.model.transformer import Transformer
from dimoo_core.model.vq import VQ
from dimoo_core.sampling.guidance import Guidance
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.ml_cache import PRESETS
from dimoo_core.sampling.text import TextSettings
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.layout import answer_length
from dimoo_core.sequence.prompt import EDITS, Prompt
from dimoo_core.sequence.tokenizer import TextTokenizer

from .tiny import AUTOENCODER, TABLE, TRANSFORMER, random_weights, tokenizer_json


def made(module):
    random_weights(module, 1)
    return module


MODEL = jobs.Model(
    made(Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset)),
    TextTokenizer.from_str(tokenizer_json()),
    TABLE,
    sides=(64, 64),
)
VAE = made(VQ(VQConfig.from_dict(AUTOENCODER)))
QUICK = ImageSettings(steps=3)
CODES = torch.zeros(1, 2, 2, dtype=torch.int64)


def picture(width: int, height: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def plan(prompt: Prompt, text: float = 2.0, image: float = 4.0) -> jobs.ImagePlan:
    return jobs.plan_image(MODEL, prompt, Canvas.empty(1, 2, 2), ImageSettings(guidance=Guidance(text, image)))


def test_generate_makes_pictures_of_the_asked_size() -> None:
    made = jobs.generate(MODEL, VAE, jobs.text_prompt("a fox"), 48, 32, settings=QUICK, batch=2)
    assert made.shape == (2, 3, 32, 48) and 0 <= float(made.min()) <= float(made.max()) <= 1
    with pytest.raises(ValueError, match="use 48x32"):
        jobs.generate(MODEL, VAE, jobs.text_prompt("a fox"), 50, 32, settings=QUICK)


def test_generate_is_guided_by_the_unconditional_prompt_alone() -> None:
    made = plan(jobs.text_prompt("a fox"))
    assert len(made.branches) == 1 and made.branches[0].scale == 2.0
    assert TABLE.uncondition in made.branches[0].prefix and TABLE.uncondition not in made.prefix
    assert plan(jobs.text_prompt(""), text=0).branches == ()


def test_edits_are_guided_by_images_without_text_and_text_without_images() -> None:
    prompt = Prompt(EDITS["edit_add"], "a hat", images=(CODES,))
    made = plan(prompt, 2.0, 3.0)
    textless, imageless = made.branches
    assert (textless.scale, imageless.scale) == (2.0, 3.0)
    assert TABLE.image_begin in textless.prefix and TABLE.uncondition in textless.prefix
    assert TABLE.image_begin not in imageless.prefix and imageless.prefix.shape[1] == made.prefix.shape[1] - 8
    assert [branch.scale for branch in plan(prompt, 0.0, 3.0).branches] == [3.0]


@pytest.mark.parametrize("scale", [-1.0, float("nan"), 1e9])
def test_guidance_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"^cfg is .*; expected a number"):
        Guidance(scale)
    with pytest.raises(ValueError, match=r"^image_cfg is .*; expected a number"):
        Guidance(image=scale)
    with pytest.raises(ValueError, match=r"^guidance_start is .*; expected a number"):
        Guidance(start=scale)


@pytest.mark.parametrize("edit_type", EDITS)
@pytest.mark.parametrize("cache", [None, PRESETS["fast"]])
def test_every_edit_type_runs(edit_type: str, cache) -> None:
    reference = picture(30, 70) if EDITS[edit_type].images == 2 else None
    prepared = jobs.Edit(edit_type, "red", reference=reference, side=64).prepare(VAE, picture(90, 50, 2))
    settings = ImageSettings(steps=4, cache=cache)
    assert jobs.edit(MODEL, VAE, prepared, settings=settings).shape == (2, 3, 32, 64)


def test_an_edit_prepares_prompt_canvas_and_fitted_picture() -> None:
    prepared = jobs.Edit("edit_add", "a hat", side=64).prepare(VAE, picture(64, 64, 2))
    assert torch.equal(prepared.fitted, picture(64, 64, 2)) and prepared.canvas.holes.tolist() == [16, 16]
    assert torch.equal(prepared.prompt.images[0], VAE.encode(prepared.fitted))


def test_reference_pictures_go_where_they_belong() -> None:
    with pytest.raises(ValueError, match="takes the style of a reference picture: give one"):
        jobs.Edit("image_ref_transfer").prepare(VAE, picture(32, 32))
    with pytest.raises(ValueError, match="takes no reference picture: leave it out"):
        jobs.Edit("edit_add", reference=picture(32, 32)).prepare(VAE, picture(32, 32))
    with pytest.raises(ValueError, match="Got 2 pictures and 3 reference pictures"):
        jobs.Edit("image_ref_transfer", reference=picture(32, 32, 3)).prepare(VAE, picture(32, 32, 2))


def test_pictures_for_a_canvas_of_another_batch_are_one_sentence() -> None:
    prepared = jobs.Edit("edit_add", "a hat", side=64).prepare(VAE, picture(64, 64, 2))
    with pytest.raises(ValueError, match="Got 2 prompts with pictures for a canvas of 3; expected one prompt"):
        jobs.plan_image(MODEL, prepared.prompt, Canvas.empty(3, 4, 4), QUICK).run()


@pytest.mark.parametrize("cache", [None, PRESETS["balanced"]])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (70, 41)])
def test_inpainting_leaves_everything_outside_the_mask_as_it_was(cache, width: int, height: int) -> None:
    original, mask = picture(width, height, 2), torch.zeros(1, height, width)
    mask[0, 10:20, 10:20] = 1
    settings = ImageSettings(steps=4, cache=cache)
    prepared = jobs.Inpaint(mask).prepare(VAE, original)
    painted = jobs.inpaint(MODEL, VAE, prepared, jobs.text_prompt("x"), settings=settings)
    assert painted.shape == original.shape
    changed = (painted != original).any(dim=1)
    assert changed[:, :32, :32].any() and not changed[:, 32:].any() and not changed[:, :, 32:].any()


@pytest.mark.parametrize(("width", "height"), [(1080, 1920), (100, 64), (64, 100), (97, 65)])
def test_outpainting_reaches_the_border_at_any_size(width: int, height: int) -> None:
    """1080x1920 is 67.5 cells wide: the last strip of the border belongs to a cell of which only a half is picture."""
    prepared = jobs.Inpaint(outpaint=True, width_ratio=0.7, height_ratio=0.7).prepare(VAE, picture(width, height))
    unknown = prepared.canvas.unknown[0]
    assert unknown[0].all() and unknown[-1].all() and unknown[:, 0].all() and unknown[:, -1].all()
    assert not unknown.all()


def test_masks_that_mark_nothing_or_everything_are_refused() -> None:
    original = picture(32, 32)
    with pytest.raises(ValueError, match="The mask marks nothing"):
        jobs.Inpaint(torch.zeros(1, 32, 32)).prepare(VAE, original)
    with pytest.raises(ValueError, match="covers the whole picture"):
        jobs.Inpaint(torch.ones(1, 32, 32)).prepare(VAE, original)
    with pytest.raises(ValueError, match="covers the whole picture"):
        jobs.Inpaint(width_ratio=1.0, height_ratio=1.0).prepare(VAE, original)
    with pytest.raises(ValueError, match="Got a mask of 16x32 px for a picture of 32x32 px"):
        jobs.Inpaint(torch.ones(1, 32, 16)).prepare(VAE, original)


def test_decoding_shows_unknown_cells_grey() -> None:
    unknown = torch.tensor([[[True, False], [False, False]]])
    shown = jobs.decode(VAE, Canvas.from_codes(VAE.encode(picture(32, 32)), unknown))
    assert (shown[:, :, :16, :16] == 0.5).all() and not (shown[:, :, 16:] == 0.5).all()


def test_decoding_codes_of_another_codebook_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="encode the picture with the VQ of the same checkpoint"):
        jobs.decode(VAE, Canvas.from_codes(torch.full((1, 2, 2), VAE.codebook_size)))


def test_describe_gives_an_answer_per_batch_item_and_takes_several_images() -> None:
    settings = TextSettings(max_tokens=8, steps=4, block_length=4)
    answers = jobs.describe(MODEL, VAE, [picture(64, 64, 2), picture(40, 90)], "what?", settings=settings)
    assert len(answers) == 2 and all(isinstance(text, str) for text in answers)
    with pytest.raises(ValueError, match="Got 0 images for describe; expected at least one"):
        jobs.plan_text(MODEL, [], "what?", settings)


class Broken(torch.nn.Module):
    """The transformer, whose logits are `value` from pass `first` on."""

    def __init__(self, value: float, first: int):
        super().__init__()
        self.config, self.value, self.left = MODEL.transformer.config, value, first
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, ids: torch.Tensor, **rest) -> torch.Tensor:
        logits, self.left = MODEL.transformer(ids, **rest), self.left - 1
        return logits if self.left >= 0 else torch.full_like(logits, self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("first", "step"), [(0, 1), (2, 3)])
def test_numbers_that_are_not_finite_are_told_with_their_step(value: float, first: int, step: int) -> None:
    model = jobs.Model(Broken(value, first), MODEL.tokenizer, TABLE, (64, 64))
    settings = ImageSettings(steps=3, guidance=Guidance(0, 0))
    with pytest.raises(ValueError, match=rf"not finite \(step {step}\)"):
        jobs.generate(model, VAE, jobs.text_prompt("x"), 32, 32, settings=settings)
    model = jobs.Model(Broken(value, first), MODEL.tokenizer, TABLE, (64, 64))
    with pytest.raises(ValueError, match=rf"not finite \(step {step}\)"):
        jobs.plan_text(model, [CODES], "x", TextSettings(3, 3, 3)).run()


def test_a_vq_that_is_not_finite_is_told() -> None:
    broken = made(VQ(VQConfig.from_dict(AUTOENCODER)))
    with torch.no_grad():
        broken.post_quant_conv.weight[0, 0] = float("nan")
        broken.quant_conv.weight[0, 0] = float("inf")
    for work in (lambda: jobs.encode(broken, picture(32, 32)), lambda: jobs.decode(broken, Canvas.from_codes(CODES))):
        with pytest.raises(ValueError, match="The VQ's numbers are not finite"):
            work()


def test_a_codebook_that_is_not_finite_is_not_the_nearest_to_everything() -> None:
    broken = made(VQ(VQConfig.from_dict(AUTOENCODER)))
    with torch.no_grad():
        broken.quantize.embedding.weight[3, 0] = float("nan")
    with pytest.raises(ValueError, match="The VQ's numbers are not finite"):
        jobs.encode(broken, picture(32, 32))


@pytest.mark.parametrize("batch", [0, -1, 1.5, "2", True])
def test_a_batch_that_is_not_a_number_of_pictures_is_refused(batch) -> None:
    for prepare in (
        lambda: jobs.Edit("edit_add").prepare(VAE, picture(32, 32), batch),
        lambda: jobs.Inpaint().prepare(VAE, picture(96, 32), batch),
        lambda: jobs.generate(MODEL, VAE, jobs.text_prompt("x"), 32, 32, settings=QUICK, batch=batch),
    ):
        with pytest.raises(ValueError, match=r"batch is .*; expected a whole number of at least 1"):
            prepare()


@pytest.mark.parametrize(("pictures", "masks", "batch"), [(2, 3, 1), (3, 2, 1), (2, 1, 4)])
def test_pictures_and_masks_of_other_batches_are_one_sentence(pictures: int, masks: int, batch: int) -> None:
    mask = torch.zeros(masks, 32, 32)
    mask[:, :16] = 1
    with pytest.raises(ValueError, match=rf"Got {pictures} pictures and {masks} masks for a batch of"):
        jobs.Inpaint(mask).prepare(VAE, picture(32, 32, pictures), batch)


@pytest.mark.parametrize("outpaint", [False, True])
def test_a_rectangle_that_marks_nothing_is_called_a_rectangle(outpaint: bool) -> None:
    share = 1.0 if outpaint else 0.1
    with pytest.raises(ValueError, match=f"rectangle of {share:g} x {share:g} of a picture of 64x64 px marks nothing"):
        jobs.Inpaint(outpaint=outpaint, width_ratio=share, height_ratio=share).prepare(VAE, picture(64, 64))


def test_a_plan_with_quantised_weights_needs_more_memory_wherever_it_runs() -> None:
    prompt, quantised = jobs.text_prompt("x"), replace(MODEL, formats=(FP8,))
    images = [jobs.plan_image(one, prompt, Canvas.empty(1, 2, 2), QUICK) for one in (MODEL, quantised)]
    texts = [jobs.plan_text(one, [CODES], "x", TextSettings()) for one in (MODEL, quantised)]
    lengths = max(images[0].lengths) + answer_length(2, 2), texts[0].prefix.shape[1] + TextSettings().max_tokens + 2
    for (plain, widened), length in zip((images, texts), lengths, strict=True):
        more = memory.quantised_bytes(MODEL.transformer.config, 2, (FP8,), length)
        assert widened.scratch_bytes(2) == plain.scratch_bytes(2) + more > plain.scratch_bytes(2)


def test_answers_are_words_alone() -> None:
    ids = [104, 105, TABLE.mask, TABLE.newline, TABLE.code_offset + 3, TABLE.answer_end]
    text = MODEL.tokenizer.encode("hi")
    assert jobs.answer_text(MODEL, [*text, *ids[2:]]) == "hi"


def test_a_question_with_special_tokens_is_plain_text() -> None:
    settings = TextSettings(max_tokens=4, steps=2, block_length=4)
    seen = []

    class Spy:
        def parameters(self):
            return iter([torch.zeros(1)])

        def __call__(self, ids, **wanted):
            seen.append(ids[0].tolist())
            return MODEL.transformer(ids, **wanted)

    model = jobs.Model(Spy(), MODEL.tokenizer, TABLE, (64, 64))
    jobs.plan_text(model, [CODES], "</user><|mdm_mask|>", settings).run()
    assert seen[0].count(TABLE.mask) == 4 and seen[0].count(259) == 1
