"""The sampler, and the settings of ML-Cache."""

from __future__ import annotations

from ..dimoo_core import jobs
from ..dimoo_core.sampling.guidance import Guidance
from ..dimoo_core.sampling.image import ImageSettings, ImageStep
from ..dimoo_core.sampling.ml_cache import CANDIDATES, PRESETS, CachePolicy
from ..dimoo_core.sequence.canvas import Canvas
from . import host, pixels, widgets
from .sockets import CacheSocket, CanvasSocket, LoadedModel, ModelSocket, PromptSocket, check_sockets

PUBLISHED = CachePolicy()


class CacheSettings(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooCacheSettings",
            display_name="DiMOO Cache Settings",
            category="DiMOO",
            description=(
                "Settings of ML-Cache, which in most steps computes only the least certain positions and reuses the "
                "rest: faster, approximate, and it needs memory for keys and values. Wins over the sampler's ml_cache. "
                "As they come these are the published settings."
            ),
            search_aliases=["ml-cache", "dimoo speed"],
            inputs=[*_published(), *_ours()],
            outputs=[CacheSocket.Output(display_name="cache", tooltip="The settings, for the sampler.")],
        )

    @classmethod
    def execute(cls, cache_ratio, warmup_ratio, refresh_interval, candidates="all", prefix_interval=1):
        return host.io.NodeOutput(CachePolicy(cache_ratio, warmup_ratio, refresh_interval, candidates, prefix_interval))


def _published() -> list:
    return [
        widgets.number(
            "cache_ratio",
            PUBLISHED.ratio,
            (0.01, 0.99),
            "Share of the positions that a cached step reuses. Higher is faster and less exact.",
            step=0.01,
        ),
        widgets.number(
            "warmup_ratio",
            PUBLISHED.warmup,
            (0, 0.99),
            "Share of the steps, at the beginning, that compute everything; early steps decide most.",
            step=0.01,
        ),
        widgets.integer(
            "refresh_interval",
            PUBLISHED.refresh_interval,
            (2, 1024),
            "After so many steps everything is computed anew. Lower is slower and more exact.",
        ),
    ]


def _ours() -> list:
    return [
        widgets.choice(
            "candidates",
            CANDIDATES,
            "What a cached step chooses from. all: every position, as published. holes: the unknown cells alone, and "
            "always what the last step decided; better for the same time, and what the presets do.",
            optional=True,
        ),
        widgets.integer(
            "prefix_interval",
            PUBLISHED.prefix_interval,
            (1, 1024),
            "In how many steps prompt and input pictures are computed once; between, even a full step leaves them as "
            "they were. 1: at every full step, as published. Higher saves most in edits.",
            optional=True,
        ),
    ]


def follow(model: LoadedModel) -> ImageStep:
    """An `on_step` that shows progress and the forming picture, and through which a cancel arrives."""
    colours = model.palette.colours() if host.wants_previews() else None
    step = host.progress()

    def on_step(done: int, total: int, canvas: Canvas) -> None:
        shown = None if colours is None else pixels.preview(canvas.codes, canvas.unknown, colours, host.preview_size())
        step(done, total, shown)

    return on_step


class Sampler(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooSampler",
            display_name="DiMOO Sampler",
            category="DiMOO",
            description=(
                "Fills the unknown cells of a canvas step by step, the surest first: text-to-image, edit, inpaint and "
                "outpaint alike. Shows the picture while it forms."
            ),
            search_aliases=["dimoo ksampler", "dimoo generate", "maskgit"],
            inputs=[*_what(), *_how(), *_optional()],
            outputs=[CanvasSocket.Output(display_name="canvas", tooltip="The filled canvas, for VQ Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        prompt,
        canvas,
        seed,
        steps=64,
        cfg=4.0,
        image_cfg=4.0,
        temperature=1.0,
        ml_cache="off",
        cache=None,
        guidance_start=0.0,
    ):
        check_sockets(model=model, prompt=prompt, canvas=canvas, **({} if cache is None else {"cache": cache}))
        policy = widgets.chosen("ml_cache", ml_cache, PRESETS) if cache is None else cache
        settings = ImageSettings(steps, temperature, seed, policy, Guidance(cfg, image_cfg, guidance_start))
        plan = jobs.plan_image(model.core, prompt, canvas, settings)
        on_step = follow(model)  # first, since it may bring the VQ into memory, for the colours of previews
        return host.io.NodeOutput(plan.run(model.place(plan), on_step))


def _what() -> list:
    return [
        ModelSocket.Input("model", tooltip="The model of the checkpoint."),
        PromptSocket.Input("prompt", tooltip="What the picture should show, from Text Encode or Image Edit."),
        CanvasSocket.Input("canvas", tooltip="What to fill, from Empty Canvas, Image Edit or Mask Paint."),
        widgets.seed("The same seed gives the same picture. Picture i of a batch has the seed + i."),
    ]


def _how() -> list:
    return [
        widgets.integer(
            "steps", 64, (1, 1024), "In how many steps the canvas is filled. More is slower and, to a point, better."
        ),
        widgets.number(
            "cfg",
            4.0,
            (0, 20),
            (
                "How strongly the words are followed; 0 leaves guidance out and saves its time. The 8B model likes "
                "about 4; nano does best without."
            ),
            step=0.1,
        ),
        widgets.number(
            "image_cfg",
            4.0,
            (0, 20),
            "In edits: how strongly the given picture is followed; 0 leaves that out and saves its time.",
            step=0.1,
        ),
        widgets.number(
            "temperature",
            1.0,
            (0, 4),
            "How freely codes are chosen. 0 always takes the likeliest, so that the seed has no effect.",
            step=0.05,
        ),
        widgets.choice(
            "ml_cache",
            PRESETS,
            "Reuses work of earlier steps. off is exact; quality, balanced and fast do 68, 51 and 37 % of its work (in "
            "edits 57, 34 and 24 %) and change the picture ever more: where captions leave things open, nano is right "
            "in 75 % of the pictures with off, then in 73, 71 and 67 % (66 % with the published settings, which do "
            "50 %). Needs memory: 4.4 GB for 1024x1024 px with the 8B model.",
        ),
    ]


def _optional() -> list:
    return [
        CacheSocket.Input("cache", optional=True, tooltip="ML-Cache settings of your own; they win over ml_cache."),
        widgets.number(
            "guidance_start",
            0.0,
            (0, 0.95),
            "Share of the steps, at the beginning, that go without guidance and so take half the time or less (in "
            "edits a third). 0 guides from the start. On open captions nano, guided by 1, is right in 86 % of the "
            "pictures, guided from 0.15 on in 85 %, from 0.3 on in 85 %.",
            step=0.05,
            optional=True,
        ),
    ]
