"""Replay what the released preparation makes of pictures: sizes, crops, codes, files. See `replay_training`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.load import read_vq
from ..model.vq import VQ
from ..pictures.pixels import cover, load_picture
from ..pictures.sizes import CELL, buckets, fit_size, understanding_size
from ..training.released_files import read_codes_file
from .recorded import Check, differs, far
from .recorded_training import TrainingRecord

SIDES = (512, 1024)  # of the buckets of pictures that are asked about
_LEVEL = 1 / 255
MARGIN = 1e-4  # absolute tolerance, of squared distances


def pictures(record: TrainingRecord) -> Iterator[Check]:
    """Picture files: their grids, and that width and height are exchanged in them."""
    for path, facts in record.content["pictures"].items():
        published = facts["first_ids"][0] >= record.published.table.code_offset
        table = (record.published if published else record.toy).table
        codes = read_codes_file(record.folder / path, table)
        yield f"{path}.grid", differs(list(codes.shape), [facts["rows"], facts["columns"]])
        yield f"{path}.exchanged", differs(_keys(codes), [facts["height_key"], facts["width_key"]])
        first = (codes.flatten()[: len(facts["first_ids"])] + table.code_offset).tolist()
        yield f"{path}.first_ids", differs(first, facts["first_ids"])


def preparation(record: TrainingRecord) -> Iterator[Check]:
    """Pictures to codes: the bucket, the resizing, and what the VQ makes of it."""
    made = record.content["preparation"]
    vq = read_vq(record.folder / made["vq"])
    for name, facts in made["pictures"].items():
        left, top, right, bottom = facts["box"]
        picture = load_picture(record.folder / facts["png"])
        width, height = fit_size(facts["size"][0], facts["size"][1], made["target_size"])
        yield f"{name}.size", differs(list(picture.shape[:1:-1]), facts["size"])
        yield f"{name}.bucket", differs([width, height], [right - left, bottom - top])
        yield f"{name}.corner", differs([left, top], facts["draws"])
        covered = cover(picture, width, height)
        yield f"{name}.fitted", differs(list(covered.shape[:1:-1]), facts["fitted"])
        pixels = record.tensor(f"picture.{name}.pixels").float().permute(2, 0, 1)[None] * _LEVEL
        # PIL rounds to 8 bits on the way, and ours does not: near on average, and not equal
        distance = (covered[..., top:bottom, left:right] - pixels).abs().mean()
        yield f"{name}.pixels", far(distance, 0.0, _LEVEL)
        codes = vq.encode(pixels)[0]
        yield f"{name}.grid", differs(list(codes.shape), [facts["rows"], facts["columns"]])
        yield f"{name}.exchanged", differs(_keys(codes), [facts["height_key"], facts["width_key"]])
        yield f"{name}.codes", differs(codes, record.published.codes(facts["file"]))
        yield f"{name}.code_margin", far(_code_margin(vq, pixels), facts["code_margin"], MARGIN)
        ids = record.tensor(f"picture.{name}.ids").long().view(codes.shape)
        yield f"{name}.ids", differs(codes + record.published.table.code_offset, ids)


def _keys(codes: Tensor) -> list[int]:
    """What a picture file of codes [H,W] has as height and width, which are exchanged, in px."""
    rows, columns = codes.shape
    return [columns * CELL, rows * CELL]


@torch.no_grad()
def _code_margin(vq: VQ, pixels: Tensor) -> Tensor:
    """By how much the nearest code is nearer than the next, in squared distance, at the closest cell of a picture."""
    latents = vq.latents(pixels)[0].flatten(1).T.double()
    nearest = torch.cdist(latents, vq.quantize.embedding.weight.double()).square().topk(2, largest=False).values
    return (nearest[:, 1] - nearest[:, 0]).min()


def several_pictures(record: TrainingRecord) -> Iterator[Check]:
    """That each file of a list can be read."""
    for number, path in enumerate(record.content["several_pictures"]["files"]):
        facts = record.content["pictures"][path]
        codes = record.published.codes(path)
        yield path, differs(list(codes.shape), [facts["rows"], facts["columns"]])
        ids = record.tensor(f"several.{number}.ids").long().view(codes.shape)
        yield f"{path}.ids", differs(codes + record.published.table.code_offset, ids)


def understanding_preparation(record: TrainingRecord) -> Iterator[Check]:
    """That ours is the first of the two sizes that the released preparation cuts to; the largest get one as well."""
    for case in record.content["understanding_preparation"]:
        width, height = case["size"]
        size = understanding_size(width, height, SIDES, images=1)
        name = f"{width}x{height}.{case['target']}"
        if "stages" in case:
            first, second = case["stages"]
            yield name, differs(list(size), first)
            yield f"{name}.again", differs(list(fit_size(first[0], first[1], case["target"])), second)
            yield f"{name}.exchanged", differs(second, [case["height_key"], case["width_key"]])
            draws = case["draws"]
            boxes = [_box(first, draws[:2]), _box(second, draws[2:])]
            yield f"{name}.boxes", differs(boxes, case["boxes"])
        else:
            yield name, differs(size in buckets(SIDES[1]), True)


def _box(size: Sequence[int], corner: Sequence[int]) -> list[int]:
    """Left, top, right and bottom of what is cut out at a corner."""
    (width, height), (left, top) = size, corner
    return [left, top, left + width, top + height]


def hostile(record: TrainingRecord) -> Iterator[Check]:
    """Pickles that hold a picture in other words are read; all others are refused, and nothing of them runs."""
    files, ran = record.content["hostile"], Path("hostile_pickle_ran")
    answer = record.published.codes("pictures/answer.pkl")
    for path, what in files["good"].items():
        codes = record.published.codes(path)
        yield path, differs(codes, codes[:1, :1].expand_as(answer) if "same object" in what else answer)
    before = ran.exists()
    for path, facts in files["refuse"].items():
        try:
            codes = record.published.codes(path)
        except ValueError as error:
            yield path, "" if path in str(error) else f"refused without its name: {error}"
            continue
        may = facts["must"].startswith("read the good picture")
        yield path, differs(codes, answer) if may else "it was read as a picture"
    yield "nothing ran", differs(ran.exists(), before)


def crops(record: TrainingRecord) -> Iterator[Check]:
    """Bucket, halvings and resizing of pictures of many sizes; the corner is the centre's and not drawn."""
    for case in record.content["crops"]:
        width, height = case["size"]
        bucket = fit_size(width, height, case["target"])
        name = f"{width}x{height}.{case['target']}"
        yield f"{name}.bucket", differs(list(bucket), case["bucket"])
        # a picture that says where each of its pixels was, in 0..1
        across, down = torch.meshgrid(torch.linspace(0, 1, width), torch.linspace(0, 1, height), indexing="xy")
        picture = torch.stack((across, down))[None]
        expected = picture
        for halved in case["halved"]:
            expected = F.interpolate(expected, halved[::-1], mode="area")
        fitted = case["fitted"]
        if list(expected.shape[:1:-1]) != fitted:
            expected = F.interpolate(expected, fitted[::-1], mode="bicubic", antialias=True)
        covered = cover(picture, *bucket)
        yield f"{name}.fitted", far(covered, expected.clamp(0, 1))
        room = [covered.shape[3] - bucket[0], covered.shape[2] - bucket[1]]
        yield f"{name}.room", differs(room, case["room"])
        yield f"{name}.box", differs(_box(bucket, case["draws"]), case["box"])


def bucket_lists(record: TrainingRecord) -> Iterator[Check]:
    """All buckets of a side, in any order."""
    for side, expected in record.content["crop_bucket_lists"].items():
        yield side, differs(sorted(buckets(int(side))), sorted(map(tuple, expected)))
