"""Text rows of the embedding that are looked up on the host: the same numbers, and no table on the device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bench.op_counts import OpCounts
from bench.rehearsal import Rehearsal
from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.text_rows import TextRows
from dimoo_core.model.transformer import Transformer

from ..tiny import TABLE, TRANSFORMER, random_weights


def network() -> Transformer:
    transformer = Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset)
    random_weights(transformer, 3)
    return transformer.requires_grad_(False)


def rows_of(transformer: Transformer, ids: list[int], room: int = 0) -> TextRows:
    tables = transformer.set_text_apart()
    where = torch.device("cpu")
    return TextRows(tables.embedding, ids, offset=TABLE.code_offset, room=room, device=where)


def test_logits_are_the_same_with_the_tables_apart() -> None:
    ids = torch.tensor([[256, 7, 300, 299, 7, 0, 260]])
    whole, apart = network(), network()
    text_rows = rows_of(apart, ids.flatten().tolist())
    assert torch.equal(apart(ids, text_rows=text_rows), whole(ids))


def test_tables_apart_are_no_part_of_the_network() -> None:
    transformer = network()
    tables = transformer.set_text_apart()
    assert transformer.set_text_apart() is tables is transformer.text_tables
    inside = {id(weight) for weight in transformer.parameters()}
    assert not inside & {id(tables.embedding.weight), id(tables.head.weight)}
    assert not [name for name in transformer.state_dict() if ".text." in name]


def test_ids_may_be_added_later_and_only_new_ones_are_looked_up() -> None:
    asked, table = [], nn.Embedding(272, 8)

    def embedding(ids: torch.Tensor) -> torch.Tensor:
        asked.append(ids.tolist())
        return table(ids)

    rows = TextRows(embedding, [5, 3, 5], offset=272, room=4, device=torch.device("cpu"))
    rows.add([3, 9, 280, 9])  # 280 is a code
    rows.add([5, 9])
    assert asked == [[3, 5], [9]]
    ids = torch.tensor([[9, 3], [5, 5]])
    assert torch.equal(rows(ids), table(ids)) and not rows(ids).requires_grad


class Asked(TorchFunctionMode):
    """Notes of each `Tensor.to` whether the host may go on before it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.early: list[bool] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to:
            self.early.append((kwargs or {}).get("non_blocking", False))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cuda:9", "mps"])
def test_only_cuda_goes_on_before_rows_have_come(device: str) -> None:
    """From pinned memory, which stays. Metal would read what then lies where the rows were."""
    table = nn.Embedding(272, 8).requires_grad_(False)
    with Rehearsal(device) as seen:
        with Asked() as asked:
            rows = TextRows(table, [5, 3], offset=272, room=1, device=seen.device)
            rows.add([9])
        assert torch.equal(rows(torch.tensor([9, 3], device=seen.device)).cpu(), table.weight[[9, 3]])
    assert set(asked.early) == {device == "cuda:9"} and bool(seen.sends) == (device == "cuda:9")


def test_a_look_up_reads_as_little_as_the_rows() -> None:
    rows, ids = rows_of(network(), list(range(40))), torch.arange(30)[None]
    with OpCounts() as counts:
        rows(ids)
    assert set(counts.calls) == {"index", "embedding"} and not counts.waits


def test_more_ids_than_there_is_room_for_are_an_error() -> None:
    rows = rows_of(network(), [1, 2], room=1)
    rows.add([3])
    with pytest.raises(RuntimeError):
        rows.add([4])
