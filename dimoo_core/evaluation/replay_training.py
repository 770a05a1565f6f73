"""Replay what the released training computes: the part of `replay` for folders with a `golden_training.json`.

The sequences, what is hidden of them, the losses, gradients and updates come from the functions that train, fed with
the recorded draws. Where a key holds what the released code does wrong, it is checked that ours does better, and told
why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..pictures.sizes import fit_size, understanding_size
from ..sequence.layout import one_token_answer, prompt_prefix
from ..sequence.prompt import Prompt, Task, prompt_strings
from ..sequence.token_table import RELEASED, TokenTable
from ..training.objective import Section, TrainingSequence, hide
from . import replay_pictures, replay_updates
from .recorded import NAMES, Check, differs, far
from .recorded_training import RecordedDraws, TrainingRecord, World, made_weight
from .replay_pictures import SIDES
from .replay_updates import SUM

WHY = {
    "understanding_preparation": "a picture that is asked about is cut once, to the size by its area; the released "
    "preparation cuts it once more, which undoes that, and refuses the largest",
    "several_pictures": "each picture of a list is cut to a bucket and read as one of several; the released "
    "preparation leaves lists uncut, and its training cannot read them",
    "released_fails": "answers of 1024 tokens and more, and several pictures, are trained on; the released loader "
    "fails at them and takes another record instead",
}


def parts(record: TrainingRecord) -> Iterator[tuple[str, Callable[[], Iterable[Check]] | None]]:
    """Every key of a record that holds numbers, with what compares them; None where nothing does."""
    known: dict[str, Callable[[], Iterable[Check]]] = {key: partial(part, record) for key, part in _PARTS.items()}
    for world in (record.published, record.toy):
        known |= {f"{world.prefix}{key}": partial(part, world) for key, part in _WORLD_PARTS.items()}
    for key, value in record.content.items():
        if key in known or _holds_numbers(value):
            yield key, known.get(key)


def report(record: TrainingRecord, write: Callable[[str], Any]) -> int:
    """Write what differs and a line per part; 0 if all parts are equal or differ on purpose, otherwise 1."""
    failed = False
    for name, checks in parts(record):
        if checks is None:
            write(f"part {name} not built\n")
            failed = True
            continue
        results = list(_to_the_end(checks))
        wrong = [f"differs  {name}.{what}: {how}\n" for what, how in results if how]
        failed |= bool(wrong) or not results
        write("".join(wrong))
        if name in WHY and not wrong:
            write(f"part {name} differs on purpose: {WHY[name]}\n")
        else:
            write(f"part {name} equal {len(results) - len(wrong)} of {len(results)}\n")
    return int(failed)


def _to_the_end(checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks of a part; what it fails with, whatever that is, is one that differs."""
    try:
        yield from checks()
    except Exception as error:
        yield "replay", f"{type(error).__name__}: {error}"


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_numbers, value.values()))
    if isinstance(value, list):
        return any(map(_holds_numbers, value))
    return isinstance(value, (int, float))


# Parts of a record ----------------------------------------------------------------------------------------------------


def weights(record: TrainingRecord) -> Iterator[Check]:
    """The weights that the formula gives."""
    weights = record.content["weights"]
    for name, facts in weights["tensors"].items():
        tensor = made_weight(weights["seed"], name, facts["shape"], facts["exponent"])
        flat = tensor.flatten()
        yield f"{name}.first", differs(flat[: len(facts["first"])].tolist(), facts["first"])
        yield f"{name}.last", differs(float(flat[-1]), facts["last"])
        yield f"{name}.sum", far(float(flat.double().sum()), facts["sum"], SUM)
        digest = hashlib.sha256(tensor.numpy().astype("<f4").tobytes()).hexdigest()
        yield f"{name}.sha256", differs(digest, facts["sha256_float32"])


def toy_weights(record: TrainingRecord) -> Iterator[Check]:
    """That the toy weights are the ones recorded from."""
    toy = record.content["toy_weights"]
    for name, expected in toy["sha256"].items():
        content = (record.folder / toy["folder"] / name).read_bytes()
        yield name, differs(hashlib.sha256(content).hexdigest(), expected)


def mask_law(record: TrainingRecord) -> Iterator[Check]:
    """How many tokens are hidden at each draw, of sections of each length."""
    law = record.content["mask_law"]
    for kind, whole_up_to in (("codes_or_answer", Section.whole_up_to), ("pads", 0)):
        for length, counts in zip(law["lengths"], law[kind], strict=True):
            ids = torch.arange(length)
            sequence = TrainingSequence(ids, (Section(ids, whole_up_to),))
            for draw, count in zip(law["draws"], counts, strict=True):
                choose = RecordedDraws([draw, *[0.5] * length])
                hidden = hide(sequence, record.published.table.mask, choose).rows.shape[1]
                yield f"{kind}.{length}.{draw}", differs(hidden, count)


def released_fails(record: TrainingRecord) -> Iterator[Check]:
    """That ours builds whole sequences of them."""
    for name in record.content["released_fails"]:
        if name not in record.content["records"]:
            continue  # a script of the released preparation
        sample = record.published.sample(name)
        ids = record.published.sequences.build(sample).ids
        assert isinstance(sample.answer, str)
        answer = record.published.tokenizer.encode(f"{sample.answer}</answer>")
        begin = int((ids == record.published.table.answer_begin).nonzero()[0])
        yield f"{name}.answer", differs(ids[begin + 1 :][: len(answer)].tolist(), answer)
        pictures = int((ids == record.published.table.image_begin).sum())
        yield f"{name}.pictures", differs(pictures, len(sample.prompt.images))


def evaluation(record: TrainingRecord) -> Iterator[Check]:
    """Answers of one token from one pass, and the sizes of pictures that are asked about."""
    asked = record.content["evaluation"]
    networks = {world.prefix: world.network().requires_grad_(False) for world in (record.published, record.toy)}
    for name, case in asked["cases"].items():
        world = record.toy if case.get("vocabulary") == "toy" else record.published
        sequence = record.tensor(f"evaluation.{name}.sequence").long()
        prefix = _asked(record, world, case, sequence)
        answer = one_token_answer(torch.tensor([world.table.mask]), asked["gen_length"] - 1, world.table)
        ids = torch.cat((prefix, answer), dim=1)
        yield f"{name}.sequence", differs(ids, sequence)
        begin = prefix.shape[1]
        places = {"answer_begin": begin, "mask": begin + 1, "answer_end": begin + 2}
        yield f"{name}.layout", differs(places | {"pads": [begin + 3, ids.shape[1]]}, case["layout"])
        yield f"{name}.lengths", differs([begin, ids.shape[1]], [case["prompt_length"], case["length"]])
        (logits,) = networks[world.prefix](ids, rows=torch.tensor([[begin + 1]]))[0]
        top = logits.topk(len(case["top"]))
        yield f"{name}.answer", differs(int(top.indices[0]), case["answer"])
        yield f"{name}.top", differs(top.indices.tolist(), case["top"])
        yield f"{name}.top_logits", far(top.values, torch.tensor(case["top_logits"]))
        yield f"{name}.margin", far(top.values[0] - top.values[1], case["margin"])
        ids[0, begin + 1] = top.indices[0]
        yield f"{name}.output", differs(ids, record.tensor(f"evaluation.{name}.output").long())
        yield f"{name}.response", differs(world.tokenizer.decode([int(top.indices[0])]), case["response"])
    for size, sizes in asked["picture_sizes"].items():
        width, height = map(int, size.split("x"))
        yield f"{size}.one", differs(list(understanding_size(width, height, SIDES, images=1)), sizes["one"])
        several = understanding_size(width, height, SIDES, images=2)
        yield f"{size}.several", differs(list(several), sizes["several"])
        yield f"{size}.script", differs(list(fit_size(width, height, SIDES[1])), sizes["inference_script"])


def _asked(record: TrainingRecord, world: World, case: Mapping[str, Any], sequence: Tensor) -> Tensor:
    """The prefix [1,P] of a message of texts and pictures; of a recorded prompt as it is."""
    if "message" not in case:
        return sequence[:, : case["prompt_length"]]
    text = "".join(value for kind, value in case["message"] if kind == "text")
    paths = [value.removeprefix("ids of ") for kind, value in case["message"] if kind == "image"]
    images = tuple(world.codes(path)[None] for path in paths)
    task = Task("ask", record.content["evaluation"]["system_prompt"], images=len(images))
    words, _ = prompt_strings(Prompt(task, text, images=images), world.tokenizer.defuse)
    return prompt_prefix(world.tokenizer.encode(words), images, world.table)


# Parts that both vocabularies have ------------------------------------------------------------------------------------


def vocabulary(world: World) -> Iterator[Check]:
    """That ids, rows and tokenizer go together, and that the published ids are those that we know."""
    world.table.check(world.rows)
    world.tokenizer.check(world.table, world.rows)
    yield "rows", differs(world.config.vocab_size, world.rows)
    if not world.prefix:
        ids = RELEASED.to_dict()
        for name in world.own("vocab").keys() - {"rows"}:
            yield name, differs(ids.get(NAMES.get(name, name)), world.own("vocab")[name])


def tokenised(world: World) -> Iterator[Check]:
    """Ids of words, control words and whole prompts."""
    record = world.own("tokenizer")
    for name, id in record["control"].items():
        yield name, differs(world.tokenizer.encode(name), [id])
    for name, id in record["words"].items():
        ids = world.tokenizer.encode(name)
        yield name, differs(ids[0] if name == "[UNK]" else ids, id if name == "[UNK]" else [id])  # that is three such
    for text, ids in record["examples"]:
        yield text, differs(world.tokenizer.encode(text), ids)


def records(world: World) -> Iterator[Check]:
    """How long the released loader takes the pictures of a record to be: the first of its prompt, else its answer's."""
    for name, record in world.own("records").items():
        sample = world.sample(name)
        counted = sample.prompt.images[0] if sample.prompt.images else sample.answer
        assert isinstance(counted, Tensor)
        yield name, differs(counted.numel(), record["len"])


def sequences(world: World) -> Iterator[Check]:
    """Sequences before and after a part is hidden, labels, and where things stand."""
    for name, case in world.own("sequences").items():
        sequence, hidden = world.sequence(name)
        stored = {key: world.tensor(f"seq.{name}.{key}").long() for key in _SEQUENCE}
        labels = torch.full_like(sequence.ids, -100)
        labels[hidden.rows[0]] = hidden.targets[0]
        maskable = torch.zeros_like(sequence.ids)
        maskable[torch.cat([section.positions for section in sequence.sections])] = 1
        got = {"before": sequence.ids, "ids": hidden.ids[0], "labels": labels, "maskable": maskable}
        for key, tensor in got.items():
            yield f"{name}.{key}", differs(tensor, stored[key])
        drawn = case["draws"]["sections"]
        lengths = [len(section.positions) for section in sequence.sections]
        yield f"{name}.lengths", differs(lengths, [section["length"] for section in drawn])
        yield f"{name}.count", differs(hidden.count, float(sum(section["count"] for section in drawn)))
        places = _places(sequence, world.table)
        for key, expected in case["places"].items():
            yield f"{name}.{key}", differs(places[key], expected)


_SEQUENCE = ("before", "ids", "labels", "maskable")


def _places(sequence: TrainingSequence, table: TokenTable) -> dict[str, Any]:
    """Where things stand in a sequence, under the record's names."""
    ids = sequence.ids.tolist()

    def where(id: int, start: int = 0, stop: int = len(ids)) -> list[int]:
        return [place for place in range(start, stop) if ids[place] == id]

    own = sequence.sections[0].positions.tolist()
    maskable = torch.cat([section.positions for section in sequence.sections])
    (begin,) = where(table.answer_begin)
    places: dict[str, Any] = {
        "length": len(ids),
        "answer_begin": begin,
        "prompt_image_begin": where(table.image_begin, 0, begin),
        "prompt_image_end": where(table.image_end, 0, begin),
        "prompt_newlines": where(table.newline, 0, begin),
        "answer_newlines": where(table.newline, begin),
        "maskable_first_last_count": [int(maskable[0]), int(maskable[-1]), len(maskable)],
    }
    if where(table.image_begin, begin):
        (places["answer_image_begin"],) = where(table.image_begin, begin)
        (places["answer_image_end"],) = where(table.image_end, begin)
        (places["answer_end"],) = where(table.answer_end, begin)
    else:
        places["answer_places"] = [begin + 1, len(ids)]
        places["text_end"] = own[-1]
        places["pads"] = [own[-1] + 1, len(ids)]
    return places


_PARTS: dict[str, Callable[[TrainingRecord], Iterable[Check]]] = {
    "pictures": replay_pictures.pictures,
    "weights": weights,
    "toy_weights": toy_weights,
    "mask_law": mask_law,
    "schedule": replay_updates.schedules,
    "preparation": replay_pictures.preparation,
    "several_pictures": replay_pictures.several_pictures,
    "understanding_preparation": replay_pictures.understanding_preparation,
    "released_fails": released_fails,
    "hostile": replay_pictures.hostile,
    "evaluation": evaluation,
    "crops": replay_pictures.crops,
    "crop_bucket_lists": replay_pictures.bucket_lists,
}
_WORLD_PARTS: dict[str, Callable[[World], Iterable[Check]]] = {
    "vocab": vocabulary,
    "tokenizer": tokenised,
    "records": records,
    "sequences": sequences,
    "loss": replay_updates.losses,
    "adamw": replay_updates.updates,
}
