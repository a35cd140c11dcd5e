"""Rules of sampling, stop strings, requests' seeds, memory and long prompts through the whole engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from heed.errors import UserError
from heed.models.attention import attending, is_replaceable
from heed.models.language_model import LanguageModel
from heed.records import Prompt, Rollout, Sampling
from heed.rollout import cache, decoding, local
from heed.rollout.cache import SlotCache, cache_bytes_per_token
from heed.rollout.local import LocalEngine
from heed.rollout.shared import SHARED_PROMPTS
from tests.rollout.test_local import forwards, hf_greedy, tokens
from tests.rollout.test_sampling import naive_distribution

MakePolicy = Callable[..., LanguageModel]
MakeEngine = Callable[..., LocalEngine]
FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox"]
BENT = Sampling(24, temperature=0.8, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.4)


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
            patch.setattr(local, "replaces_attention", lambda _: False)
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
    monkeypatch.setattr(cache, "TOGETHER_BYTES", 0)
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
            patch.setattr(local, "attends_in_parts", lambda _: False)
            masked = make_engine(policy, max_rows=max_rows).generate(2 * prompts, sampling)
        assert not calls
        assert tokens(in_parts) == tokens(masked)
        for a, b in zip(in_parts, masked, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


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
