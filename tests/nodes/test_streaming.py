"""Cards that are too small for the weights: what a step reads from RAM, and how a model chooses its way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench import streaming

from .. import nodepack
from ..tiny import write_checkpoint

NODES = nodepack.nodes()
adapters, host, jobs, memory, provenance, sockets, text, transformer = (
    nodepack.part(name)
    for name in (
        "dimoo_core.model.adapters",
        "nodes.host",
        "dimoo_core.jobs",
        "dimoo_core.memory",
        "nodes.provenance",
        "nodes.sockets",
        "dimoo_core.sampling.text",
        "dimoo_core.model.transformer",
    )
)
CachePolicy = nodepack.part("dimoo_core.sampling.ml_cache").CachePolicy
CARD = torch.device("meta")


# The figures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted_anew() -> Iterator[None]:
    """What is counted while something is different stays with the test that made it so."""
    streaming.image_step.cache_clear()
    yield
    streaming.image_step.cache_clear()


@pytest.fixture
def tables_in_the_network(counted_anew, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text tables stay parts of the network, which has to bring them along."""

    def left_inside(network) -> transformer.TextTables:
        return transformer.TextTables(network.layers["wte"].text, nn.Linear(1, 1, bias=False, device=CARD))

    monkeypatch.setattr(transformer.Transformer, "set_text_apart", left_inside)


@pytest.fixture
def branch_by_branch(counted_anew, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = sockets.LoadedModel.place
    monkeypatch.setattr(sockets.LoadedModel, "place", lambda own, plan: replace(honest(own, plan), packed=False))


def test_an_int8_file_on_a_card_for_6_gib_streams_little() -> None:
    assert streaming.streamed_gib_int8_6() <= 0.8


def test_a_bf16_file_on_a_card_for_10_gib_streams_what_its_blocks_lack() -> None:
    assert streaming.streamed_gib_bf16_10() <= 3.2


def test_two_streams_keep_room_for_a_block_and_not_for_a_table() -> None:
    assert streaming.streamed_gib_int8_4_two_streams() <= 3


def test_text_tables_in_the_network_take_the_room_of_its_blocks(tables_in_the_network) -> None:
    assert streaming.streamed_gib_int8_6() > 2.5
    assert streaming.streamed_gib_bf16_10() > 5.0
    assert streaming.streamed_gib_int8_4_two_streams() > 4.5


def test_a_step_brings_in_a_missing_weight_once() -> None:
    assert streaming.streamed_passes_t2i_step() == streaming.streamed_passes_edit_step() == 1


def test_branch_by_branch_it_would_come_once_for_each(branch_by_branch) -> None:
    assert (streaming.streamed_passes_t2i_step(), streaming.streamed_passes_edit_step()) == (2, 3)


def test_a_weight_is_cast_once_for_all_chunks_of_a_pass() -> None:
    assert streaming.casts_per_layer_in_chunks() == 1


def test_layers_that_cannot_be_held_cast_once_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(host._Holding, "held")
    assert streaming.casts_per_layer_in_chunks() == 4.75


# Holding a weight ---------------------------------------------------------------------------------------------------


def quiet_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.ldm.modules.attention as attention

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)  # others ask a GPU for its size


@pytest.mark.parametrize("streams", [False, True], ids=["resident", "streaming"])
@pytest.mark.parametrize("dtype", ["auto", "bf16", "fp32"])
@pytest.mark.parametrize("kind", ["bf16", "fp8", "int8"])
def test_a_held_layer_computes_what_it_computes_at_every_call(
    nano_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str, streams: bool
) -> None:
    file = nano_files[kind]
    nodepack.put_checkpoint(file.parent, monkeypatch)
    model = nodepack.run(NODES["DimooLoader"], checkpoint=file.name, weight_dtype=dtype)[0]
    for name in ("q_proj", "ff_proj", "up_proj", "ff_out"):
        layer = model.core.transformer.blocks[0].get_submodule(name)
        if streams:
            layer.comfy_cast_weights = True
        chunks = torch.randn(3, 9, layer.weight.shape[1], generator=torch.Generator().manual_seed(0))
        with torch.inference_mode(), layer.held(chunks) as held:
            assert all(torch.equal(held(chunk), layer(chunk)) for chunk in chunks)


def test_a_held_weight_outlives_the_buffer_it_came_through(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer ComfyUIs bring streamed weights through a buffer per stream, which later weights overwrite."""
    import comfy.ops

    block = loaded[0].core.transformer.blocks[0]
    buffer = torch.empty(block.ff_proj.weight.numel())

    def through_the_buffer(layer, like, **_):
        if layer.weight.untyped_storage().data_ptr() not in own:
            return layer.weight, None, None
        return buffer.view_as(layer.weight).copy_(layer.weight), None, ("a stream", None, None)

    x = torch.randn(5, block.ff_proj.in_features)
    wanted = block.ff_proj(x)
    own = {layer.weight.untyped_storage().data_ptr() for layer in (block.ff_proj, block.up_proj)}
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", through_the_buffer)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *_: None)
    block.ff_proj.comfy_cast_weights = block.up_proj.comfy_cast_weights = True
    with torch.inference_mode(), block.ff_proj.held(x) as first, block.up_proj.held(x):
        assert torch.equal(first(x), wanted)


@pytest.mark.parametrize("kind", ["bf16", "fp8", "int8"])
def test_a_weight_is_given_back_also_where_a_call_fails(
    nano_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Newer ComfyUIs keep on the card what is in use: what is never given back would stay for good."""
    import comfy.ops

    nodepack.put_checkpoint(nano_files[kind].parent, monkeypatch)
    model = nodepack.run(NODES["DimooLoader"], checkpoint=nano_files[kind].name)[0]
    layer = model.core.transformer.blocks[0].ff_proj
    layer.comfy_cast_weights = True
    honest, out, x = comfy.ops.cast_bias_weight, [], torch.zeros(3, 7)  # not as many as the layer takes

    def through_a_stream(*given, **how):
        out.append(1)
        return *honest(*given, **how)[:2], ("a stream", None, None)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", through_a_stream)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *_: out.pop())
    monkeypatch.setattr(torch.Tensor, "clone", lambda *_: pytest.fail("no memory for a copy"))
    if kind == "fp8":  # the layer is ours in every ComfyUI
        with pytest.raises(RuntimeError):
            layer(x)
    with pytest.raises(pytest.fail.Exception), layer.held(x):
        pass
    assert not out


def test_a_cancel_reaches_a_held_layer(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    layer = loaded[0].core.transformer.blocks[0].ff_out
    layer.comfy_cast_weights = True
    x = torch.zeros(2, layer.in_features)
    with pytest.raises(management.InterruptProcessingException), layer.held(x) as held:
        management.interrupt_current_processing(True)
        held(x)
    assert torch.equal(layer(x), torch.zeros(2, layer.out_features)), "and the layer goes on as before"


# The way of a model -------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quiet_attention(monkeypatch)
    nodepack.put_checkpoint(write_checkpoint(tmp_path / "models" / "tiny").parent, monkeypatch)
    return nodepack.run(NODES["DimooLoader"], checkpoint="tiny").args


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stands in the log yet."""
    monkeypatch.setattr(host, "_logged", set())


@pytest.fixture
def small_card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A card of `total` bytes, on which dynamic models take what is in `there`, and nothing is freed unasked."""
    import comfy.model_management as management

    state = SimpleNamespace(total=2**40, there={})
    monkeypatch.setattr(management, "current_loaded_models", [])
    monkeypatch.setattr(management, "free_memory", lambda *_, **__: [])
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: state.total - sum(state.there.values()))
    return state


def dynamic(module: nn.Module, card: SimpleNamespace):
    """A stand-in for ComfyUI's patcher with dynamic memory: the weights of its layers come when they are used, all else
    when it is loaded. Either gives way when asked to, but only the former come back by themselves."""
    import comfy.model_patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self) -> bool:
            return True

        def partially_load(self, *_, **__) -> None:
            plain = (part for part in self.model.modules() if not hasattr(part, "comfy_cast_weights"))
            at_once = sum(weight.nbytes for part in plain for weight in part.parameters(recurse=False))
            self.model.model_loaded_weight_memory = at_once
            card.there[self] = max(card.there.get(self, 0), at_once)

        def loaded_size(self) -> int:
            return card.there.get(self, 0)

        def loaded_ram_size(self) -> int:
            return 0

        def partially_unload(self, device, memory_to_free=0, **_) -> int:
            freed = min(memory_to_free, card.there[self])
            card.there[self] -= freed
            return freed

        def detach(self, unpatch_all=True):
            if unpatch_all:
                card.there.pop(self)

        __hash__ = object.__hash__

    return Dynamic(module, load_device=CARD, offload_device=torch.device("cpu"))


def on_card(model, card: SimpleNamespace):
    """The model under dynamic memory, placed nowhere yet."""
    patchers = {"patcher": dynamic(model.patcher.model, card), "head": dynamic(model.head.model, card)}
    return replace(model, **patchers, streaming=sockets.Streaming())


def image_plan(model, size: int = 256, **settings):
    canvas = nodepack.run(NODES["DimooEmptyCanvas"], width=size, height=size, batch_size=1)[0]
    sampling = nodepack.part("dimoo_core.sampling.image").ImageSettings(steps=2, **settings)
    return jobs.plan_image(model.core, jobs.text_prompt("a fox"), canvas, sampling)


def after_a_run(card: SimpleNamespace, *models) -> None:
    """All weights that find room have come."""
    for one in models:
        card.there[one] = min(one.model_size(), card.there[one] + card.total - sum(card.there.values()))


def test_under_dynamic_memory_later_runs_choose_as_the_first_did(loaded, small_card) -> None:
    model = on_card(loaded[0], small_card)
    plan = image_plan(model)
    small_card.total = model.patcher.model_size() + plan.scratch_bytes(4)
    first = model.place(plan)
    after_a_run(small_card, model.patcher)
    assert small_card.total - small_card.there[model.patcher] >= plan.scratch_bytes(4)
    vq = dynamic(loaded[1].vq, small_card)  # decoded the picture
    host.ready([vq], 0)
    small_card.there[vq] = plan.scratch_bytes(4) // 2
    assert model.place(plan) == first == jobs.Placement(CARD, None, packed=False, graphs=False)


def test_what_a_run_needs_is_free_before_it_begins(loaded, small_card) -> None:
    model = on_card(loaded[0], small_card)
    plan = image_plan(model, guidance=nodepack.part("dimoo_core.sampling.guidance").Guidance(0.0, 0.0))
    scratch = plan.scratch_bytes(4, memory.CHUNK_ROWS, packed=True)
    scratch += memory.held_bytes(model.core.transformer.config, 4, ())
    small_card.total = scratch + model.patcher.model_size() // 4
    first = model.place(plan)
    after_a_run(small_card, model.patcher)
    assert small_card.total - small_card.there[model.patcher] < scratch
    assert model.place(plan) == first == jobs.Placement(CARD, memory.CHUNK_ROWS, packed=True, graphs=False)
    assert small_card.total - small_card.there[model.patcher] == scratch


def test_the_weights_of_others_give_way_first(loaded, small_card) -> None:
    model, other = on_card(loaded[0], small_card), dynamic(loaded[1].vq, small_card)
    plan = image_plan(model)
    small_card.total = model.patcher.model_size() + other.model_size() + plan.scratch_bytes(4)
    host.ready([other], 0)
    model.place(plan)
    after_a_run(small_card, model.patcher, other)
    small_card.total -= other.model_size()
    model.place(plan)
    assert small_card.there[model.patcher] == model.patcher.model_size() and small_card.there[other] == 0


@pytest.fixture
def lora(small_card):
    """The patcher of a LoRA under dynamic memory."""
    branch = adapters.LowRank(torch.zeros(4, 32), torch.zeros(32, 4), 4.0)
    return dynamic(adapters.Adapter({"model.transformer.blocks.0.q_proj": branch}), small_card)


def test_a_lora_stays_where_its_layers_compute(loaded, small_card, lora) -> None:
    """It comes when it is loaded, and nothing would bring it back."""
    model = replace(on_card(loaded[0], small_card), adapters=(lora,))
    plan = image_plan(model)
    small_card.total = model.patcher.model_size() + lora.model_size() + plan.scratch_bytes(4)
    for _ in range(2):
        model.place(plan)
        assert small_card.there[lora] == lora.model_size() > 0
        after_a_run(small_card, model.patcher)
        small_card.total -= lora.model_size()  # somebody else's


def test_a_model_whose_user_is_gone_disturbs_nobody(loaded, small_card, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    model, known = on_card(loaded[0], small_card), management.loaded_models
    monkeypatch.setattr(management, "loaded_models", lambda *given: [None, *known(*given)])  # as ComfyUI tells of it
    assert not model.place(image_plan(model)).packed


def test_where_not_even_weights_leave_room_for_all_branches_they_go_one_by_one(
    loaded, small_card, lora, caplog
) -> None:
    model = replace(on_card(loaded[0], small_card), streaming=sockets.Streaming(found=True))
    plan = image_plan(model, 1024)
    held = memory.held_bytes(model.core.transformer.config, 4, ())
    small_card.total = plan.scratch_bytes(4, memory.CHUNK_ROWS, packed=True) + held
    assert model.place(plan).packed
    small_card.total -= 1
    placement = model.place(plan)
    assert placement == jobs.Placement(CARD, memory.CHUNK_ROWS, packed=False, graphs=False)
    small_card.total += lora.model_size()
    assert not replace(model, adapters=(lora,)).place(plan).packed, "a LoRA does not give way"
    assert small_card.total >= plan.scratch_bytes(4, memory.CHUNK_ROWS) + held
    info = {provenance.KEY: provenance.metadata({"4": {"class_type": "DimooLoader", "inputs": {"checkpoint": "tiny"}}})}
    provenance.note_branches(info, model, placement)
    assert info[provenance.KEY]["checkpoints"]["4"]["branches"] == "one by one"
    said = [one.getMessage() for one in caplog.records if "stream from RAM" in one.getMessage()]
    assert [line.endswith("share a pass.") for line in said] == [True, False]


@pytest.mark.parametrize("kind", ["dynamic", "legacy"])
def test_a_plan_goes_in_chunks_where_otherwise_weights_would_have_to_go(
    loaded, small_card, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import comfy.model_management as management

    monkeypatch.setattr(memory, "CHUNK_ROWS", 64)
    for kept in ("minimum_inference_memory", "extra_reserved_memory"):
        monkeypatch.setattr(management, kept, lambda: 0)
    monkeypatch.setattr(management, "MIN_WEIGHT_MEMORY_RATIO", 0.0)  # of the card, and this model is small
    if kind == "legacy":
        request.getfixturevalue("legacy_card")
    model = on_card(loaded[0], small_card) if kind == "dynamic" else managed_on_card(loaded[0], small_card, "meta")
    plan = image_plan(model, 2048)
    whole, in_chunks = (plan.scratch_bytes(4, rows) for rows in (None, 64))
    assert whole > in_chunks + 2**20
    small_card.total = model.patcher.model_size() + whole - 1000
    for _ in range(2):
        placement = model.place(plan)
        assert placement == jobs.Placement(CARD, 64, packed=False, graphs=kind == "legacy")
        assert kind == "dynamic" or host.resident([model.patcher], in_chunks)


def test_room_for_what_cuda_graphs_keep_is_asked_for(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(host, "ready", lambda networks, scratch, beside: asked.append(scratch))
    monkeypatch.setattr(host, "resident", lambda *_: True)
    monkeypatch.setattr(host, "room", lambda _: 2**50)
    plan = image_plan(loaded[0], 512, cache=CachePolicy())
    for device in ("cpu", "cuda"):
        patcher = SimpleNamespace(load_device=torch.device(device), model=nn.Module())
        assert replace(loaded[0], patcher=patcher, streaming=sockets.Streaming()).place(plan).graphs
    assert asked == [plan.scratch_bytes(4), plan.scratch_bytes(4, graphs=True)] and asked[1] > asked[0]


def test_the_vq_decodes_whole_again_where_it_did_before(loaded, small_card, monkeypatch: pytest.MonkeyPatch) -> None:
    vq, tiles = loaded[1], []
    monkeypatch.setattr(vq.vq, "decode", lambda codes, *, tile=None: tiles.append(tile) or torch.zeros(1, 3, 8, 8))
    vq = replace(vq, patcher=dynamic(vq.vq, small_card))
    codes = torch.zeros(1, 3, 2, dtype=torch.int64)
    small_card.total = vq.patcher.model_size() + memory.decode_bytes(vq.vq.config, (48, 32), 4)
    for _ in range(2):
        vq.decode(codes)
        after_a_run(small_card, vq.patcher)
        small_card.there[vq.patcher] += small_card.total - sum(small_card.there.values())  # another picture's, say
    assert tiles == [None, None]


def managed_on_card(model, card: SimpleNamespace, waits_on: str = "cpu"):
    """The model under ComfyUI's own memory management, placed nowhere yet; nothing comes back from `CARD` to a CPU."""
    devices = (CARD, torch.device(waits_on))
    patchers = {name: host.managed(getattr(model, name).model, devices) for name in ("patcher", "head")}
    card.there.update(dict.fromkeys(patchers.values(), 0))
    return replace(model, **patchers, streaming=sockets.Streaming())


@pytest.fixture
def legacy_card(small_card, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A card for weights that ComfyUI loads before a run: what they take is no longer free."""
    import comfy.model_management as management

    def free(*_, **__) -> float:
        weights = sum(one.loaded_size() for one in small_card.there)
        return small_card.total + management.minimum_inference_memory() - weights

    monkeypatch.setattr(management, "get_free_memory", free)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    return small_card


def text_plan(model):
    return jobs.plan_text(model.core, [torch.zeros(1, 4, 4, dtype=torch.int64)], "What?", text.TextSettings())


def test_text_tables_never_reach_the_card_in_image_jobs(loaded, legacy_card) -> None:
    model = managed_on_card(loaded[0], legacy_card)
    tables = model.core.transformer.text_tables
    assert not any("text" in name for name, _ in model.core.transformer.named_parameters())
    model.place(image_plan(model))
    assert {part.device for part in model.core.transformer.parameters()} == {CARD}
    assert tables.embedding.weight.device.type == tables.head.weight.device.type == "cpu"
    model.place(text_plan(model))
    assert tables.embedding.weight.device.type == "cpu" and tables.head.weight.device == CARD


def test_comfyui_is_told_of_all_weights_in_ram(loaded) -> None:
    model = loaded[0]
    tables = model.core.transformer.text_tables
    parts = [*model.core.transformer.parameters(), tables.embedding.weight, tables.head.weight]
    assert model.get_ram_usage() == sum(part.nbytes for part in parts)


def test_a_model_whose_weights_stay_never_packs(loaded, legacy_card) -> None:
    model = managed_on_card(loaded[0], legacy_card)
    assert model.place(image_plan(model)) == jobs.Placement(CARD, None, packed=False, graphs=True)


def test_a_model_that_streams_goes_the_same_way_at_every_run(loaded, legacy_card, caplog) -> None:
    model = managed_on_card(loaded[0], legacy_card)
    legacy_card.total = model.patcher.model_size() // 2
    placement = model.place(image_plan(model))
    assert placement == jobs.Placement(CARD, memory.CHUNK_ROWS, packed=True, graphs=False)
    legacy_card.total = 2**40
    assert model.place(image_plan(model)) == placement
    other = model.with_lora(adapters.Adapter({}), 1.0, "none")
    assert other.place(image_plan(model)) == placement
    said = [one.getMessage() for one in caplog.records if "stream from RAM" in one.getMessage()]
    assert said == [f"DiMOO: the weights of {model.found.path} stream from RAM; all branches share a pass."]


def test_without_vram_for_weights_all_branches_share_a_pass(loaded, legacy_card, monkeypatch) -> None:
    import comfy.model_management as management

    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    assert managed_on_card(loaded[0], legacy_card).place(image_plan(loaded[0])).packed


def test_weights_that_are_cast_are_not_recorded_in_graphs(loaded, legacy_card) -> None:
    model = managed_on_card(loaded[0], legacy_card)
    model.core.transformer.blocks[0].ff_out.comfy_cast_weights = True
    assert not model.place(image_plan(model)).graphs


def test_the_log_says_once_that_caching_does_not_help_where_weights_stream(loaded, legacy_card, caplog) -> None:
    model = managed_on_card(loaded[0], legacy_card)
    legacy_card.total = model.patcher.model_size() // 2
    said = []
    for policy in (None, CachePolicy(), CachePolicy()):
        model.place(image_plan(model, cache=policy))
        said.append(sum("a cached step streams" in one.getMessage() for one in caplog.records))
    assert said == [0, 1, 1]


def test_tokens_are_the_same_where_weights_stream(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture, an edit and an answer, on the CPU in fp32."""

    def made(model) -> list:
        canvas = nodepack.run(NODES["DimooEmptyCanvas"], width=64, height=48, batch_size=1)[0]
        prompt = nodepack.run(NODES["DimooTextEncode"], text="a fox")[0]
        settings = {"model": model, "seed": 5, "steps": 4, "cfg": 1.0, "image_cfg": 1.0}
        picture = torch.linspace(0, 1, 3 * 128 * 128).view(1, 128, 128, 3)
        asked, blank, *_ = nodepack.run(NODES["DimooImageEdit"], vq=loaded[1], image=picture, text="x", side=128).args
        codes = [nodepack.run(NODES["DimooSampler"], prompt=prompt, canvas=canvas, **settings)[0].codes.tolist()]
        codes.append(nodepack.run(NODES["DimooSampler"], prompt=asked, canvas=blank, **settings)[0].codes.tolist())
        ask = {"max_tokens": 8, "steps": 8, "block_length": 4, "question": "?", "cfg": 1.0}
        return [*codes, nodepack.run(NODES["DimooDescribe"], model=model, vq=loaded[1], image=picture, **ask)[0]]

    monkeypatch.setattr(memory, "CHUNK_ROWS", 48)
    streams = replace(loaded[0], streaming=sockets.Streaming(found=True))
    assert made(loaded[0]) == made(streams)


def test_metadata_say_how_the_branches_went_also_of_a_cached_result(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_branches", {})
    key, prompt = provenance.KEY, {"4": {"class_type": "DimooLoader", "inputs": {"checkpoint": "tiny"}}}
    info = {key: provenance.metadata(prompt)}
    assert "branches" not in info[key]["checkpoints"]["4"], "nobody knows before it runs"
    provenance.note_branches(info, loaded[0], jobs.Placement(packed=True))
    assert info[key]["checkpoints"]["4"]["branches"] == "together"
    assert provenance.metadata(prompt) == info[key], "a prompt whose sampler does not run again"
    provenance.note_branches(None, loaded[0], jobs.Placement())
    assert provenance.metadata(prompt)["checkpoints"]["4"]["branches"] == "one by one"
    for others in ("theirs", {"by": "a client"}):
        provenance.note_branches(info := {key: others}, loaded[0], jobs.Placement())
        assert info == {key: others}
