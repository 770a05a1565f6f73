"""What saved workflows depend on: node ids, sockets, input names, defaults and bounds. These only grow."""

from __future__ import annotations

import pytest

from .. import nodepack

NODES = nodepack.nodes()
INFO = {name: node.GET_NODE_INFO_V1() for name, node in NODES.items()}
SEED = ("INT", 0, 0, 2**64 - 1)
SCALE = ("FLOAT", -1.0, -1.0, 100.0)
TOKENS = ("INT", -1, -1, 65_536)
MODEL, VQ, PROMPT, CANVAS = "DIMOO_MODEL", "DIMOO_VQ", "DIMOO_PROMPT", "DIMOO_CANVAS"

# node: ({input: type, or (type, default, least, most)}, {output: type})
CARD = {
    "DimooLoader": (
        {"checkpoint": ("COMBO", "DiMOO-nano (built in)"), "weight_dtype": ("COMBO", "auto")},
        {"model": MODEL, "vq": VQ},
    ),
    "DimooTextEncode": ({"text": ("STRING", ""), "negative": ("STRING", "")}, {"prompt": PROMPT}),
    "DimooEmptyCanvas": (
        {
            "width": ("INT", 0, -16, 16384),
            "height": ("INT", 0, -16, 16384),
            "batch_size": ("INT", 1, 1, 4096),
            "model": MODEL,
        },
        {"canvas": CANVAS},
    ),
    "DimooImageEdit": (
        {
            "vq": VQ,
            "image": "IMAGE",
            "edit_type": ("COMBO", "add something"),
            "text": ("STRING", ""),
            "side": ("INT", 0, -32, 4096),
            "reference_image": "IMAGE",
            "negative": ("STRING", ""),
        },
        {"prompt": PROMPT, "canvas": CANVAS, "fitted image": "IMAGE", "crop": "DIMOO_CROP"},
    ),
    "DimooMaskPaint": (
        {
            "vq": VQ,
            "image": "IMAGE",
            "mode": ("COMBO", "inpaint"),
            "mask_h_ratio": ("FLOAT", 0.0, 0.0, 1.0),
            "mask_w_ratio": ("FLOAT", 0.0, 0.0, 1.0),
            "grow": ("INT", 0, 0, 64),
            "mask": "MASK",
            "feather": ("INT", 0, 0, 256),
        },
        {"canvas": CANVAS, "snapped mask": "MASK", "preview": "IMAGE"},
    ),
    "DimooCacheSettings": (
        {
            "cache_ratio": ("FLOAT", 0.9, 0.01, 0.99),
            "warmup_ratio": ("FLOAT", 0.3, 0.0, 0.99),
            "refresh_interval": ("INT", 5, 2, 10_000),
            "candidates": ("COMBO", "all"),
            "prefix_interval": ("INT", 1, 1, 10_000),
        },
        {"cache": "DIMOO_CACHE"},
    ),
    "DimooSampler": (
        {
            "model": MODEL,
            "prompt": PROMPT,
            "canvas": CANVAS,
            "seed": SEED,
            "steps": ("INT", -1, -1, 10_000),
            "cfg": SCALE,
            "image_cfg": SCALE,
            "temperature": ("FLOAT", -1.0, -1.0, 10.0),
            "ml_cache": ("COMBO", "off"),
            "cache": "DIMOO_CACHE",
            "guidance_start": ("FLOAT", 0.0, 0.0, 0.99),
            "corrections": ("INT", 0, 0, 4096),
            "polish": ("INT", 0, 0, 100),
            "order": ("COMBO", "confidence"),
            "shared_noise": ("FLOAT", 0.0, 0.0, 1.0),
        },
        {"canvas": CANVAS},
    ),
    "DimooVQEncode": ({"vq": VQ, "image": "IMAGE"}, {"canvas": CANVAS}),
    "DimooVQDecode": ({"vq": VQ, "canvas": CANVAS}, {"image": "IMAGE"}),
    "DimooDescribe": (
        {
            "model": MODEL,
            "vq": VQ,
            "image": "IMAGE",
            "question": ("STRING", "Describe the image."),
            "max_tokens": TOKENS,
            "steps": TOKENS,
            "block_length": TOKENS,
            "temperature": ("FLOAT", 0.0, 0.0, 10.0),
            "cfg": ("FLOAT", 0.0, 0.0, 100.0),
            "seed": SEED,
            "all_in_one_question": ("BOOLEAN", False),
            "speed": ("COMBO", "exact"),
            "image_2": "IMAGE",
            "image_3": "IMAGE",
        },
        {"text": "STRING"},
    ),
    "DimooCropAroundMask": (
        {
            "image": "IMAGE",
            "mask": "MASK",
            "context": ("FLOAT", 2.0, 1.0, 16.0),
            "side": ("INT", -16, -16, 4096),
            "model": MODEL,
        },
        {"image": "IMAGE", "mask": "MASK", "crop": "DIMOO_CROP"},
    ),
    "DimooStitch": (
        {"crop": "DIMOO_CROP", "image": "IMAGE", "feather": ("INT", 0, 0, 256), "mask": "MASK"},
        {"image": "IMAGE"},
    ),
    "DimooBestOf": (
        {"model": MODEL, "vq": VQ, "image": "IMAGE", "prompt": PROMPT, "judge_by": ("COMBO", "yes or no")},
        {"best": "IMAGE", "ranked": "IMAGE", "scores": "STRING", "scores as list": "STRING"},
    ),
    "DimooCaptionFolder": (
        {
            "model": MODEL,
            "vq": VQ,
            "folder": "COMBO",
            "question": ("STRING", "Describe the image."),
            "again": ("BOOLEAN", False),
            "max_tokens": TOKENS,
            "steps": TOKENS,
            "block_length": TOKENS,
        },
        {"captions": "STRING", "files": "STRING"},
    ),
    "DimooSaveText": ({"text": "STRING", "filename_prefix": ("STRING", "dimoo/caption")}, {"file": "STRING"}),
    "DimooLora": (
        {
            "model": MODEL,
            "lora": ("COMBO", "none"),
            "strength": ("FLOAT", 1.0, -100.0, 100.0),
            "lora_model": "LORA_MODEL",
        },
        {"model": MODEL},
    ),
    "DimooTrainLora": (
        {
            "model": MODEL,
            "vq": VQ,
            "folder": ("COMBO", "none"),
            "name": ("STRING", "my-lora"),
            "trigger": ("STRING", ""),
            "steps": ("INT", 1000, 1, 1_000_000),
            "learning_rate": ("FLOAT", 1e-4, 0.0, 1.0),
            "rank": ("INT", 16, 1, 1024),
            "batch_size": ("INT", 1, 1, 1024),
            "side": ("INT", 0, 0, 4096),
            "training_seed": ("INT", 0, 0, 2**32 - 1),
            "sample_prompts": ("STRING", ""),
            "sample_every": ("INT", 100, 0, 1_000_000),
            "save_every": ("INT", 250, 1, 1_000_000),
            "images": "IMAGE",
            "texts": "STRING",
            "alpha": ("FLOAT", 0.0, 0.0, 1024.0),
            "warm_up": ("INT", 50, 0, 1_000_000),
            "schedule": ("COMBO", "constant"),
            "accumulate": ("INT", 1, 1, 1024),
            "caption_dropout": ("FLOAT", 0.1, 0.0, 1.0),
            "held_back": ("FLOAT", 0.0, 0.0, 0.5),
            "optimizer": ("COMBO", "adamw"),
        },
        {"lora": "LORA_MODEL", "loss": "LOSS_MAP", "steps": "INT", "file": "STRING"},
    ),
    "DimooContactSheet": (
        {
            "image": "IMAGE",
            "columns": ("INT", 0, 0, 64),
            "side": ("INT", 512, 0, 16_384),
            "first_number": ("INT", 1, 0, 2**64 - 1),
            "text": "STRING",
        },
        {"sheet": "IMAGE"},
    ),
}
# inputs that may be left unconnected or out of a workflow, by node
OPTIONAL = {
    "DimooEmptyCanvas": {"model"},
    "DimooCropAroundMask": {"model"},
    "DimooImageEdit": {"reference_image", "negative"},
    "DimooMaskPaint": {"mask", "feather"},
    "DimooCacheSettings": {"candidates", "prefix_interval"},
    "DimooSampler": {"cache", "guidance_start", "corrections", "polish", "order", "shared_noise"},
    "DimooDescribe": {"all_in_one_question", "speed", "image_2", "image_3"},
    "DimooStitch": {"mask"},
    "DimooLora": {"lora_model"},
    "DimooContactSheet": {"text"},
    "DimooTrainLora": {
        *("images", "texts", "alpha", "warm_up", "schedule", "accumulate", "caption_dropout", "held_back"),
        "optimizer",
    },
}
ADVANCED = {
    "DimooSampler": {"temperature", "guidance_start", "corrections", "polish", "order", "shared_noise"},
    "DimooDescribe": {"steps", "block_length", "temperature", "cfg", "seed"},
    "DimooCaptionFolder": {"steps", "block_length"},
    "DimooTrainLora": {"alpha", "warm_up", "schedule", "accumulate", "caption_dropout", "held_back", "optimizer"},
}
STEPS = {("DimooEmptyCanvas", "width"): 16, ("DimooEmptyCanvas", "height"): 16, ("DimooImageEdit", "side"): 32}
STEPS |= {("DimooCropAroundMask", "side"): 16, ("DimooCropAroundMask", "context"): 0.25}


def inputs(name: str) -> dict:
    return {**INFO[name]["input"]["required"], **INFO[name]["input"].get("optional", {})}


def test_the_pack_has_the_nodes_of_the_card() -> None:
    assert list(INFO) == list(CARD)


@pytest.mark.parametrize("name", CARD)
def test_inputs_and_outputs_are_those_of_the_card(name: str) -> None:
    wanted, outputs = CARD[name]
    shown = {}
    for key, (kind, options) in inputs(name).items():
        bounds = [options[field] for field in ("default", "min", "max") if field in options]
        shown[key] = (kind, *bounds) if bounds else kind
    assert shown == wanted
    assert list(shown) == list(wanted), "widgets are saved by their position"
    assert dict(zip(INFO[name]["output_name"], INFO[name]["output"], strict=True)) == outputs
    assert set(INFO[name]["input"].get("optional", {})) == OPTIONAL.get(name, set())


@pytest.mark.parametrize("name", CARD)
def test_everything_is_explained(name: str) -> None:
    info = INFO[name]
    assert info["category"] == "DiMOO" and info["display_name"].startswith("DiMOO ") and len(info["description"]) > 30
    explained = [options.get("tooltip", "") for _, options in inputs(name).values()] + list(info["output_tooltips"])
    assert all(text and len(text) > 15 and text[-1] == "." for text in explained)


def test_sizes_go_in_steps_of_cells_and_seeds_can_change_by_themselves() -> None:
    for name in CARD:
        for key, (_, options) in inputs(name).items():
            assert options.get("step", 1) == STEPS.get((name, key), options.get("step", 1))
            assert bool(options.get("control_after_generate")) == (key == "seed")
    assert STEPS.keys() == {(name, key) for name in CARD for key in inputs(name) if (name, key) in STEPS}


def test_what_few_need_is_folded_away_and_fine_numbers_can_be_typed() -> None:
    found = {(name, key) for name in CARD for key, (_, options) in inputs(name).items() if options.get("advanced")}
    assert found == {(name, key) for name, keys in ADVANCED.items() for key in keys}
    assert inputs("DimooTrainLora")["learning_rate"][1]["round"] <= 1e-7


def test_choices_are_those_of_the_core() -> None:
    prompt, cache = nodepack.part("dimoo_core.sequence.prompt"), nodepack.part("dimoo_core.sampling.ml_cache")
    labels = [task.label for task in prompt.EDITS.values()]
    assert inputs("DimooImageEdit")["edit_type"][1]["options"] == [*labels, *prompt.EDITS], "and those of 0.1.0 stay"
    assert (
        inputs("DimooSampler")["ml_cache"][1]["options"]
        == list(cache.PRESETS)
        == ["off", "quality", "balanced", "fast"]
    )
    orders = list(nodepack.part("dimoo_core.sampling.orders").ORDERS)
    assert inputs("DimooSampler")["order"][1]["options"] == orders == ["confidence", "halton", "random"]
    speeds = list(nodepack.part("dimoo_core.sampling.text_cache").SPEEDS)
    assert inputs("DimooDescribe")["speed"][1]["options"] == speeds == ["exact", "balanced", "fast"]
    assert inputs("DimooCacheSettings")["candidates"][1]["options"] == list(cache.CANDIDATES)


@pytest.mark.parametrize("value", ["x" * 100_000, ["fast"] * 100_000, 3, None, ["fast"]])
def test_an_unknown_choice_is_one_short_sentence(value: object) -> None:
    """Workflow files and API calls may hold anything; a long value is not repeated in full."""
    widgets = nodepack.part("nodes.widgets")
    with pytest.raises(ValueError, match=r"^Got speed .+; choose one of exact, fast\.$") as refused:
        widgets.chosen("speed", value, {"exact": 1, "fast": 2})
    assert len(str(refused.value)) < 130
    assert widgets.chosen("speed", "fast", {"exact": 1, "fast": 2}) == 2


def test_nodes_with_words_to_show_end_a_graph_and_give_lists() -> None:
    ends = [name for name, info in INFO.items() if info["output_node"]]
    assert ends == ["DimooDescribe", "DimooBestOf", "DimooCaptionFolder", "DimooSaveText", "DimooTrainLora"]
    assert [name for name, info in INFO.items() if any(info["output_is_list"])] == ends[:3]


def test_a_newer_comfyui_gets_more_and_an_older_one_nothing_it_does_not_know(monkeypatch) -> None:
    host = nodepack.part("nodes.host")

    class Newer(host.io.Schema):
        def __init__(self, node_id, search_aliases=(), **rest):
            super().__init__(node_id, **rest)
            self.search_aliases = search_aliases

    monkeypatch.setattr(host.io, "Schema", Newer)
    made = host.schema(node_id="x", search_aliases=["y"], invented_later=1, display_name="Z")
    assert (made.node_id, made.search_aliases) == ("x", ["y"])
