"""Texts in the page are plain and keep their truth: no measured numbers, no private vocabulary, no dead links.

What nano gets right, how long something takes and how much memory it needs changes with every version; it is measured
and written down in docs/quality.md and docs/performance.md only. Settings that a user types are not measured numbers.
"""

from __future__ import annotations

import re

import pytest

from .. import nodepack, texts

NUMBER = r"\d+(?:[.,]\d+)?"
MEASURED = re.compile(
    rf"{NUMBER}\s?(?:%|\u2030|\uff05|percent\b|per cent\b)"
    rf"|{NUMBER}\s?(?:[KMGT]i?B|bytes)\b"
    rf"|{NUMBER}\s?(?:s|ms|secs?|seconds?|min|minutes?|h|hours?)\b"
    rf"|{NUMBER}\s?(?:x(?!\w|\s?\d)|times\b|\u00d7(?!\s?\d))"  # 2x faster, but not 512x512 and 512 x 512
    rf"|{NUMBER}\s?(?:\u500d|\u79d2|\u5206\u949f|\u5c0f\u65f6|\u5b57\u8282)"  # times, seconds, minutes, hours, bytes
    r"|\d+/\d+"
    r"|\bseconds\b|\bminutes\b|\bhours\b|\babout an? (?:second|minute|hour)\b"
    r"|[\u4e00\u4e8c\u4e24\u4e09\u51e0]+(?:\u79d2|\u5206\u949f|\u5c0f\u65f6)",  # one, two, three, some seconds ...
)
ALLOWED = ("download: Lumina-DiMOO (16 GB)",)  # a choice of the loader, which saved workflows hold

# How this pack used to speak, and English does not. "is no longer" and "is not" are fine.
HABITS = re.compile(
    r"\b(?:is|are) no (?!longer|more)\w+|\banew\b|\bshall\b|\bmend(?:s|ed)?\b|\bas told\b|\bas (?:it|they) comes?\b"
    r"|\b(?:is|are) (?:wanted|needed)\b|\bever (?:more|less)\b|\b(?:picture|image|shape|type)s? came\b|\bwhat came\b"
    r"|\bso many\b|\bthe surest\b|\bin all\b|\bserves\b",
    re.IGNORECASE,
)

OLD = (
    "quality, balanced and fast do 68, 51 and 37 % of its work",
    "Needs memory: 4.4 GB for 1024x1024 px with the 8B model.",
    "that is at most 1/24 and 1/62 of the work",
    "makes 9.2 GB of the transformer's 16.2",
    "a picture takes a second or two on a CPU; ten take 12 s, or 1.5 s each",
    "draws coloured shapes and needs about a second",
    "it is 2x faster",
    "up to 24 times the work",
    "\u5206\u522b\u8fbe\u5230 90% \u6216 80% \u7684 token",
    "\u5728 CPU \u4e0a\u4e00\u4e24\u79d2\u5c31\u80fd\u51fa\u4e00\u5f20\u56fe",
    "\u5feb 3.5 \u500d",
)
SETTINGS = (
    "set 1024 x 1024 px, steps 64, cfg 4, temperature 1",
    "1024x1024 for the 8B model, 128x128 for nano",
    "cells of 16 px, 16x16 px each",
    "probability is at least 0.9 or 0.8",
    "choose *download: Lumina-DiMOO (16 GB)* in the loader",
    "a first and a second picture",
)


def measured(text: str) -> list[str]:
    """What looks like a measured number in a text."""
    for allowed in ALLOWED:
        text = text.replace(allowed, "")
    return MEASURED.findall(text)


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_no_text_has_a_measured_number(language: str) -> None:
    found = {name: measured(text) for name, text in texts.shown(language).items()}
    assert not {name: numbers for name, numbers in found.items() if numbers}


@pytest.mark.parametrize("text", OLD)
def test_measured_numbers_are_found(text: str) -> None:
    assert measured(text)


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_are_not_taken_for_measured_numbers(text: str) -> None:
    assert not measured(text)


def test_english_is_plain() -> None:
    found = {name: HABITS.findall(text) for name, text in texts.shown("en").items()}
    assert not {name: habits for name, habits in found.items() if habits}


def test_links_lead_somewhere() -> None:
    """To the published model or to a file of this repository."""
    repository = re.search(r'^Repository = "(.+)"$', (texts.ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert repository
    ours = f"{repository[1]}/blob/main/"
    known = {"https://huggingface.co/Alpha-VLLM/Lumina-DiMOO"}
    for language in texts.LANGUAGES:
        for name, text in texts.shown(language).items():
            links = set(re.findall(r"https?://[^\s)]+", text)) - known
            dead = [link for link in links if not (texts.ROOT / link.removeprefix(ours)).is_file()]
            assert not dead, f"{name}: {dead}"


@pytest.mark.parametrize("node", ["DimooSampler", "DimooDescribe"])
def test_the_seed_says_what_a_batch_does_to_increment(node: str) -> None:
    for language in texts.LANGUAGES:
        tooltip = texts.leaves(texts.locale(language))[f"{node}.inputs.seed.tooltip"]
        for text in (tooltip, texts.page(node, language).read_text(encoding="utf-8")):
            assert "increment" in text and "randomize" in text and "N - 1" in text


def test_mask_paint_and_image_edit_say_what_surprises() -> None:
    """A rectangle takes the place of a mask only where it has a size, and a large picture comes out small."""
    english = texts.shown("en")
    ratios = (f"DimooMaskPaint.inputs.{name}.tooltip" for name in ("mask_h_ratio", "mask_w_ratio"))
    for name in (*ratios, "web/docs/DimooMaskPaint.md"):
        assert "At 0 a mask is required." in english[name], name
    for name in ("DimooImageEdit.inputs.side.tooltip", "web/docs/DimooImageEdit.md"):
        assert re.search(r"large picture (?:therefore )?comes out small", english[name]), name
        assert "0 or less: the size that the checkpoint was made for" in re.sub(r"\s+", " ", english[name])
        assert re.search(r"DiMOO\s+Stitch\*? brings the result back to its size", english[name])


def test_every_edit_type_is_explained_on_its_help_page() -> None:
    for language in texts.LANGUAGES:
        text = texts.page("DimooImageEdit", language).read_text(encoding="utf-8")
        options = texts.inputs("DimooImageEdit")["edit_type"]["options"]
        assert not [one for one in options if f"*{one}*" not in text]


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_help_pages_name_templates_by_the_titles_that_the_page_shows(language: str) -> None:
    titles = {stem.partition(" ")[2] for stem in nodepack.part("nodes.templates").SLUGS.values()}
    named = {
        (page, title)
        for page, text in texts.pages(language).items()
        for title in re.findall(r"(?:template\s+|\u6a21\u677f )\*([^*]+)\*", text)
    }
    assert len(named) > 5 and not [(page, title) for page, title in named if title not in titles]


def test_notes_say_how_to_get_the_8b_model_in_one_wording_and_name_widgets() -> None:
    """ "guidance 4" names no widget of the sampler."""
    sentence = (
        "**With the 8B model**: choose *download: Lumina-DiMOO (16 GB)* in the loader, or put the "
        "[Lumina-DiMOO](https://huggingface.co/Alpha-VLLM/Lumina-DiMOO) folder into `models/dimoo`. "
    )
    nothing = "Nothing else has to change: size, steps and guidance follow the checkpoint."
    widgets = {name for node in texts.NODES for name in texts.inputs(node)}
    for name, text in texts.notes().items():
        assert text.count(sentence) == 1, name
        further = text.partition(sentence)[2]
        named = re.findall(r"\*([a-z_]+)\*", further)
        assert further.startswith(nothing) or (named and set(named) <= widgets), name
