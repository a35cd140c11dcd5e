"""The compiled attention is attention, reads nothing that it should not, and samples what is sampled without it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heed.models import fused
from heed.models.language_model import LanguageModel
from heed.records import Prompt, Rollout, Sampling
from heed.rollout import cache, decoding
from heed.rollout.cache import SlotCache
from heed.rollout.kernel import Attention, Prompts, Slots, decode_attention
from heed.rollout.local import LocalEngine
from heed.rollout.shared import SharedCache

needs_compiler = pytest.mark.skipif(decode_attention() is None, reason="no gcc, or PyTorch's threads are not GNU OpenMP's")


@pytest.fixture
def attend() -> Attention:
    found = decode_attention()
    assert found is not None
    return found


def slots_of(
    lengths: list[int], spare: list[int], heads: int, dim: int, generator: torch.Generator
) -> tuple[Slots, list[tuple[Tensor, Tensor]]]:
    """Slots with room to spare, which holds no number; and the keys and values in each, `[heads, length, dim]`."""
    capacity = torch.tensor([length + more for length, more in zip(lengths, spare, strict=True)])
    start = capacity.cumsum(0) - capacity
    keys, values = torch.full((2, int(capacity.sum()) * heads, dim), torch.nan)
    held = []
    for slot, length in enumerate(lengths):
        held.append(tuple(torch.randn(heads, length, dim, generator=generator) for _ in range(2)))
        for buffer, states in zip((keys, values), held[-1], strict=True):
            lines = buffer[start[slot] * heads : (start[slot] + capacity[slot]) * heads]
            lines.view(heads, -1, dim)[:, :length] = states
    return Slots(keys, values, start, capacity), held


def newest_of(slots: Slots, held: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The keys and values of each slot's last token, `[slots, heads, 1, dim]`, which are taken out of it."""
    for slot, (keys, _) in enumerate(held):
        heads, length, _ = keys.shape
        for buffer in slots.held[:2]:
            lines = buffer[int(slots.held[2][slot]) * heads :][: int(slots.held[3][slot]) * heads]
            lines.view(heads, -1, lines.shape[1])[:, length - 1] = torch.nan
    keys, values = (torch.stack([states[i][:, -1:] for states in held]) for i in range(2))
    return keys, values


def naive(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Of one token, `[dim]`, to all of a sequence."""
    return (scale * keys.double() @ query.double()).softmax(0) @ values.double()


lengths = st.one_of(st.integers(1, 9), st.integers(60, 70), st.sampled_from([127, 128, 129, 200]))


@needs_compiler
@given(
    rows=st.lists(st.tuples(lengths, st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=7),
    prompt_lengths=st.lists(lengths, min_size=3, max_size=3),
    shared=st.booleans(),
    heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 5, 70]),
    dim=st.sampled_from([1, 3, 8, 16, 20, 32, 64, 100, 128]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 9),
)
def test_it_is_attention_of_each_row_alone(
    rows: list[tuple[int, int, int]], prompt_lengths: list[int], shared: bool, heads: int, group: int, dim: int, scale: float, seed: int
) -> None:
    attend, generator = decode_attention(), torch.Generator().manual_seed(seed)
    assert attend is not None
    own, held = slots_of([length for length, _, _ in rows], [spare for _, spare, _ in rows], heads, dim, generator)
    prompt, prompts_held = slots_of(prompt_lengths, [2, 0, 1], heads, dim, generator)
    home = torch.tensor([home for _, _, home in rows])
    queries = torch.randn(len(rows), heads, group, dim, generator=generator)
    prompts = Prompts(prompt, torch.tensor(prompt_lengths), home, home.argsort()) if shared else None
    before = [buffer.clone() for buffer in own.held[:2]]
    ends = torch.tensor([length for length, _, _ in rows])
    found = attend(queries, *newest_of(own, held), own, ends, scale, prompts)
    for buffer, expected in zip(own.held[:2], before, strict=True):
        torch.testing.assert_close(buffer, expected, rtol=0, atol=0, equal_nan=True)
    tolerance = 1e-5 + 1e-6 * scale * dim  # as fp32 rounds scores
    for row in range(len(rows)):
        both = [prompts_held[int(home[row])], held[row]] if shared else [held[row]]
        for head in range(heads):
            keys, values = (torch.cat([states[i][head] for states in both]) for i in range(2))
            for i in range(group):
                expected = naive(queries[row, head, i], keys, values, scale)
                torch.testing.assert_close(found[row, head, i].double(), expected, rtol=0, atol=tolerance)


@needs_compiler
@pytest.mark.parametrize(("num_rows", "group"), [(64, 1), (65, 1), (200, 1), (40, 3), (3, 64), (3, 90)])
def test_many_rows_of_one_prompt_are_as_many_rows_of_many(attend: Attention, num_rows: int, group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    prompt, _ = slots_of([70], [0], 2, 16, generator)
    own, held = slots_of([5] * num_rows, [0] * num_rows, 2, 16, generator)
    queries = torch.randn(num_rows, 2, group, 16, generator=generator)
    rows, ends, length = torch.arange(num_rows), torch.full((num_rows,), 5), torch.tensor([70])
    newest = newest_of(own, held)
    together = attend(queries, *newest, own, ends, 0.3, Prompts(prompt, length, torch.zeros_like(rows), rows))
    copies = Slots(prompt.held[0].repeat(num_rows, 1), prompt.held[1].repeat(num_rows, 1), 70 * rows, torch.full((num_rows,), 70))
    apart = attend(queries, *newest, own, ends, 0.3, Prompts(copies, length.repeat(num_rows), rows, rows))
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)


@needs_compiler
def test_scores_far_apart_leave_no_weight_and_no_overflow(attend: Attention) -> None:
    keys = torch.tensor([[1e4], [-1e4], [1e4]] * 40)
    slots = Slots(keys, torch.arange(120.0)[:, None], torch.tensor([0]), torch.tensor([120]))
    newest = slots.held[0][-1].view(1, 1, 1, 1), slots.held[1][-1].view(1, 1, 1, 1)
    for query, expected in ((1.0, [i for i in range(120) if i % 3 != 1]), (-1.0, [i for i in range(120) if i % 3 == 1])):
        found = attend(torch.tensor([[[[query]]]]), *newest, slots, torch.tensor([120]), 1.0, None)
        assert found.item() == pytest.approx(sum(expected) / len(expected))


@needs_compiler
def test_what_is_no_number_stays_none(attend: Attention) -> None:
    keys = torch.zeros(70, 8)
    keys[66, 3] = torch.nan
    slots = Slots(keys, torch.ones(70, 8), torch.tensor([0]), torch.tensor([70]))
    ones, ends = torch.ones(1, 1, 1, 8), torch.tensor([70])
    assert attend(ones, ones, ones, slots, ends, 1.0).isnan().all()
    assert (attend(ones, ones, ones, slots, ends - 4, 1.0) == 1).all()


@needs_compiler
def test_what_it_would_misread_is_refused(attend: Attention) -> None:
    lines, whole, x = torch.zeros(10, 8), torch.tensor([5, 5]), torch.zeros(2, 1, 1, 8)
    slots, short = (Slots(keys, keys, torch.tensor([0, 5]), whole) for keys in (lines, torch.zeros(10, 4)))
    wrong: list[Callable[[], object]] = [
        lambda: attend(x.double(), x, x, slots, whole, 1.0),
        lambda: attend(x, x.bfloat16(), x, slots, whole, 1.0),
        lambda: attend(x, x[..., :4], x, slots, whole, 1.0),
        lambda: attend(x, x, x[:1], slots, whole, 1.0),
        lambda: attend(x, x, x, slots, whole.int(), 1.0),
        lambda: attend(x, x, x, slots, whole[:1].expand(2), 1.0),
        lambda: attend(x, x, x, slots, whole[:1], 1.0),
        lambda: attend(x, x, x, slots, whole, 1.0, Prompts(slots, whole, whole, whole[:1])),
        lambda: attend(x, x, x, short, whole, 1.0),
        lambda: attend(x, x, x, Slots(lines, torch.zeros(10, 4), whole, whole), whole, 1.0),
        lambda: attend(x, x, x, slots, whole, 1.0, Prompts(short, whole, whole, whole)),
        lambda: Slots(lines.bfloat16(), lines, whole, whole),
        lambda: Slots(lines.to("meta"), lines, whole, whole),
    ]
    for each in wrong:
        with pytest.raises(ValueError, match=r"side by side|different sizes"):
            each()
    for ends in ([5, 0], [6, 5]):
        with pytest.raises(RuntimeError, match="no room in its slot"):
            attend(x, x, x, slots, torch.tensor(ends), 1.0)
    apart = torch.randn(2, 1, 1, 9)[..., :8]
    found = attend(apart, apart, apart, slots, torch.tensor([1, 1]), 1.0)
    torch.testing.assert_close(found, apart)
    assert torch.equal(lines[[0, 5]], apart[:, 0, 0])


def tokens(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.response_ids for rollout in rollouts]


@needs_compiler
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "mistral"])
@pytest.mark.parametrize("n", [1, 3])
def test_rows_sampled_with_it_equal_rows_sampled_without(
    n: int,
    family: str,
    make_policy: Callable[[str], LanguageModel],
    make_engine: Callable[..., LocalEngine],
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_policy(family)
    monkeypatch.setattr(policy, "eos_ids", tuple(range(2, 9)))  # rows end at different times
    calls: list[bool] = []
    attend = decode_attention()
    assert attend is not None

    def counted(*arguments: Any) -> Tensor:
        calls.append(len(arguments) == 7)
        return attend(*arguments)

    for max_rows in (3, 64):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(cache, "decode_attention", lambda: counted)
            compiled = make_engine(policy, max_rows=max_rows).generate(2 * prompts, Sampling(24, seed=3), n)
        assert calls
        assert calls[-1] == (n > 1)
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(cache, "decode_attention", lambda: None)
            patch.setattr(decoding, "kernels", lambda: None)
            written_out = make_engine(policy, max_rows=max_rows).generate(2 * prompts, Sampling(24, seed=3), n)
        assert not calls
        assert tokens(compiled) == tokens(written_out)
        for a, b in zip(compiled, written_out, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_it_is_for_fp32_on_a_cpu_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "decode_attention", lambda: "kernel")

    def chosen(device: str, dtype: torch.dtype, *, graphs: bool = False) -> list[object]:
        policy = SimpleNamespace(device=torch.device(device), head=lambda: (torch.empty(1, 1, dtype=dtype, device=device), None))
        rows = cache.Buffers([(1, 4)], policy.device)
        in_parts = SlotCache(cast(LanguageModel, policy), rows, in_parts=True, graphs=graphs)
        return [in_parts.kernel, SharedCache(cast(LanguageModel, policy), rows, rows, graphs=graphs).kernel]

    assert chosen("cpu", torch.float32) == ["kernel", "kernel"]
    assert chosen("cpu", torch.float32, graphs=True) == [None, None]
    assert chosen("cpu", torch.bfloat16) == [None, None]
    assert chosen("meta", torch.float32) == [None, None]


@needs_compiler
def test_decoding_norms_by_kernels_where_there_are_some(
    make_policy: Callable[[str], LanguageModel],
    make_engine: Callable[..., LocalEngine],
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, calls = make_policy("llama"), []
    norm = fused.rms_norm

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return norm(*arguments)

    assert policy.backbone.shares_prompts
    monkeypatch.setattr(fused, "rms_norm", counted)
    engine = make_engine(policy)
    engine.generate(prompts, Sampling(3))
    per_forward = 2 * policy.hf.config.num_hidden_layers + 1
    assert calls
    assert len(calls) % per_forward == 0
    calls.clear()
    monkeypatch.setattr(decoding, "kernels", lambda: None)
    engine.generate(prompts, Sampling(3))
    assert not calls
