"""Rules of sampling, stop strings, requests' seeds, memory and long prompts through the whole engine."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heed.errors import UserError
from heed.models.attention import attending, is_replaceable
from heed.models.language_model import LanguageModel
from heed.records import Prompt, Rollout, Sampling
from heed.rollout import cache, decoding, local
from heed.rollout.cache import Buffers, SlotCache, parts_for, ragged_attention
from heed.rollout.local import LocalEngine, cache_bytes_per_token
from heed.rollout.shared import SHARED_PROMPTS
from tests.rollout.test_local import hf_greedy, tokens
from tests.rollout.test_sampling import naive_distribution

MakePolicy = Callable[..., LanguageModel]
MakeEngine = Callable[..., LocalEngine]
FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox"]
BENT = Sampling(24, temperature=0.8, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.4)


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


@pytest.fixture
def ragged(policy: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """A policy whose responses have many lengths, so that slots are freed and refilled all the time."""
    monkeypatch.setattr(policy, "eos_ids", tuple(range(2, 9)))
    return policy


def distributions(policy: LanguageModel, rollout: Rollout, sampling: Sampling) -> Tensor:
    """What each token of a response was drawn from, by one forward and plain Python."""
    with torch.no_grad():
        logits = policy.hf(torch.tensor([rollout.prompt_ids + rollout.response_ids])).logits[0].double().tolist()
    first = len(rollout.prompt_ids)
    ids = rollout.prompt_ids + rollout.response_ids
    return torch.tensor([naive_distribution(logits[i - 1], sampling, set(ids[:i])) for i in range(first, len(ids))])


def forwards(policy: LanguageModel, run: Callable[[], object]) -> list[tuple[int, int]]:
    """Rows and columns of each forward of the policy's body."""
    shapes: list[tuple[int, int]] = []
    hook = policy.hf.base_model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    try:
        run()
    finally:
        hook.remove()
    return shapes


@pytest.mark.parametrize("sampling", [BENT, replace(BENT, top_p=1.0, min_p=0.2), Sampling(24, min_p=0.1)])
def test_logprobs_are_those_of_the_distribution_drawn_from(
    sampling: Sampling, ragged: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    rollouts = make_engine(ragged, max_rows=5).generate(prompts, sampling, n=3)
    assert len({len(r.response_ids) for r in rollouts}) > 3
    for rollout in rollouts:
        drawn = distributions(ragged, rollout, sampling)[range(len(rollout.response_ids)), rollout.response_ids]
        torch.testing.assert_close(torch.tensor(rollout.logprobs), drawn.log(), atol=1e-4, rtol=0)


def test_a_penalised_greedy_answer_equals_transformers(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    sampling = Sampling(24, temperature=0, repetition_penalty=1.8)
    rollouts = make_engine(policy, max_rows=2).generate(prompts, sampling)
    assert tokens(rollouts) == [hf_greedy(policy, r.prompt_ids, 24, repetition_penalty=1.8) for r in rollouts]
    assert tokens(rollouts) != tokens(make_engine(policy).generate(prompts, replace(sampling, repetition_penalty=1.0)))


@pytest.mark.parametrize("sampling", [Sampling(20, top_logprobs=5), replace(BENT, top_k=3, top_logprobs=5)])
def test_the_likeliest_tokens_are_reported(
    sampling: Sampling, ragged: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    for rollout in make_engine(ragged, max_rows=5).generate(prompts, sampling, n=2):
        expected = distributions(ragged, rollout, sampling)
        assert len(rollout.top_logprobs) == len(rollout.response_ids)
        for place, row in zip(rollout.top_logprobs, expected, strict=True):
            top = row.topk(min(5, int((row > 0).sum())))
            assert [token for token, _ in place] == top.indices.tolist()
            torch.testing.assert_close(torch.tensor([p for _, p in place]), top.values.log(), atol=1e-4, rtol=0)


def test_nothing_is_reported_unasked(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    assert all(rollout.top_logprobs == () for rollout in make_engine(policy).generate(prompts, Sampling(3)))


def test_a_seeded_request_is_answered_alike_in_every_call(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    sampling, engine = Sampling(20, seed=11), make_engine(policy)
    alone = tokens(engine.generate(prompts[1:2], sampling, n=2))
    assert alone[0] != alone[1]
    assert engine.state() == make_engine(policy).state(), "the engine's own streams go on as if nothing had been asked"
    engine.generate(prompts, Sampling(5))
    assert tokens(engine.generate(prompts, sampling, n=3))[3:5] == alone
    assert tokens(make_engine(policy, seed=9, max_rows=2).generate(prompts[::-1], sampling, n=2))[8:10] == alone
    assert tokens(engine.generate(prompts[1:2], replace(sampling, seed=12), n=2)) != alone
    assert "".join(engine.stream(prompts[1], sampling)) == engine.generate(prompts[1:2], sampling)[0].text


def first_end(ids: Sequence[int], decode: Callable[[Sequence[int]], str], stop: tuple[str, ...]) -> int:
    return next((i for i in range(1, len(ids) + 1) if any(text in decode(ids[:i]) for text in stop)), len(ids))


def test_a_stop_string_ends_a_response(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    engine, sampling = make_engine(policy, max_rows=4), Sampling(20, seed=1)
    free = engine.generate(prompts, sampling, n=3)
    # The middle of one response, from within a word to within another, and a whole word of another response.
    stop = (free[0].text[len(free[0].text) // 2 :][:6], free[4].text.split()[9] + " ")
    assert " " in stop[0].strip()
    stopped = engine.generate(prompts, replace(sampling, stop=stop), n=3)
    for before, after in zip(free, stopped, strict=True):
        length = first_end(before.response_ids, engine.renderer.decode, stop)
        assert after.response_ids == before.response_ids[:length]
        assert after.logprobs == pytest.approx(before.logprobs[:length], abs=1e-5)
        found = [before.text.find(text) for text in stop if text in engine.renderer.decode(before.response_ids[:length])]
        assert after.text == (before.text[: min(found)] if found else before.text)
        assert after.finish_reason == ("stop" if found else before.finish_reason)
        assert (
            "".join(make_engine(policy).stream(before.prompt, replace(sampling, stop=stop))) == stopped[stopped.index(after) // 3 * 3].text
        )
    assert ["".join(engine.stream(p, replace(sampling, stop=stop))) for p in prompts] == [r.text for r in stopped[::3]]
    assert sum(a.finish_reason == "stop" for a in stopped) > sum(b.finish_reason == "stop" for b in free)


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
    engine = make_engine(policy)
    engine.generate(prompts, Sampling(10))
    lengths = sorted((len(ids) + 10 for ids in engine.renderer.encode_prompts(prompts)), reverse=True)
    assert stored[0].parts == [(2, length) for length in lengths[::2]]
    room = 2 * lengths[0] + 2 * lengths[2] + lengths[4]
    for tokens_more, more in ((-1, []), (0, [(1, lengths[4])])):
        assert parts_for(policy, lengths, room + tokens_more) == [(2, lengths[0]), (2, lengths[2]), *more]


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
    if not buffers.keys:
        return
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


def test_a_request_that_cannot_fit_is_refused(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    needed = 27 * cache_bytes_per_token(policy)
    engine = make_engine(policy, cache_bytes=needed - 1)
    for answer in (lambda: engine.generate(prompts, Sampling(10)), lambda: engine.stream(prompts[1], Sampling(10))):
        with pytest.raises(UserError, match=f"27 tokens need {needed:,} bytes.*at most the {needed - 1:,} of cache_bytes"):
            answer()
    assert len(engine.generate(prompts[:1], Sampling(10))) == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 4, 7])
def test_prompts_read_in_chunks_are_answered_alike(
    family: str, size: int, make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(family)
    whole = make_engine(policy).generate(prompts, Sampling(10, temperature=0), n=2)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", size)
    engine = make_engine(policy, max_rows=4)
    chunked = engine.generate(prompts, Sampling(10, temperature=0), n=2)
    assert tokens(chunked) == tokens(whole)
    for a, b in zip(chunked, whole, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    text = "".join(engine.stream(prompts[1], Sampling(10, temperature=0)))
    assert text == whole[2].text


def test_rows_in_flight_go_on_while_a_long_prompt_is_read(
    ragged: LanguageModel, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 8)
    questions = [Prompt(f"w{i} " * 33) for i in range(20, 32)]
    shapes = forwards(ragged, lambda: make_engine(ragged, max_rows=4).generate(questions, Sampling(14)))
    chunks = [i for i, (_, width) in enumerate(shapes) if width > 1]
    assert sum(shapes[i][1] for i in chunks) == 32 * 12  # and a last column each
    # Between two chunks of the prompts that came later, when at least half of the slots were in flight:
    between = [shapes[a + 1] for a, b in pairwise(chunks[8:]) if b == a + 2]
    assert [shape for shape in between if shape in ((2, 1), (3, 1))]
    in_flight = 0
    for (rows, width), (_, following) in pairwise(shapes[chunks[8] :]):
        in_flight = rows if width == 1 and rows > 1 else in_flight
        assert not (width > 1 and following > 1 and in_flight > 2)


def test_short_prompts_are_read_together(policy: LanguageModel, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 12)
    shapes = forwards(policy, lambda: make_engine(policy).generate([Prompt("w5 w6 w7 w8")] * 6, Sampling(1)))
    assert shapes == [(3, 4), (3, 4)]


@pytest.mark.parametrize("chunk", [1024, 3])
def test_samples_that_share_a_prompt_equal_samples_that_do_not(
    chunk: int, ragged: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", chunk)
    sampling = Sampling(24, seed=3)
    # Prompts are split; refilled; all in flight; wait for a slot while stragglers hold them, though rows are free.
    for max_rows, n in ((3, 4), (7, 4), (64, 4), (24, 12)):
        together = make_engine(ragged, max_rows=max_rows).generate(2 * prompts, sampling, n)
        with monkeypatch.context() as patch:
            patch.setattr(local, "is_replaceable", lambda _: False)
            apart = make_engine(ragged, max_rows=max_rows).generate(2 * prompts, sampling, n)
        assert tokens(together) == tokens(apart)
        for a, b in zip(together, apart, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("together", "chunk"), [(1, 1024), (2, 1024), (2, 3), (64, 1024)])
def test_rows_that_attend_in_parts_equal_rows_under_one_mask(
    family: str,
    together: int,
    chunk: int,
    make_policy: MakePolicy,
    make_engine: MakeEngine,
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_policy(family)
    monkeypatch.setattr(policy, "eos_ids", tuple(range(2, 9)))
    monkeypatch.setattr(cache, "TOGETHER", together)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", chunk)
    sampling = Sampling(24, seed=3)
    calls: list[int] = []
    options = SlotCache.options

    def counted(self: SlotCache) -> dict[str, Any]:
        found = options(self)
        calls.extend(len(each.rows.parts) for each in found.values())
        return found

    monkeypatch.setattr(SlotCache, "options", counted)
    for max_rows in (3, 64):
        in_parts = make_engine(policy, max_rows=max_rows).generate(2 * prompts, sampling)
        assert (max(calls) > 1) == (together < 3)
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(cache, "is_replaceable", lambda _: False)
            masked = make_engine(policy, max_rows=max_rows).generate(2 * prompts, sampling)
        assert not calls
        assert tokens(in_parts) == tokens(masked)
        for a, b in zip(in_parts, masked, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=9), together=st.integers(1, 9), group=st.sampled_from([1, 3]))
def test_attention_of_ragged_rows_is_attention(lengths: list[int], together: int, group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(len(lengths), 2 * group, 1, 8, generator=generator)
    key, value = torch.randn(2, len(lengths), 2, 20, 8, generator=generator)
    mask = torch.zeros(len(lengths), 1, 1, 20)
    for row, length in enumerate(lengths):
        mask[row, ..., length:] = -torch.inf

    class Stored:
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
    assert not keys[:, :, 1:].any()
    assert not values[:, :, 1:].any()
    put(64)
    assert resident() - before < 0.1 * (keys.nbytes + values.nbytes)
    assert keys.sum() == values.sum() == 64 * 4 * 64 * 64


def test_the_models_own_attention_is_put_back(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    config = policy.hf.config
    expected = tokens(make_engine(policy).generate(prompts, Sampling(6), n=2))
    assert config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError, match="cut short"), attending(config, SHARED_PROMPTS):
        raise RuntimeError("cut short")
    assert config._attn_implementation == "sdpa"
    policy.hf.set_attn_implementation("eager")
    try:
        assert not is_replaceable(policy.hf.base_model)
        assert tokens(make_engine(policy).generate(prompts, Sampling(6), n=2)) == expected
        assert config._attn_implementation == "eager"
    finally:
        policy.hf.set_attn_implementation("sdpa")
