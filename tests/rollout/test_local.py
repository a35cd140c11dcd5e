"""The engine against transformers' own generation, exact probabilities, and itself in other batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from heed.errors import UserError
from heed.models.backbone import LoRAConfig
from heed.models.batch import collate
from heed.models.language_model import LanguageModel
from heed.models.loading import load_policy
from heed.records import Prompt, Rollout, Sampling, TokenSequence
from heed.rollout import decoding
from heed.rollout.local import LocalEngine
from heed.rollout.trial import replaces_attention, takes_cache

MakePolicy = Callable[..., LanguageModel]
MakeEngine = Callable[..., LocalEngine]


def tokens(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.response_ids for rollout in rollouts]


def forwards(policy: LanguageModel, run: Callable[[], object]) -> list[tuple[int, int]]:
    """Rows and columns of each forward of the policy's body, but for those by which it is tried out."""
    assert takes_cache(policy)
    assert replaces_attention(policy)
    shapes: list[tuple[int, int]] = []
    hook = policy.hf.base_model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    try:
        run()
    finally:
        hook.remove()
    return shapes


def hf_greedy(policy: LanguageModel, prompt_ids: tuple[int, ...], max_new_tokens: int, **changes: Any) -> tuple[int, ...]:
    ids = policy.hf.generate(
        torch.tensor([prompt_ids]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(policy.eos_ids),
        pad_token_id=policy.pad_id,
        **changes,
    )
    return tuple(ids[0, len(prompt_ids) :].tolist())


def recomputed_logprobs(policy: LanguageModel, rollouts: list[Rollout], temperature: float = 1.0) -> list[torch.Tensor]:
    with torch.no_grad():
        batch = collate([rollout.sequence() for rollout in rollouts], policy.pad_id)
        logprobs, _ = policy.logprobs(batch, temperature=temperature)
    return [row[mask] for row, mask in zip(logprobs, batch.response_mask, strict=True)]


def test_rows_of_longrope_do_not_change_each_other(make_policy: MakePolicy, make_engine: MakeEngine) -> None:
    """Its angles are others once one row of a batch is longer than in the first training, which is where rows end."""
    engine, sampling = make_engine(make_policy("longrope")), Sampling(24, seed=1)
    short, long = Prompt("w5 w6 w7"), Prompt(" ".join(f"w{i}" for i in range(5, 27)))
    (alone,), (beside, other) = engine.generate([short], sampling), engine.generate([short, long], sampling)
    assert alone.response_ids == beside.response_ids
    assert alone.logprobs == pytest.approx(beside.logprobs, abs=1e-4)
    assert len(other.sequence().ids) <= 30


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "mistral"])
class TestFamilies:
    def test_greedy_equals_transformers(
        self, family: str, make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        policy = make_policy(family)
        free = make_engine(policy).generate(prompts, Sampling(16, temperature=0))
        # Tokens that end some of the responses, each after another number of steps.
        monkeypatch.setattr(policy, "eos_ids", (2, free[1].response_ids[5], free[3].response_ids[9]))
        rollouts = make_engine(policy).generate(prompts, Sampling(16, temperature=0))
        assert tokens(rollouts) == [hf_greedy(policy, r.prompt_ids, 16) for r in rollouts]
        assert len({len(r.response_ids) for r in rollouts}) > 1

    def test_logprobs_are_the_policys(self, family: str, make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
        policy = make_policy(family)
        rollouts = make_engine(policy, max_rows=5).generate(prompts, Sampling(12, temperature=0.7), n=2)
        for rollout, expected in zip(rollouts, recomputed_logprobs(policy, rollouts, 0.7), strict=True):
            torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, atol=1e-4, rtol=0)


def test_the_policys_own_adapter_samples(make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    policy = make_policy("llama", lora=LoRAConfig(rank=4, dropout=0.5))
    untrained = tokens(make_engine(policy).generate(prompts, Sampling(12)))
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    batch = collate([TokenSequence((1, 5, 6), (False, False, True))], policy.pad_id)
    policy.logprobs(batch)[0].sum().backward()  # an update, with dropout, before the samples; and one after them
    rollouts = make_engine(policy).generate(prompts, Sampling(12))
    policy.logprobs(batch)[0].sum().backward()
    assert tokens(rollouts) != untrained
    for rollout, expected in zip(rollouts, recomputed_logprobs(policy, rollouts), strict=True):
        torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, atol=1e-4, rtol=0)


def test_a_real_model_tells_its_story_to_the_end(stories260k: Path, make_engine: MakeEngine) -> None:
    policy = load_policy(stories260k, device="cpu")
    starts = [Prompt("Once upon a time"), Prompt("The little dog"), Prompt("")]
    rollouts = make_engine(policy).generate(starts, Sampling(300, temperature=0))
    assert tokens(rollouts) == [hf_greedy(policy, r.prompt_ids, 300) for r in rollouts]
    ended = [r for r in rollouts if r.finish_reason == "stop"]
    assert ended
    assert all(r.response_ids[-1] == 1 and 1 not in r.response_ids[:-1] for r in ended)
    assert rollouts[0].text.startswith(", there was a")
    sampled = make_engine(policy).generate(starts, Sampling(100), n=4)
    for rollout, expected in zip(sampled, recomputed_logprobs(policy, sampled), strict=True):
        torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("sampling", "num_outcomes"), [(Sampling(2), 57), (Sampling(2, temperature=0.6, top_k=4), None)])
def test_two_tokens_come_as_often_as_the_softmax_says(
    sampling: Sampling, num_outcomes: int | None, make_policy: MakePolicy, make_engine: MakeEngine
) -> None:
    policy = make_policy("llama", vocab_size=8, initializer_range=0.12)
    num_samples = 20_000
    rollouts = make_engine(policy, seed=3).generate([Prompt("w3 w4")], sampling, num_samples)
    found = Counter(tokens(rollouts))

    def next_token(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = policy.hf(torch.tensor([ids])).logits[0, -1].double() / sampling.temperature
        kept = logits.sort(descending=True).indices[: sampling.top_k or 8]
        return torch.zeros(8, dtype=torch.double).scatter(0, kept, logits[kept].softmax(0))

    prompt_ids = list(rollouts[0].prompt_ids)
    first = next_token(prompt_ids)
    exact: dict[tuple[int, ...], float] = {
        (a, *b): float(first[a] * second)
        for a in range(8)
        for b, second in ([((), 1.0)] if a == 2 else [((i,), p) for i, p in enumerate(next_token([*prompt_ids, a]))])
        if first[a] * second > 0
    }
    assert found.keys() <= exact.keys()
    assert num_outcomes in (None, len(exact))
    chi_square = sum((found[outcome] - num_samples * p) ** 2 / (num_samples * p) for outcome, p in exact.items())
    degrees = len(exact) - 1
    # Mean and standard deviation of chi-square are k and sqrt(2k); four deviations is one seed in thousands.
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5
    rollout = max(rollouts, key=lambda r: len(r.response_ids))
    assert sum(rollout.logprobs) == pytest.approx(torch.tensor(exact[rollout.response_ids]).log().item(), abs=1e-4)


def test_tokens_do_not_depend_on_the_batch(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    sampling = Sampling(20)
    together = tokens(make_engine(policy).generate(prompts, sampling, n=3))
    for max_rows in (1, 2, 4, 7, 64):
        assert tokens(make_engine(policy, max_rows=max_rows).generate(prompts, sampling, n=3)) == together
    others = [Prompt("w9 " * length) for length in (2, 30, 1, 1)]
    assert tokens(make_engine(policy).generate([*prompts[:2], *others], sampling, n=3))[:6] == together[:6]
    assert tokens(make_engine(policy).generate(prompts[:1], sampling, n=3)) == together[:3]


def test_greedy_answers_follow_their_prompts(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    engine, sampling = make_engine(policy, max_rows=3), Sampling(20, temperature=0)
    answers = tokens(engine.generate(prompts, sampling))
    assert tokens(engine.generate(prompts[::-1], sampling)) == answers[::-1]


def test_samples_of_a_prompt_are_adjacent_and_differ(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    rollouts = make_engine(policy).generate(prompts, Sampling(20), n=4)
    assert [r.prompt for r in rollouts] == [prompt for prompt in prompts for _ in range(4)]
    for i in range(len(prompts)):
        assert len(set(tokens(rollouts[4 * i : 4 * i + 4]))) == 4


def test_each_prompt_is_read_once_and_finished_rows_never(
    policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "eos_ids", tuple(range(2, 12)))  # responses of many lengths
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 20)
    rollouts: list[Rollout] = []
    batches = forwards(policy, lambda: rollouts.extend(make_engine(policy, max_rows=8).generate(prompts, Sampling(30), n=4)))
    # A prompt of one word is a forward of one column too; it comes last, alone, being the shortest.
    read = [shape for shape in batches if shape[1] > 1]
    assert sum(rows for rows, _ in read) == len(prompts) - 1
    assert all(rows == 1 or rows * width <= 20 for rows, width in read)
    decoded = sum(rows for rows, width in batches if width == 1) - 1
    assert decoded == sum(len(r.response_ids) - 1 for r in rollouts)
    assert max(rows for rows, width in batches if width == 1) == 8


def test_a_resumed_engine_goes_on_bit_for_bit(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    engine = make_engine(policy, seed=5)
    first = engine.generate(prompts, Sampling(12))
    state = engine.state()
    second = engine.generate(prompts, Sampling(12))
    assert tokens(first) != tokens(second)
    resumed = make_engine(policy, seed=0)
    resumed.load_state(state)
    assert resumed.generate(prompts, Sampling(12)) == second
    assert tokens(make_engine(policy, seed=6).generate(prompts, Sampling(12))) != tokens(first)


def test_rollouts_say_how_they_ended_and_by_which_weights(
    policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "eos_ids", (2, 20, 21, 22, 23, 24))
    monkeypatch.setattr(policy, "version", 7)
    rollouts = make_engine(policy).generate(prompts, Sampling(20), n=4)
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for r in rollouts:
        assert r.weight_version == 7
        assert len(r.logprobs) == len(r.response_ids)
        assert not set(r.response_ids[:-1]) & set(policy.eos_ids)
        assert (r.response_ids[-1] in policy.eos_ids) == (r.finish_reason == "stop")
        assert r.finish_reason == "stop" or len(r.response_ids) == 20
        ended = r.finish_reason == "stop"
        assert r.text.split() == [f"w{i}" for i in (r.response_ids[:-1] if ended else r.response_ids) if i > 2]


def test_the_context_ends_a_response(policy: LanguageModel, make_engine: MakeEngine) -> None:
    rollouts = make_engine(policy).generate([Prompt("w5 " * 40), Prompt("w5")], Sampling(30, temperature=0))
    assert [len(r.response_ids) for r in rollouts] == [8, 30]
    assert rollouts[0].finish_reason == "length"
    assert tokens(rollouts)[0] == hf_greedy(policy, rollouts[0].prompt_ids, 8)


def test_a_prompt_as_long_as_the_context_cannot_be_answered(policy: LanguageModel, make_engine: MakeEngine) -> None:
    for answer in (make_engine(policy).generate, lambda prompts, sampling: make_engine(policy).stream(prompts[0], sampling)):
        with pytest.raises(UserError, match="48 tokens"):
            answer([Prompt("w5 " * 48)], Sampling(4))


def test_an_attention_window_bounds_the_context(make_policy: MakePolicy, make_engine: MakeEngine) -> None:
    policy = make_policy("mistral", sliding_window=16)
    (rollout,) = make_engine(policy).generate([Prompt("w5 " * 10)], Sampling(30, temperature=0))
    assert tokens([rollout])[0] == hf_greedy(policy, rollout.prompt_ids, 6)


def test_a_model_without_position_ids_is_refused(make_policy: MakePolicy, make_engine: MakeEngine) -> None:
    with pytest.raises(UserError, match="cannot sample from BloomModel"):
        make_engine(make_policy("bloom"))


def test_a_broken_policy_is_reported(make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    policy = make_policy("llama", vocab_size=101)
    with torch.no_grad():
        policy.head()[0].fill_(torch.nan)
    streamed: list[str] = []
    with pytest.raises(UserError, match="not finite"):
        for piece in make_engine(policy).stream(prompts[0], Sampling(8)):
            streamed.append(piece)
    assert not streamed
    with pytest.raises(UserError, match="not finite"):
        make_engine(policy).generate(prompts, Sampling(4))


def test_a_stream_is_the_response_in_pieces(policy: LanguageModel, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    (rollout,) = make_engine(policy).generate(prompts[:1], Sampling(15))
    pieces = list(make_engine(policy).stream(prompts[0], Sampling(15)))
    assert "".join(pieces) == rollout.text
    assert len(pieces) > 10
