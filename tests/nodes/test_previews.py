"""The pictures that a sampler shows while they form, of canvases on another device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from bench.rehearsal import Rehearsal
from dimoo_core import jobs
from dimoo_core.pipeline import Pipeline, load
from dimoo_core.sequence.canvas import Canvas

from ..nodepack import part


def test_a_canvas_on_a_device_shows_what_one_on_the_cpu_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    host, loader, sampler, sockets = (part(f"nodes.{name}") for name in ("host", "loader", "sampler", "sockets"))
    shown: list[Image.Image] = []
    monkeypatch.setattr(host, "progress", lambda: lambda done, total, picture: shown.append(picture))
    with torch.inference_mode():
        palette = sockets.Palette(loader.load_autoencoder(loader.resolve(loader.BUILT_IN)))
        on_step = sampler.follow(SimpleNamespace(palette=palette))
    sample(load(device="cpu"), on_step)
    expected, shown[:] = list(shown), []
    with Rehearsal() as seen:
        sample(load(device=seen.device), on_step)
    assert shown == expected and len(shown) == 3 and all(isinstance(one, Image.Image) for one in shown)
    assert any("nodes/" in place for place in seen.copies_to_host), "codes were read for the pictures"


def sample(pipeline: Pipeline, on_step: jobs.ImageStep) -> None:
    settings = pipeline.image_settings(steps=3, cfg=2.0)
    plan = jobs.plan_image(pipeline.model, jobs.text_prompt("a red circle"), Canvas.empty(2, 8, 8), settings)
    plan.run(pipeline.place(plan), on_step)
