"""The sampler, and the settings of ML-Cache."""

from __future__ import annotations

from ..dimoo_core import jobs
from ..dimoo_core.sampling.guidance import MAX_SCALE, Guidance
from ..dimoo_core.sampling.image import MAX_STEPS, ImageSettings, ImageStep
from ..dimoo_core.sampling.ml_cache import CANDIDATES, PRESETS, PUBLISHED, CachePolicy
from ..dimoo_core.sampling.selection import MAX_TEMPERATURE
from ..dimoo_core.sequence.canvas import Canvas
from . import host, pixels, widgets
from .provenance import note_branches
from .sockets import CacheSocket, CanvasSocket, LoadedModel, ModelSocket, PromptSocket, check_sockets


class CacheSettings(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooCacheSettings",
            display_name="DiMOO Cache Settings",
            category="DiMOO",
            description=(
                "Custom settings for ML-Cache, which in most steps computes only the least certain positions and "
                "reuses the rest: faster, approximate, and it needs memory for keys and values. It saves little "
                "time where weights stream from RAM: a cached step streams as much as a full one. Overrides the "
                "sampler's ml_cache. The defaults are the published settings."
            ),
            search_aliases=["ml-cache", "dimoo speed"],
            inputs=[*_published(), *_ours()],
            outputs=[CacheSocket.Output(display_name="cache", tooltip="The settings, for DiMOO Sampler.")],
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
            "Share of the positions that a cached step reuses. Higher is faster and less exact. Published: 0.9; try "
            "0.6 if the picture has flaws.",
            step=0.01,
        ),
        widgets.number(
            "warmup_ratio",
            PUBLISHED.warmup,
            (0, 0.99),
            "Share of the steps, from the start, that compute everything. Early steps decide most of the picture: "
            "raise this first if outlines tear. Published: 0.3.",
            step=0.01,
        ),
        widgets.integer(
            "refresh_interval",
            PUBLISHED.refresh_interval,
            (2, MAX_STEPS),
            "Compute everything again every N steps. Lower is slower and more exact. Published: 5.",
        ),
    ]


def _ours() -> list:
    return [
        widgets.choice(
            "candidates",
            CANDIDATES,
            "Which positions a cached step may compute. all: every position, as published. holes: only empty cells, "
            "and always the cells that the last step filled; better pictures in the same time, and what the presets of "
            "ml_cache use.",
            optional=True,
        ),
        widgets.integer(
            "prefix_interval",
            PUBLISHED.prefix_interval,
            (1, MAX_STEPS),
            "Recompute the prompt and the input pictures only every N steps; the full steps in between reuse them. 1: "
            "at every full step, as published. Higher is faster, most of all in edits: try 8.",
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
                "Fills the empty cells of a canvas step by step, the most certain first: for text-to-image, edits, "
                "inpainting and outpainting. Shows the picture while it forms."
            ),
            search_aliases=["dimoo ksampler", "dimoo generate", "maskgit"],
            hidden=[host.io.Hidden.extra_pnginfo],
            inputs=[*_what(), *_how(), *_optional()],
            outputs=[CanvasSocket.Output(display_name="canvas", tooltip="The filled canvas, for DiMOO VQ Decode.")],
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
        placement = model.place(plan)
        note_branches(getattr(cls.hidden, "extra_pnginfo", None), model, placement)
        return host.io.NodeOutput(plan.run(placement, on_step))


def _what() -> list:
    return [
        ModelSocket.Input("model", tooltip="The model from DiMOO Loader."),
        PromptSocket.Input("prompt", tooltip="The prompt, from DiMOO Text Encode or Image Edit."),
        CanvasSocket.Input("canvas", tooltip="The canvas to fill, from DiMOO Empty Canvas, Image Edit or Mask Paint."),
        widgets.seed(
            "The same seed and settings give the same picture. Picture i of a batch, counted from 0, uses seed + i. "
            "increment adds only 1, so the next batch of N repeats N - 1 pictures: choose randomize, or raise the seed "
            "by N yourself."
        ),
    ]


def _how() -> list:
    return [
        widgets.integer(
            "steps",
            64,
            (1, MAX_STEPS),
            "Number of sampling steps. More is slower and, up to a point, better. 64 for the 8B model, 16 for nano.",
        ),
        widgets.number(
            "cfg",
            4.0,
            (0, MAX_SCALE),
            (
                "Guidance scale: how closely the picture follows the prompt. Raise it if words are ignored, lower it "
                "if colours are harsh or shapes break. 4 for the 8B model, 0 for nano; 0 turns guidance off and is "
                "faster."
            ),
            step=0.1,
        ),
        widgets.number(
            "image_cfg",
            4.0,
            (0, MAX_SCALE),
            (
                "Guidance scale for edits: how closely the result follows the input picture. Raise it if the picture "
                "is lost. 4 for the 8B model, 0 for nano; 0 turns it off and is faster. Other tasks ignore it."
            ),
            step=0.1,
        ),
        widgets.number(
            "temperature",
            1.0,
            (0, MAX_TEMPERATURE),
            "How much variety sampling allows. Lower is calmer and less varied; at 0 the likeliest code always wins "
            "and the seed has no effect. 1 for the 8B model, as in training; 0.6 for nano.",
            step=0.05,
        ),
        widgets.choice(
            "ml_cache",
            PRESETS,
            "Reuses results of earlier steps to save time. off: exact. quality: some work saved, few flaws. balanced: "
            "in between. fast: least work, most flaws. Good for drafts; choose off for the final picture. Needs extra "
            "memory, more for larger pictures. Saves little time where weights stream from RAM (see the log): a cached "
            "step streams as much as a full one.",
        ),
    ]


def _optional() -> list:
    return [
        CacheSocket.Input("cache", optional=True, tooltip="Custom ML-Cache settings; they override ml_cache."),
        widgets.number(
            "guidance_start",
            0.0,
            (0, 0.99),
            "Share of the steps, from the start, that run without guidance and are therefore faster. 0 guides from the "
            "first step. Try 0.15 to save time; lower it if words are ignored.",
            step=0.05,
            optional=True,
        ),
    ]
