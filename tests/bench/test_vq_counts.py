"""What the published VQ costs in tiles, and the colours of previews, counted: no tensor holds data."""

from __future__ import annotations

from bench import vq_counts
from dimoo_core.model.vq_tiles import TILE


def test_tiles_cost_at_most_half_as_much_again_as_the_whole_picture() -> None:
    figures = vq_counts.figures()
    assert figures["vq_tiles_flops_over_whole"] < 1.5 and figures["vq_tiles_bytes_over_whole"] < 1.5
    assert figures["vq_tiles_launches_over_whole"] < 20, "more and smaller ones: each is still of megabytes"
    smaller = vq_counts.figures(TILE // 2)
    assert all(smaller[name] > value for name, value in figures.items() if "tiles" in name), "more rows computed twice"


def test_colours_of_previews_take_at_most_a_tenth_of_what_they_took() -> None:
    assert vq_counts.figures()["palette_flops_over_before"] < 0.1
