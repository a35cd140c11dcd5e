from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch

from heed.data.render import Renderer
from heed.errors import UserError
from heed.evaluation import ScoredPair, evaluate_reward_model, measure_reward_model, score_pairs
from heed.models.language_model import LanguageModel
from heed.models.scalar_model import new_scalar_model
from heed.records import PreferencePair, Prompt


def scored(chosen: str, rejected: str, difference: float, *, prompt: str = "p", label: float = 1.0, kind: str | None = None) -> ScoredPair:
    pair = PreferencePair(Prompt(prompt, {"kind": kind} if kind else {}), chosen, rejected, label=label)
    return ScoredPair(pair, difference + 1.5, 1.5)


def test_accuracy_and_heuristics_on_known_pairs() -> None:
    pairs = [
        scored("long answer", "short", 2.0, prompt="a", kind="x"),  # right; longer right
        scored("ab", "abcd", -1.0, prompt="b", kind="x"),  # wrong; shorter right
        scored("ab", "cd", 0.0, prompt="c", kind="y"),  # undecided; same length
        scored("abcdef", "ab", 0.5, prompt="d", kind="y", label=0.2),  # people prefer the second: wrong; shorter right
        scored("abc", "a", 9.0, prompt="e", kind="y", label=0.5),  # a tie counts nowhere here
    ]
    found = measure_reward_model(pairs, noise_ceiling=0.9)
    assert found.accuracy.mean == pytest.approx(1.5 / 4)
    assert found.longer_baseline == pytest.approx(1.5 / 4)
    assert found.shorter_baseline == pytest.approx(2.5 / 4)
    assert {kind: interval.mean for kind, interval in found.by_kind.items()} == {"x": 0.5, "y": 0.25}
    assert (found.num_pairs, found.num_ties, found.noise_ceiling) == (5, 1, 0.9)
    assert found.gold_accuracy is None


def test_gold_accuracy_counts_pairs_that_the_truth_tells_apart() -> None:
    pairs = [scored("good", "bad", 1.0), scored("bad", "good", 1.0), scored("good", "good ", 1.0)]
    found = measure_reward_model(pairs, gold=lambda prompt, text: {"utility": float(text.strip() == "good")})
    assert found.gold_accuracy is not None
    assert found.gold_accuracy.mean == 0.5
    assert found.accuracy.mean == 1.0


def test_the_oracle_is_the_truth_put_to_the_same_judgements() -> None:
    """Three judgements, of which people got one wrong: not even the truth predicts more than two."""
    utility = {"a": 1.0, "b": 0.0}
    pairs = [PreferencePair(Prompt(str(i)), *texts) for i, texts in enumerate([("a", "b"), ("a", "b"), ("b", "a")])]
    found = measure_reward_model([ScoredPair(p, 0.0, 0.0) for p in pairs], gold=lambda prompt, text: {"utility": utility[text]})
    assert found.oracle_accuracy is not None
    assert found.oracle_accuracy.mean == pytest.approx(2 / 3)


def test_calibration_equals_a_loop_over_bins() -> None:
    draw = random.Random(3)
    pairs = [scored("a", "b", draw.gauss(1, 2), prompt=str(i), label=draw.choice([1.0, 1.0, 0.5])) for i in range(300)]
    found = measure_reward_model(pairs, num_bins=20)
    ece, seen = 0.0, []
    for low in [i / 20 for i in range(20)]:
        inside = []
        for s in pairs:
            confidence = 1 / (1 + math.exp(-abs(s.difference)))
            if low <= confidence < low + 0.05:
                inside.append((confidence, s.pair.label if s.difference > 0 else 1 - s.pair.label))
        if inside:
            confidence, agreed = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            ece += len(inside) / len(pairs) * abs(confidence - agreed)
            seen.append((pytest.approx(confidence), pytest.approx(agreed), len(inside)))
    assert found.ece == pytest.approx(ece)
    assert [(b.confidence, b.accuracy, b.count) for b in found.calibration] == seen
    assert sum(b.count for b in found.calibration) == 300


def test_a_model_that_means_its_scores_is_calibrated() -> None:
    draw = random.Random(0)
    pairs = []
    for i in range(6000):
        difference = draw.gauss(0, 2)
        better = draw.random() < 1 / (1 + math.exp(-difference))
        pairs.append(scored("a", "b", difference if better else -difference, prompt=str(i)))
    overconfident = [ScoredPair(s.pair, 4 * s.chosen_score, 4 * s.rejected_score) for s in pairs]
    assert measure_reward_model(pairs).ece < 0.02
    assert measure_reward_model(overconfident).ece > 0.1


def test_nothing_but_ties_is_refused() -> None:
    with pytest.raises(ValueError, match="decided"):
        measure_reward_model([scored("a", "b", 1.0, label=0.5)])


def test_scores_are_those_of_each_response_alone(make_policy: Callable[[int], LanguageModel]) -> None:
    policy = make_policy(0)
    model = new_scalar_model(policy, "reward", seed=0)
    renderer = Renderer(model.tokenizer, eos_ids=model.eos_ids, max_length=32)
    pairs = [
        PreferencePair(Prompt("w3 w4"), "w5 w6 w7 w8", "w9"),
        PreferencePair(Prompt("w3 w4"), "w9", "w10 w11"),
        PreferencePair(Prompt("w20"), "w9", "w12 w13 w14"),
    ]
    found = score_pairs(model, renderer, pairs, max_tokens=10)
    for s in found:
        for text, score in ((s.pair.chosen, s.chosen_score), (s.pair.rejected, s.rejected_score)):
            ids = torch.tensor([renderer.encode(s.pair.prompt, text).ids])
            with torch.no_grad():
                alone = model.head(model.backbone.body(input_ids=ids).last_hidden_state[0, -1]).item()
            assert score == pytest.approx(alone, abs=1e-5)
    assert found[0].rejected_score == found[1].chosen_score != found[2].chosen_score
    assert evaluate_reward_model(model, renderer, pairs).accuracy.mean == sum(s.difference > 0 for s in found) / 3


def test_entry_has_the_keys_of_the_summary() -> None:
    entry = measure_reward_model([scored("ab", "b", 1.0, prompt="a"), scored("c", "d", -1.0, prompt="b")]).to_dict()
    assert entry["accuracy"]["mean"] == 0.5  # pyright: ignore[reportIndexIssue]
    assert len(entry["accuracy"]["ci95"]) == 2  # pyright: ignore[reportIndexIssue]
    assert {"longer_baseline", "shorter_baseline", "noise_ceiling", "ece"} <= entry.keys()


def test_scores_that_are_not_finite_are_told(make_policy: Callable[[int], LanguageModel]) -> None:
    policy = make_policy(0)
    model = new_scalar_model(policy, "reward", seed=0)
    model.offset = math.nan
    renderer = Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=32)
    with pytest.raises(UserError, match="gave 2 of 2 held-out responses no finite score; train it again with a lower lr"):
        score_pairs(model, renderer, [PreferencePair(Prompt("w3"), "w4", "w5")])
