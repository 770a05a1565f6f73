"""The sampler, and the settings of ML-Cache."""

from __future__ import annotations

from ..dimoo_core import jobs
from ..dimoo_core.provenance import checkpoint_name
from ..dimoo_core.sampling.guidance import MAX_SCALE
from ..dimoo_core.sampling.image import MAX_POLISH, MAX_STEPS, ImageStep
from ..dimoo_core.sampling.ml_cache import CANDIDATES, PRESETS, PUBLISHED, CachePolicy
from ..dimoo_core.sampling.orders import ORDERS
from ..dimoo_core.sampling.selection import MAX_TEMPERATURE
from ..dimoo_core.sequence.canvas import Canvas
from ..dimoo_core.sequence.prompt import Prompt
from . import host, pixels, widgets
from .provenance import note_branches
from .sockets import CacheSocket, CanvasSocket, LoadedModel, ModelSocket, PromptSocket, check_sockets

_MOST_CORRECTIONS = 4096  # the cells of 1024x1024 px


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
            search_aliases=["ml-cache", "speed up", "teacache"],
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
        whole = done == total and len(canvas.codes) == 1
        size = None if whole else host.preview_size()
        shown = None if colours is None else pixels.preview(canvas.codes, canvas.unknown, colours, size)
        step(done, total, shown, whole=whole)

    return on_step


def size_remark(model: LoadedModel, prompt: Prompt, canvas: Canvas) -> str:
    """A sentence where the canvas is far from the size that the checkpoint was made for, with what to do; else ""."""
    far = jobs.size_remark(model.found.defaults, checkpoint_name(model.found), canvas)
    if not far:
        return ""
    if prompt.images:
        return f"{far}: set the side of DiMOO Image Edit to 0, or to a number near that."
    if bool(canvas.unknown.all()):
        return f"{far}: connect model to DiMOO Empty Canvas, or type that size."
    return f"{far}: scale the picture to about that size, or use DiMOO Crop Around Mask."


class Sampler(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooSampler",
            display_name="DiMOO Sampler (Lumina)",
            category="DiMOO",
            description=(
                "Fills the empty cells of a canvas step by step, the most certain first: for text-to-image, edits, "
                "inpainting and outpainting. Shows the picture while it forms."
            ),
            search_aliases=["ksampler", "generate", "maskgit", "llada", "masked diffusion"],
            hidden=[host.io.Hidden.extra_pnginfo, host.io.Hidden.unique_id],
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
        steps=widgets.OWN,
        cfg=widgets.OWN,
        image_cfg=widgets.OWN,
        temperature=widgets.OWN,
        ml_cache="off",
        cache=None,
        guidance_start=0.0,
        corrections=0,
        polish=0,
        order="confidence",
        shared_noise=0.0,
    ):
        check_sockets(model=model, prompt=prompt, canvas=canvas, **({} if cache is None else {"cache": cache}))
        settings = jobs.image_settings(
            model.found.defaults,
            seed=seed,
            steps=widgets.unless_own(steps),
            cfg=widgets.unless_own(cfg),
            image_cfg=widgets.unless_own(image_cfg),
            temperature=widgets.unless_own(temperature),
            guidance_start=guidance_start,
            cache=widgets.chosen("ml_cache", ml_cache, PRESETS) if cache is None else cache,
            corrections=corrections,
            polish=polish,
            order=order,
            shared_noise=shared_noise,
        )
        plan = jobs.plan_image(model.core, prompt, canvas, settings)
        remark = size_remark(model, prompt, canvas)
        if remark:
            host.log_once("DiMOO: %s", remark)
        host.show_remark(remark, getattr(cls.hidden, "unique_id", None))
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
            widgets.OWN,
            (widgets.OWN, MAX_STEPS),
            "Number of sampling steps. More is slower and, up to a point, better. -1: the checkpoint's own number.",
        ),
        widgets.number(
            "cfg",
            widgets.OWN,
            (widgets.OWN, MAX_SCALE),
            (
                "Guidance scale: how closely the picture follows the prompt. Raise it if words are ignored, lower it "
                "if colours are harsh or shapes break. -1: the checkpoint's own scale. 0 turns guidance off and is "
                "faster."
            ),
            step=0.1,
        ),
        widgets.number(
            "image_cfg",
            widgets.OWN,
            (widgets.OWN, MAX_SCALE),
            (
                "Guidance scale for edits: how closely the result follows the input picture. Raise it if the picture "
                "is lost. -1: the checkpoint's own scale. 0 turns it off and is faster. Other tasks ignore it."
            ),
            step=0.1,
        ),
        *widgets.advanced([_temperature()]),
        widgets.choice(
            "ml_cache",
            PRESETS,
            "Reuses results of earlier steps to save time. off: exact. quality: some work saved, few flaws. balanced: "
            "in between. fast: least work, most flaws. Good for drafts; choose off for the final picture. Needs extra "
            "memory, more for larger pictures. Saves little time where weights stream from RAM (see the log): a cached "
            "step streams as much as a full one. Another way to save time: half the steps, and polish 2.",
        ),
    ]


def _optional() -> list:
    return [
        CacheSocket.Input("cache", optional=True, tooltip="Custom ML-Cache settings; they override ml_cache."),
        *widgets.advanced([_guidance_start(), *_sampler()]),
    ]


def _temperature() -> host.io.Float.Input:
    return widgets.number(
        "temperature",
        widgets.OWN,
        (widgets.OWN, MAX_TEMPERATURE),
        "How much variety sampling allows. Lower is calmer and less varied; at 0 the likeliest code always wins and "
        "the seed has no effect. -1: the checkpoint's own temperature.",
        step=0.05,
    )


def _guidance_start() -> host.io.Float.Input:
    return widgets.number(
        "guidance_start",
        0.0,
        (0, 0.99),
        "Share of the steps, from the start, that run without guidance and are therefore faster. 0 guides from the "
        "first step. Try 0.15 to save time; lower it if words are ignored.",
        step=0.05,
        optional=True,
    )


def _sampler() -> list:
    return [
        widgets.integer(
            "corrections",
            0,
            (0, _MOST_CORRECTIONS),
            "How many doubtful cells each of the later steps empties again, to fill them better. It takes no extra "
            "steps. 0: what is filled stays. Try 1 for small pictures, 8 for large ones.",
            optional=True,
        ),
        widgets.integer(
            "polish",
            0,
            (0, MAX_POLISH),
            "Passes over the finished picture. Each looks at every other cell given the rest, and redraws those that "
            "do not fit; 2 reach all cells. A pass takes as long as a step without ml_cache. To save time, halve the "
            "steps and set this to 2. 0: none.",
            optional=True,
        ),
        widgets.choice(
            "order",
            ORDERS,
            "Which cells are filled first. confidence: the most certain, as published. halton: spread evenly over the "
            "picture. random: any, drawn from the seed, at temperature 0 too; only for many steps. Try halton together "
            "with polish.",
            optional=True,
        ),
        widgets.number(
            "shared_noise",
            0.0,
            (0, 1),
            "Share of the steps, from the start, in which all cells draw with the same noise, so that neighbours "
            "agree. Helps where steps are few; lower it if a pattern repeats. 0: each cell has its own noise.",
            step=0.05,
            optional=True,
        ),
    ]
