"""What the key/value cache holds, in how much memory, and the attention that reads it."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heed.models.language_model import LanguageModel
from heed.records import Prompt, Sampling
from heed.rollout import cache, local
from heed.rollout.cache import Buffers, SlotCache, cache_bytes_per_token, parts_for, ragged_attention
from heed.rollout.local import LocalEngine
from tests.rollout.test_local import tokens

MakePolicy = Callable[..., LanguageModel]
MakeEngine = Callable[..., LocalEngine]
FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox"]


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[Buffers]:
    """What holds the keys and values of every cache made from now on."""
    made: list[Buffers] = []

    class Recorded(Buffers):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(local, "Buffers", Recorded)
    return made


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_stays_within_its_bytes(
    family: str, n: int, make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt], stored: list[Buffers]
) -> None:
    policy = make_policy(family)
    expected = tokens(make_engine(policy).generate(prompts, Sampling(10), n))
    row, used = 27 * cache_bytes_per_token(policy), []
    for budget in (row, 2 * row, 4 * row - 1, 100 * row):
        stored.clear()
        assert tokens(make_engine(policy, cache_bytes=budget).generate(prompts, Sampling(10), n)) == expected
        sizes = [sum(buffer.nbytes for buffer in buffers.keys + buffers.values) for buffers in stored]
        assert [buffers.huge_pages for buffers in stored] == [8 * size <= budget for size in sizes]
        used.append(sum(sizes))
        assert used[-1] <= budget
    if n == 1:
        assert used == [row, 2 * row, 3 * row, 6 * row]
    else:  # of 18 rows that share 6 prompts of 17 tokens
        assert used[0] == row
        assert used[-1] == (18 * 10 + 6 * 17) * cache_bytes_per_token(policy)


def test_slots_are_as_long_as_their_rows(
    policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt], stored: list[Buffers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "TOGETHER", 2)
    monkeypatch.setattr(cache, "TOGETHER_BYTES", 0)
    engine = make_engine(policy)
    engine.generate(prompts, Sampling(10))
    lengths = sorted((len(ids) + 10 for ids in engine.renderer.encode_prompts(prompts)), reverse=True)
    assert stored[0].parts == [(2, length) for length in lengths[::2]]
    room = 2 * lengths[0] + 2 * lengths[2] + lengths[4]
    for tokens_more, more in ((-1, []), (0, [(1, lengths[4])])):
        assert parts_for(policy, lengths, room + tokens_more, in_parts=True) == [(2, lengths[0]), (2, lengths[2]), *more]


def test_parts_are_larger_where_rows_hold_little(policy: LanguageModel) -> None:
    assert cache_bytes_per_token(policy) == 2 * 128
    assert parts_for(policy, [20] * 300, 10**6, in_parts=True) == [
        (cache.TOGETHER_BYTES // 128, 20),
        (300 - cache.TOGETHER_BYTES // 128, 20),
    ]


@given(data=st.data(), parts=st.lists(st.tuples(st.integers(1, 3), st.integers(2, 7)), min_size=1, max_size=3))
def test_slots_hold_what_was_stored_in_them(data: st.DataObject, parts: list[tuple[int, int]]) -> None:
    capacities = sorted((capacity for _, capacity in parts), reverse=True)
    parts = [(num_slots, capacity) for (num_slots, _), capacity in zip(parts, capacities, strict=True)]
    buffers = Buffers(parts, torch.device("cpu"))
    capacity = [each for num_slots, each in parts for _ in range(num_slots)]
    held: list[dict[int, float]] = [{} for _ in capacity]
    number = 0.0
    for _ in range(data.draw(st.integers(1, 6))):
        slots = data.draw(st.lists(st.sampled_from(range(len(capacity))), min_size=1, unique=True))
        lengths = [data.draw(st.integers(1, capacity[slot] - 1)) for slot in slots]
        if held[slots[0]] and len(slots) > 1 and slots[1] < slots[0]:
            buffers.copy(torch.tensor(slots[:1]), torch.tensor(slots[1:2]), len(held[slots[0]]))
            held[slots[1]] = dict(held[slots[0]])
            continue
        states = number + torch.arange(len(slots) * max(lengths)).view(len(slots), 1, max(lengths), 1).expand(-1, 2, -1, 3).float()
        columns = torch.arange(max(lengths))[None]  # those of shorter prompts hold padding at the end
        buffers.put(0, buffers.lines(torch.tensor(slots), columns, 2), states, -states)
        number += states.numel()
        for i, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            held[slot] = {column: float(states[i, 0, column, 0]) for column in range(length)}
    for part, first in enumerate(buffers.first_slot[:-1]):
        keys, values = buffers.part(0, part)
        assert keys.shape == (parts[part][0], 2, parts[part][1], 3)
        for slot in range(len(keys)):
            for column, value in held[first + slot].items():
                assert (keys[slot, :, column] == value).all()
                assert (values[slot, :, column] == -value).all()


@pytest.mark.parametrize("n", [1, 3])
def test_the_cache_goes_with_its_call(
    n: int, policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Buffers]] = []

    class Recorded(Buffers):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(weakref.ref(self))

    monkeypatch.setattr(local, "Buffers", Recorded)
    gc.disable()  # or what is in a cycle would go by chance
    try:
        make_engine(policy).generate(prompts, Sampling(10), n)
        assert made
        assert all(buffers() is None for buffers in made)
    finally:
        gc.enable()


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=9), together=st.integers(1, 9), group=st.sampled_from([1, 3]))
def test_attention_of_ragged_rows_is_attention(lengths: list[int], together: int, group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(len(lengths), 2 * group, 1, 8, generator=generator)
    key, value = torch.randn(2, len(lengths), 2, 20, 8, generator=generator)
    mask = torch.zeros(len(lengths), 1, 1, 20)
    for row, length in enumerate(lengths):
        mask[row, ..., length:] = -torch.inf

    class Stored:
        kernel = None

        def seen(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
            for start in range(0, len(lengths), together):
                rows = slice(start, start + together)
                width = max(lengths[rows])
                yield rows, key[rows, :, :width], value[rows, :, :width]

    newest = torch.empty(len(lengths), 2, 1, 8)
    found, none = ragged_attention(None, query, newest, newest, mask, 0.3, cast(SlotCache, Stored()))
    assert none is None
    for row, length in enumerate(lengths):
        for head in range(2 * group):
            keys, values = key[row, head // group, :length], value[row, head // group, :length]
            expected = (query[row, head] @ keys.T * 0.3).softmax(-1) @ values
            torch.testing.assert_close(found[row, :, head], expected, rtol=0, atol=1e-6)


def test_rows_read_no_columns_beyond_the_longest_of_their_part(
    policy: LanguageModel, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "TOGETHER", 2)
    monkeypatch.setattr(cache, "TOGETHER_BYTES", 0)
    monkeypatch.setattr(cache, "decode_attention", lambda: None)
    widths, seen = [], SlotCache.seen

    def spy(self: SlotCache) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for rows, keys, values in seen(self):
            assert keys.shape == values.shape
            widths.append((len(keys), keys.shape[2]))
            yield rows, keys, values

    questions = [Prompt("w5 " * length) for length in (20, 3, 18, 5)]
    engine = make_engine(policy)
    monkeypatch.setattr(SlotCache, "seen", spy)
    engine.generate(questions, Sampling(2))
    num_layers = policy.hf.config.num_hidden_layers
    lengths = [len(ids) for ids in engine.renderer.encode_prompts(questions)]
    assert widths[-2 * num_layers :] == [(2, lengths[0] + 1), (2, lengths[3] + 1)] * num_layers


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_take_memory_once_they_are_written_to(dtype: torch.dtype) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def put(width: int) -> None:
        columns = torch.ones(64, 4, width, 64, dtype=dtype)
        buffers.put(0, buffers.lines(torch.arange(64), torch.arange(width)[None], 4), columns, columns)

    buffers, before = Buffers([(64, 4096)], torch.device("cpu")), resident()
    put(1)
    keys, values = buffers.part(0, 0)
    assert keys.dtype == dtype
    # Counted, which takes no memory of its own for the heap to keep.
    assert keys[:, :, 1:].count_nonzero() == values[:, :, 1:].count_nonzero() == 0
    put(64)
    assert resident() - before < 0.1 * (keys.nbytes + values.nbytes)
    assert keys.count_nonzero() == values.count_nonzero() == 64 * 4 * 64 * 64


def test_a_system_without_huge_pages_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmap.MADV_HUGEPAGE", 9999, raising=False)  # which the kernel refuses
    buffers, ones = Buffers([(1, 8)], torch.device("cpu"), huge_pages=True), torch.ones(1, 2, 1, 4)
    buffers.put(0, buffers.lines(torch.tensor([0]), torch.tensor([[3]]), 2), ones, ones)
    assert buffers.part(0, 0)[0].sum() == 8
