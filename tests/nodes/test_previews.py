"""The pictures that a sampler shows while they form, of canvases on another device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageOps

from bench.rehearsal import Rehearsal
from dimoo_core import jobs
from dimoo_core.pipeline import Pipeline, load
from dimoo_core.sequence.canvas import Canvas

from ..nodepack import part


@pytest.mark.parametrize(
    ("batch", "cells", "while_it_forms", "at_last"),
    [
        (1, (8, 8), (128, 128), (128, 128)),
        (1, (64, 48), (384, 512), (768, 1024)),
        (1, (90, 90), (450, 450), (1440, 1440)),
        (4, (64, 64), (512, 512), (512, 512)),  # several pictures have no one size
        (9, (200, 200), (512, 512), (512, 512)),
    ],
)
def test_the_last_preview_has_the_size_of_the_picture_and_none_is_larger(
    monkeypatch: pytest.MonkeyPatch, batch: int, cells: tuple[int, int], while_it_forms: tuple, at_last: tuple
) -> None:
    """Pages write a preview's size under it, and leave it there when the run is over."""
    host, sampler = part("nodes.host"), part("nodes.sampler")
    import comfy.utils

    shown: list[tuple[int, int]] = []

    def arrive(_done: int, _total: int, preview: tuple, **_: object) -> None:
        _, picture, most = preview
        shown.append(picture.size if most is None else ImageOps.contain(picture, (most, most)).size)  # as the server

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", arrive)
    assert host.preview_size() == 512
    on_step = sampler.follow(SimpleNamespace(palette=SimpleNamespace(colours=lambda: torch.rand(4, 3))))
    canvas = Canvas.empty(batch, *cells)
    for done in (1, 2):
        on_step(done, 2, canvas)
    assert shown == [while_it_forms, at_last]


def test_a_canvas_on_a_device_shows_what_one_on_the_cpu_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("host", "checkpoints", "loader", "sampler", "sockets")
    host, checkpoints, loader, sampler, sockets = (part(f"nodes.{name}") for name in names)
    shown: list[Image.Image] = []
    monkeypatch.setattr(host, "progress", lambda: lambda done, total, picture, **_: shown.append(picture))
    with torch.inference_mode():
        palette = sockets.Palette(loader.load_autoencoder(checkpoints.resolve(checkpoints.BUILT_IN)))
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
