from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heed.errors import UserError
from heed.evaluation import GradedResponse, best_of_n, evaluate_policy, grade, kl_to_reference, summarise, win_rate
from heed.evaluation.policies import distinct, first_of_each
from heed.models.language_model import LanguageModel
from heed.records import Prompt, Rollout, Sampling

Make = Callable[..., GradedResponse]


def rollout(prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], text: str = "w3 w4", prompt: str = "w3") -> Rollout:
    return Rollout(
        Prompt(prompt), prompt_ids, response_ids, (0.0,) * len(response_ids), text, "stop" if response_ids[-1] == 2 else "length"
    )


@pytest.fixture
def rollouts() -> list[Rollout]:
    return [rollout((1, 5), (6, 7, 2)), rollout((1, 8, 9, 10), (11,)), rollout((1,), (4, 4, 4, 4, 5, 6))]


@torch.no_grad()
def naive_kl(item: Rollout, policy: LanguageModel, reference: LanguageModel) -> tuple[float, float]:
    """One sequence at a time, one token at a time, over the models' own logits."""
    ids = torch.tensor([item.prompt_ids + item.response_ids])
    log_p, log_q = (m.model(input_ids=ids).logits[0].log_softmax(-1) for m in (policy, reference))
    exact = k1 = 0.0
    for place in range(len(item.prompt_ids), ids.shape[1]):
        p, q, token = log_p[place - 1], log_q[place - 1], ids[0, place]
        exact += float((p.exp() * (p - q)).sum())
        k1 += float(p[token] - q[token])
    return exact, k1


@pytest.mark.parametrize("max_tokens", [1, 8192])
def test_kl_equals_the_sum_over_tokens_and_vocabulary(
    make_policy: Callable[[int], LanguageModel], rollouts: list[Rollout], max_tokens: int
) -> None:
    policy, reference = make_policy(0), make_policy(1)
    exact, k1 = kl_to_reference(rollouts, policy, reference, max_tokens)
    for i, item in enumerate(rollouts):
        assert (exact[i].item(), k1[i].item()) == pytest.approx(naive_kl(item, policy, reference), rel=1e-4)
    assert exact.min() > 0.01


def test_kl_to_itself_is_zero(make_policy: Callable[[int], LanguageModel], rollouts: list[Rollout]) -> None:
    policy = make_policy(0)
    exact, k1 = kl_to_reference(rollouts, policy, policy.reference())
    assert exact.abs().max() < 1e-5
    assert k1.abs().max() < 1e-5


def test_evaluate_policy_measures_what_the_engine_samples(make_policy: Callable[[int], LanguageModel], rollouts: list[Rollout]) -> None:
    asked: list[tuple[int, Sampling]] = []

    class Engine:
        def generate(self, prompts: object, sampling: Sampling, n: int = 1) -> list[Rollout]:
            asked.append((n, sampling))
            return rollouts

    def gold(prompt: Prompt, response: str) -> dict[str, float]:
        return {"utility": 2.0, "helpful": 1.0, "length": 7.0}

    sampling = Sampling(max_new_tokens=6)
    reward = lambda items: torch.arange(len(items), dtype=torch.float32)  # noqa: E731
    policy, reference = make_policy(0), make_policy(1)
    found, responses = evaluate_policy("sft", policy, Engine(), reference, [Prompt("w3")], gold, 3, sampling, reward=reward)
    assert asked == [(3, sampling)]
    assert [r.proxy for r in responses] == [0, 1, 2]
    assert [r.policy for r in responses] == ["sft"] * 3
    assert found.mean_length == pytest.approx(10 / 3)
    assert found.eos_rate == pytest.approx(1 / 3)
    assert set(found.rates) == {"helpful"}, "an amount is no rate"
    assert found.kl_to_reference == pytest.approx(sum(naive_kl(r, policy, reference)[0] for r in rollouts) / 3, rel=1e-4)


def test_without_a_true_preference_the_rest_is_still_measured(rollouts: list[Rollout]) -> None:
    found = summarise(grade("sft", rollouts, None, [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]))
    assert found.gold_reward is None
    assert found.kl_to_reference == 2
    assert found.to_dict()["gold_reward"] is None


@pytest.mark.parametrize("answer", [{}, {"utility": 1.0, "helpful": 1.5}])
def test_a_gold_function_must_give_utility_and_shares(rollouts: list[Rollout], answer: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"utility|helpful"):
        grade("sft", rollouts, lambda prompt, response: answer, [0.0] * 3, [0.0] * 3)


def test_attributes_count_where_they_apply(graded: Make) -> None:
    responses = [
        graded("a", 1.0, kind="dangerous", attributes={"harmful": 1.0, "rude": 0.0}),
        graded("b", 0.0, kind="dangerous", attributes={"harmful": 0.0, "rude": 0.0}),
        graded("c", 2.0, kind="answerable", attributes={"helpful": 1.0, "rude": 1.0}),
        graded("d", 2.0, kind="answerable", attributes={"helpful": 1.0, "rude": 0.0}),
    ]
    found = summarise(responses)
    assert {name: rate.mean for name, rate in found.rates.items()} == {"harmful": 0.5, "helpful": 1.0, "rude": 0.25}
    assert set(found.by_kind) == {"dangerous", "answerable"}
    assert set(found.by_kind["answerable"].rates) == {"helpful", "rude"}
    assert found.by_kind["dangerous"].gold_reward is not None
    assert found.by_kind["dangerous"].gold_reward.mean == 0.5


def test_entry_has_the_keys_of_the_summary(graded: Make) -> None:
    attributes = {"helpful": 1.0, "harmful": 0.0, "fabrication": 0.0, "rude": 0.0}
    entry = summarise([graded("a", 1.0, attributes=attributes), graded("b", 3.0, attributes=attributes)]).to_dict()
    assert entry["gold_reward"] == {"mean": 2.0, "ci95": [1.0, 3.0]}
    for key in ("helpful_rate", "harmful_rate", "fabrication_rate", "rude_rate", "kl_to_reference", "mean_length", "eos_rate"):
        assert isinstance(entry[key], float), key
    assert len(entry["helpful_ci95"]) == 2  # pyright: ignore[reportArgumentType]


def test_distinct_counts_words_among_one_response_per_prompt(graded: Make) -> None:
    once = [graded("p", text="the cat sat"), graded("q", text="the cat ran")]
    assert distinct(once, 1) == pytest.approx(4 / 6)
    assert distinct(once, 2) == pytest.approx(3 / 4)
    assert distinct(once * 5, 2) == pytest.approx(3 / 4), "more responses to each prompt must not look like less variety"
    assert distinct([graded("p", text="")], 2) == 0


UTILITIES = st.lists(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=4), min_size=2, max_size=6)


@given(UTILITIES, st.data())
def test_win_rates_of_two_policies_mirror_each_other(ours: list[list[float]], data: st.DataObject) -> None:
    theirs = data.draw(st.lists(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=4), min_size=len(ours), max_size=len(ours)))

    def responses(utilities: list[list[float]]) -> list[GradedResponse]:
        known = {"text": "", "num_tokens": 1, "ended": True, "attributes": {}, "kl": 0.0, "kl_k1": 0.0}
        return [GradedResponse(policy="", prompt=Prompt(str(i)), utility=u, **known) for i, us in enumerate(utilities) for u in us]

    a, b = responses(ours), responses(theirs)
    one, other = win_rate(a, b), win_rate(b, a)
    assert one.mean + other.mean == pytest.approx(1)
    assert one.low + other.high == pytest.approx(1, abs=1e-5)  # bounds are found by bisection
    assert one.low <= one.mean + 1e-9
    assert one.mean <= one.high + 1e-9
    assert win_rate(a, a).mean == pytest.approx(0.5)


def test_win_rate_counts_ties_half_and_prompts_alike(graded: Make) -> None:
    a = [graded("p", 1.0), graded("p", 2.0), graded("q", 0.0)]
    b = [graded("q", 5.0), graded("p", 1.0)]
    assert win_rate(a, b).mean == pytest.approx((0.75 + 0.0) / 2)


def test_win_rate_refuses_other_prompts_and_missing_gold(graded: Make) -> None:
    with pytest.raises(ValueError, match="same prompts"):
        win_rate([graded("p")], [graded("q")])
    with pytest.raises(ValueError, match="no gold"):
        win_rate([graded("p", None)], [graded("p")])


def test_best_of_n_equals_all_subsets(graded: Make) -> None:
    table = {"p": [(0.1, 3.0), (0.9, 1.0), (0.5, 2.0), (0.2, 8.0)], "q": [(5.0, 1.0), (4.0, 0.0), (3.0, 2.0), (9.0, -1.0)]}
    responses = [graded(p, gold, proxy=proxy) for p, items in table.items() for proxy, gold in items]
    chosen, curve = best_of_n(responses)
    assert [r.utility for r in chosen] == [1.0, -1.0]
    assert {r.policy for r in chosen} == {"best_of_n"}
    for point in curve:
        expected = []
        for items in table.values():
            best = [max(subset)[1] for subset in itertools.combinations(items, point.n)]
            expected.append(sum(best) / len(best))
        assert point.gold.mean == pytest.approx(sum(expected) / 2)
        assert point.kl == pytest.approx(math.log(point.n) - (point.n - 1) / point.n)
    assert chosen[0].kl == curve[-1].kl
    assert [p.proxy.mean for p in curve] == sorted(p.proxy.mean for p in curve)


@pytest.mark.parametrize("n", [2, 4])
def test_the_best_of_n_wins_n_of_n_plus_one_over_later_responses(graded: Make, n: int) -> None:
    """Of n + 1 responses alike in distribution each is as often the best as any other."""
    draw = random.Random(n)
    scores = {f"p{i}": [draw.random() for _ in range(n + 2)] for i in range(300)}
    responses = [graded(prompt, score, proxy=score) for prompt, each in scores.items() for score in each]
    first = first_of_each(responses, n)
    assert [r.utility for r in first] == [score for each in scores.values() for score in each[:n]]
    chosen, curve = best_of_n(first)
    later = [graded(prompt, score) for prompt, each in scores.items() for score in each[n:]]
    assert win_rate(chosen, later).mean == pytest.approx(n / (n + 1), abs=0.04)
    assert win_rate(chosen, first).mean == pytest.approx(1 - 1 / (2 * n))
    assert len(curve) == n


def test_best_of_n_needs_a_proxy(graded: Make) -> None:
    with pytest.raises(ValueError, match="proxy"):
        best_of_n([graded("p"), graded("p")])
