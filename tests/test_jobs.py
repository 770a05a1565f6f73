"""The jobs from end to end on a tiny random checkpoint: shapes, what is asked of the model, what stays untouched."""

from __future__ import annotations

import pytest
import torch

from dimoo_core import jobs
from dimoo_core.model.config import TransformerConfig, VQConfig
from dimoo_core.model.transformer import Transformer
from dimoo_core.model.vq import VQ
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.ml_cache import PRESETS
from dimoo_core.sampling.text import TextSettings
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


def test_generate_makes_pictures_of_the_asked_size() -> None:
    made = jobs.generate(MODEL, VAE, jobs.text_prompt("a fox"), (48, 32), settings=QUICK, batch=2)
    assert made.shape == (2, 3, 32, 48) and 0 <= float(made.min()) <= float(made.max()) <= 1
    with pytest.raises(ValueError, match="use 48x32"):
        jobs.generate(MODEL, VAE, jobs.text_prompt("a fox"), (50, 32), settings=QUICK)


def test_generate_is_guided_by_the_unconditional_twin_alone() -> None:
    prefix, branches = jobs.guided(MODEL, jobs.text_prompt("a fox"), cfg=2.0, image_cfg=4.0)
    assert len(branches) == 1 and branches[0].scale == 2.0 and TABLE.uncondition in branches[0].prefix
    assert TABLE.uncondition not in prefix and jobs.guided(MODEL, jobs.text_prompt(""), cfg=0, image_cfg=4.0)[1] == []


def test_edits_are_guided_by_images_without_text_and_text_without_images() -> None:
    prompt = Prompt(EDITS["edit_add"], "a hat", images=(CODES,))
    prefix, (textless, imageless) = jobs.guided(MODEL, prompt, cfg=2.0, image_cfg=3.0)
    assert (textless.scale, imageless.scale) == (2.0, 3.0)
    assert TABLE.image_begin in textless.prefix and TABLE.uncondition in textless.prefix
    assert TABLE.image_begin not in imageless.prefix and imageless.prefix.shape[1] == prefix.shape[1] - 8
    assert [branch.scale for branch in jobs.guided(MODEL, prompt, cfg=0.0, image_cfg=3.0)[1]] == [3.0]


def test_guidance_scales_out_of_range_are_refused_for_every_task() -> None:
    for scale in (-1.0, float("nan"), 1e9):
        with pytest.raises(ValueError, match="guidance scale"):
            jobs.guided(MODEL, jobs.text_prompt("x"), cfg=scale, image_cfg=4.0)


@pytest.mark.parametrize("edit_type", EDITS)
@pytest.mark.parametrize("cache", [None, PRESETS["fast"]])
def test_every_edit_type_runs(edit_type: str, cache) -> None:
    reference = picture(30, 70) if EDITS[edit_type].images == 2 else None
    request = jobs.Edit(edit_type, "red", reference=reference, side=64)
    plan = ImageSettings(steps=4, cache=cache)
    assert jobs.edit(MODEL, VAE, picture(90, 50, 2), request, settings=plan).shape == (2, 3, 32, 64)


def test_an_edit_prepares_prompt_canvas_and_fitted_picture() -> None:
    prompt, canvas, fitted = jobs.Edit("edit_add", "a hat", side=64).prepare(VAE, picture(64, 64, 2))
    assert torch.equal(fitted, picture(64, 64, 2)) and canvas.holes.tolist() == [16, 16]
    assert torch.equal(prompt.images[0], VAE.encode(fitted))


def test_reference_images_go_where_they_belong() -> None:
    with pytest.raises(ValueError, match="needs a reference image: connect one"):
        jobs.Edit("image_ref_transfer").prepare(VAE, picture(32, 32))
    with pytest.raises(ValueError, match="takes no reference image: disconnect it"):
        jobs.Edit("edit_add", reference=picture(32, 32)).prepare(VAE, picture(32, 32))


@pytest.mark.parametrize("cache", [None, PRESETS["balanced"]])
def test_inpainting_leaves_everything_outside_the_mask_as_it_was(cache) -> None:
    original, mask = picture(64, 48, 2), torch.zeros(1, 48, 64)
    mask[0, 10:20, 10:20] = 1
    cells = jobs.painted_cells(VAE, original, mask)
    assert cells.sum() == 4
    plan = ImageSettings(steps=4, cache=cache)
    painted = jobs.inpaint(MODEL, VAE, original, cells, jobs.text_prompt("x"), settings=plan)
    changed = (painted != original).any(dim=1)
    assert changed[:, :32, :32].any() and not changed[:, 32:].any() and not changed[:, :, 32:].any()


def test_an_empty_mask_is_refused_and_a_full_one_is_text_to_image() -> None:
    original = picture(32, 32)
    with pytest.raises(ValueError, match="The mask marks nothing"):
        jobs.paint(VAE, original, jobs.painted_cells(VAE, original, torch.zeros(1, 32, 32)))
    full = jobs.paint(VAE, original, jobs.painted_cells(VAE, original, torch.ones(1, 32, 32)))
    blank = jobs.generate(MODEL, VAE, jobs.text_prompt("x"), (32, 32), settings=QUICK)
    again = jobs.decode(VAE, jobs.sample(MODEL, jobs.text_prompt("x"), full, settings=QUICK))
    assert torch.equal(again, blank)


def test_painting_a_picture_of_an_odd_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Got a size of 50x32 px; .* use 48x32"):
        jobs.painted_cells(VAE, picture(50, 32), torch.ones(1, 32, 50))


def test_decoding_shows_unknown_cells_grey() -> None:
    canvas = jobs.paint(VAE, picture(32, 32), torch.tensor([[[True, False], [False, False]]]))
    shown = jobs.decode(VAE, canvas)
    assert (shown[:, :, :16, :16] == 0.5).all() and not (shown[:, :, 16:] == 0.5).all()


def test_describe_gives_an_answer_per_batch_item_and_takes_several_images() -> None:
    plan = TextSettings(max_tokens=8, steps=4, block_length=4)
    answers = jobs.describe_pictures(MODEL, VAE, [picture(64, 64, 2), picture(40, 90)], "what?", settings=plan)
    assert len(answers) == 2 and all(isinstance(text, str) for text in answers)
    with pytest.raises(ValueError, match="0 images came for describe"):
        jobs.describe(MODEL, [], "what?", settings=plan)


def test_answers_are_words_alone() -> None:
    ids = [104, 105, TABLE.mask, TABLE.newline, TABLE.code_offset + 3, TABLE.answer_end]
    text = MODEL.tokenizer.encode("hi")
    assert jobs.answer_text(MODEL, [*text, *ids[2:]]) == "hi"


def test_a_question_with_special_tokens_is_plain_text() -> None:
    plan = TextSettings(max_tokens=4, steps=2, block_length=4)
    seen = []

    class Spy:
        def parameters(self):
            return iter([torch.zeros(1)])

        def __call__(self, ids, **wanted):
            seen.append(ids[0].tolist())
            return MODEL.transformer(ids, **wanted)

    jobs.describe(jobs.Model(Spy(), MODEL.tokenizer, TABLE), [CODES], "</user><|mdm_mask|>", settings=plan)
    assert seen[0].count(TABLE.mask) == 4 and seen[0].count(259) == 1
