"""Steps that are recorded once and replayed, on a CPU by a recording that has the rules of CUDA's graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heed.models.backbone import LoRAConfig
from heed.models.language_model import LanguageModel
from heed.records import Prompt, Rollout, Sampling
from heed.rollout import cache, decoding, graphs, local, shared
from heed.rollout.cache import Buffers, SlotCache, cache_bytes_per_token, rounded
from heed.rollout.decoding import Decoding
from heed.rollout.graphs import Graphs, HostReads
from heed.rollout.local import LocalEngine
from heed.rollout.shared import SharedCache
from tests.rollout.test_decoding import BENT, FAMILIES
from tests.rollout.test_local import tokens

MakePolicy = Callable[..., LanguageModel]
MakeEngine = Callable[..., LocalEngine]


class Recording(TorchDispatchMode):
    """The operations of a step, to be done again on the very tensors that they were done on.

    As with a graph, nothing but these operations is repeated, and what they leave between themselves belongs to nobody afterwards: it is
    spoiled after each replay, as other graphs write to the same memory. Unlike a graph's, the recording also runs the step; so the first
    replay does nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Sequence[Any], dict[str, Any], list[Tensor | None]]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        new = [x if x.untyped_storage().data_ptr() not in given else None for x in tree_leaves(found) if isinstance(x, Tensor)]
        self.operations.append((func, args, kwargs or {}, new))
        return found

    def replay(self) -> None:
        if self.replays:
            for func, args, kwargs, places in self.operations:
                found = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
                for place, x in zip(places, found, strict=True):
                    if place is not None:
                        place.copy_(x)
        self.replays += 1
        for _, _, _, places in self.operations:
            for place in places:
                if place is not None:
                    place.fill_(torch.nan if place.is_floating_point() else 99)

    def pool(self) -> str:
        return "pool"


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """What is recorded, where engines attend as on a GPU."""
    made: list[Recording] = []

    def capture(step: Callable[[], None], device: torch.device, pool: Any) -> Recording:
        assert pool in (["pool", None] if made else [None])
        made.append(Recording())
        with made[-1]:
            step()
        return made[-1]

    write = SlotCache._write

    def watched(self: SlotCache, columns: Tensor) -> None:
        assert columns.numpy().min() >= 0, "slots without a row write to slots of rows"
        write(self, columns)

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(local, "attends_in_parts", lambda _: False)
    monkeypatch.setattr(SlotCache, "_write", watched)
    for module in (cache, shared):
        monkeypatch.setattr(module, "COLUMNS", 8)
    return made


def plain_and_replayed(engine: LocalEngine, prompts: Sequence[Prompt], sampling: Sampling, n: int) -> tuple[list[Rollout], list[Rollout]]:
    sampling, answers = replace(sampling, seed=3), []
    for engine.graphs in (False, True):
        answers.append(engine.generate(prompts, sampling, n))
    return answers[0], answers[1]


def assert_alike(plain: list[Rollout], replayed: list[Rollout]) -> None:
    assert tokens(plain) == tokens(replayed)
    for a, b in zip(plain, replayed, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert (a.text, a.finish_reason, a.weight_version) == (b.text, b.finish_reason, b.weight_version)
        for here, there in zip(a.top_logprobs, b.top_logprobs, strict=True):
            assert [token for token, _ in here] == [token for token, _ in there]
            assert [p for _, p in here] == pytest.approx([p for _, p in there], abs=1e-4)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("family", [*FAMILIES, "mistral", "longrope"])
def test_replayed_steps_answer_as_plain_ones(
    family: str,
    n: int,
    make_policy: MakePolicy,
    make_engine: MakeEngine,
    prompts: list[Prompt],
    recordings: list[Recording],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_policy(family)
    monkeypatch.setattr(policy, "eos_ids", tuple(range(2, 9)))
    for max_rows in (5, 21):
        recordings.clear()
        assert_alike(*plain_and_replayed(make_engine(policy, max_rows=max_rows), 3 * prompts, Sampling(24), n))
        assert sum(recording.replays for recording in recordings) > len(recordings) > 0


@pytest.mark.parametrize("sampling", [Sampling(24, temperature=0), replace(BENT, top_logprobs=4), Sampling(24, stop=("5 w7", "w17"))])
@pytest.mark.parametrize("chunk", [1024, 3])
@pytest.mark.parametrize("n", [1, 3])
def test_all_rules_of_sampling_hold_in_replayed_steps(
    sampling: Sampling,
    chunk: int,
    n: int,
    policy: LanguageModel,
    make_engine: MakeEngine,
    prompts: list[Prompt],
    recordings: list[Recording],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy, "eos_ids", tuple(range(2, 5)))
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", chunk)
    assert_alike(*plain_and_replayed(make_engine(policy, max_rows=21), 3 * prompts, sampling, n))
    assert any(recording.replays > 1 for recording in recordings)


def test_an_adapter_and_new_weights_are_seen(
    make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt], recordings: list[Recording]
) -> None:
    policy = make_policy("llama", lora=LoRAConfig(rank=2))
    engine, before = make_engine(policy), []
    for _ in range(2):
        plain, replayed = plain_and_replayed(engine, prompts, Sampling(20), 2)
        assert_alike(plain, replayed)
        assert recordings
        recordings.clear()
        assert tokens(plain) != before
        before = tokens(plain)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def test_a_stream_is_replayed(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt], recordings: list[Recording]) -> None:
    engine, sampling = make_engine(policy), Sampling(24, seed=3)
    plain = "".join(engine.stream(prompts[1], sampling))
    engine.graphs = True
    assert "".join(engine.stream(prompts[1], sampling)) == plain
    assert sum(recording.replays for recording in recordings) > len(recordings)


def test_a_step_that_reads_values_on_the_host_is_not_captured(
    make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt], recordings: list[Recording]
) -> None:
    engine = make_engine(make_policy("dynamic"))
    with pytest.warns(UserWarning, match=r"without CUDA graphs.*: aten\._local_scalar_dense.* needs values on the host"):
        assert_alike(*plain_and_replayed(engine, prompts, Sampling(20), 1))
    assert not recordings
    assert not engine.graphs, "later calls need not find it out again"


def test_where_a_capture_fails_sampling_goes_on(
    policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt], recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    capture, attempts, replays = graphs.capture, [], []

    def third_fails(step: Callable[[], None], device: torch.device, pool: Any) -> Recording:
        attempts.append(step)
        if len(attempts) == 3:
            replays.extend(recording.replays for recording in recordings)
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return capture(step, device, pool)

    monkeypatch.setattr(graphs, "capture", third_fails)
    engine = make_engine(policy, max_rows=6)
    with pytest.warns(UserWarning, match=r"without CUDA graphs, which takes longer: operation not permitted when stream is capturing$"):
        assert_alike(*plain_and_replayed(engine, 3 * prompts, Sampling(20), 1))
    assert [recording.replays for recording in recordings] == [*replays, 0], "what was captured before is not replayed any more"
    assert [attempt == attempts[0] for attempt in attempts] == [True, True, True, False], "a small capture that ends well, and no other"
    assert not engine.graphs


@pytest.mark.parametrize("broken", [(), ("step",), ("end",), ("step", "end")])
def test_a_capture_ends_whatever_happens(broken: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device that only notes what is asked of it."""
    asked: list[Any] = []

    class Graph:
        def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
            asked.append(("begin", pool, capture_error_mode))

        def capture_end(self) -> None:
            asked.append("end")
            if "end" in broken:
                raise RuntimeError("capture was invalidated")

    @contextmanager
    def stream(_: Any) -> Iterator[None]:
        asked.append("stream")
        try:
            yield
        finally:
            asked.append("stream left")

    def step() -> None:
        asked.append("step")
        if "step" in broken:
            raise RuntimeError("not permitted")

    for name, value in {"CUDAGraph": Graph, "synchronize": lambda _: None, "stream": stream, "Stream": lambda _: None}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(graphs, "FAILED", [])
    with pytest.raises(RuntimeError, match="not permitted" if "step" in broken else "invalidated") if broken else nullcontext():
        assert isinstance(graphs.capture(step, torch.device("cuda"), "pool"), Graph)
    graphs._stream.cache_clear()
    assert asked[:4] == ["stream", ("begin", "pool", "thread_local"), "step", "end"]
    assert asked[-1] == "stream left"
    assert len(graphs.FAILED) == ("end" in broken)


x = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    "work",
    [
        lambda: x.tolist() if x.sum() > 3 else None,
        lambda: torch.where(x > 3),
        lambda: x.repeat_interleave(torch.tensor([1, 2], device=x.device), dim=0),
        lambda: x.sum().item(),
        lambda: bool((x > 3).any()),
        lambda: (x > 3).nonzero(),
        lambda: x[x > 3],
        lambda: x.clone().index_put_((x > 3,), torch.zeros(())),
        lambda: x.unique(),
        lambda: x + torch.tensor([1.0, 2.0, 3.0]),
        lambda: x.to("meta"),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_what_the_host_waits_for_is_found(work: Callable[[], object], inference: bool) -> None:
    with torch.inference_mode(inference), HostReads() as reads:
        work()
    assert reads.found


def test_what_stays_on_the_device_is_not_reported() -> None:
    index = torch.tensor([1, 0])
    seen = x > 3
    with torch.inference_mode(), HostReads() as reads:
        y = x.clone()
        y[index, index] = x[index, index].softmax(-1)
        y.masked_fill_(y > 3, -torch.inf).index_copy_(0, index, torch.zeros(2, 3))
        y.to(torch.bfloat16).to(x.device).copy_(x)
        torch.where(seen[index, index][:, None], y * torch.tensor(3.0), y)
    assert not reads.found


class Devices(TorchDispatchMode):
    """On which devices the tensors of each operation are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.found.add(tuple(sorted({x.device.type for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)})))
        return found


@pytest.mark.parametrize("sampling", [Sampling(24), replace(BENT, top_logprobs=4)])
@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_a_step_keeps_to_its_device(family: str, shares: bool, sampling: Sampling, make_policy: MakePolicy) -> None:
    """With tensors that are nowhere, where a value that were read or a tensor that were made elsewhere would stand out."""
    policy = make_policy(family).reference()
    policy.model.to("meta")
    rows, prompts = (Buffers([part], policy.device) for part in ((20, 40), (6, 17)))
    room = SharedCache(policy, rows, prompts, graphs=True) if shares else SlotCache(policy, rows, graphs=True)
    at_work = Decoding(policy, [(3, 4, 5)] * 20, 1, [24] * 20, torch.zeros(20, 24, dtype=torch.float64), sampling, room)
    at_work.num_live = room.num_live = room.width = 17
    if isinstance(room, SharedCache):
        room.num_homes, room.prompt_width, room.most = 6, 17, 4
        states = torch.zeros(1, cache_bytes_per_token(policy) // (2 * 2 * 8 * 4), 1, 8, device="meta")
        for layer in range(2):
            prompts.put(layer, prompts.lines(room.columns[:1], room.columns[:1, None], states.shape[1]), states, states)
    with torch.inference_mode(), Devices() as devices:
        at_work._step()
    assert devices.found == {("meta",)}


def test_first_steps_run_as_they_are() -> None:
    ran: list[tuple[int, ...]] = []
    steps = Graphs(torch.device("cpu"), pytest.fail)
    for sizes in ((1,), (2,), (3,)):
        steps.run(sizes, lambda sizes=sizes: ran.append(sizes))
    assert ran == [(1,), (2,), (3,)]
    assert not steps.graphs


@given(st.integers(1, 10**6))
def test_sizes_are_rounded_up_by_less_than_a_quarter(size: int) -> None:
    assert size <= rounded(size) < 1.25 * size
    assert rounded(rounded(size)) == rounded(size) <= rounded(size + 1)
    assert size <= rounded(size, 32) < max(1.25 * size, size + 32)
    assert rounded(size, 32) % 32 == 0


def test_there_are_four_sizes_to_a_power_of_two() -> None:
    assert [len({rounded(size) for size in range(2**k + 1, 2 ** (k + 1) + 1)}) for k in range(2, 12)] == [4] * 10


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_of_a_gpu_answer_as_plain_steps(
    family: str, n: int, make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, made = make_policy(family, device="cuda"), []
    monkeypatch.setattr(policy, "eos_ids", tuple(range(2, 9)))

    def kept(*args: Any) -> Graphs:
        made.append(Graphs(*args))
        return made[-1]

    monkeypatch.setattr(local, "Graphs", kept)
    for max_rows in (5, 21, 64):
        engine = make_engine(policy, max_rows=max_rows)
        for _ in range(2):
            assert_alike(*plain_and_replayed(engine, 4 * prompts, Sampling(24), n))
    assert len(made) == 6
    assert all(each.graphs for each in made)


@pytest.mark.gpu
def test_a_capture_that_fails_on_a_gpu_leaves_it_in_order(make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    policy = make_policy("llama", device="cuda")
    engine, recorded = make_engine(policy), []

    def refuse_the_second(_: Any, args: tuple[Tensor, ...]) -> None:
        if torch.cuda.is_current_stream_capturing():
            recorded.append(1)
            if len(recorded) == 2:
                args[0].sum().item()

    hook = policy.hf.base_model.layers[1].register_forward_pre_hook(refuse_the_second)
    try:
        with pytest.warns(UserWarning, match="sampling without CUDA graphs"):
            assert_alike(*plain_and_replayed(engine, 4 * prompts, Sampling(24), 1))
    finally:
        hook.remove()
    assert len(recorded) == 2
    assert torch.rand(1, device="cuda") < 1
    assert_alike(*plain_and_replayed(engine, 4 * prompts, Sampling(24), 3))
