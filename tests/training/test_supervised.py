"""SFT, reward modelling and DPO on a tiny real model: they learn, and they equal slow references."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from heed.data.render import Renderer
from heed.models.language_model import LanguageModel
from heed.models.loading import load_policy
from heed.models.scalar_model import new_scalar_model
from heed.records import Demonstration, PreferencePair, Prompt, Ranking
from heed.training.dpo import DPOConfig, train_dpo
from heed.training.reward_model import RewardModelConfig, comparisons, flat_pairs, train_reward_model
from heed.training.run import Run
from heed.training.sft import SFTConfig, train_sft

ASK = [Prompt(f"{colour} {number}") for colour in ("red", "green", "blue") for number in ("one", "two", "three")]
PAIRS = [PreferencePair(p, "good alpha", "bad beta") for p in ASK]


def metrics(folder: Path) -> list[dict[str, float]]:
    import json

    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_sft_learns_its_demonstrations(policy: LanguageModel, renderer: Renderer, tmp_path: Path) -> None:
    demonstrations = [Demonstration(p, "good good alpha") for p in ASK]
    with Run(tmp_path, display=False) as run:
        last = train_sft(policy, renderer, demonstrations, SFTConfig(lr=1e-2, epochs=60, batch_size=9), run)
    assert metrics(tmp_path)[0]["loss"] > 1.0
    assert last["loss"] < 0.05


def test_the_loss_counts_response_tokens_only(tiny_folder: Path, renderer: Renderer, tmp_path: Path) -> None:
    """The first loss equals the mean cross-entropy that the model's own logits give on response tokens."""
    policy = load_policy(tiny_folder, device="cpu")
    demonstrations = [Demonstration(ASK[0], "good"), Demonstration(ASK[1], "bad bad bad two")]
    total, count = 0.0, 0
    for d in demonstrations:
        sequence = renderer.encode(d.prompt, d.response)
        ids = torch.tensor([sequence.ids])
        with torch.no_grad():
            logprobs = policy.hf(ids).logits.log_softmax(-1)
        for t, counts in enumerate(sequence.response_mask):
            if counts:
                total -= float(logprobs[0, t - 1, ids[0, t]])
                count += 1
    with Run(tmp_path, display=False) as run:
        train_sft(policy, renderer, demonstrations, SFTConfig(batch_size=2, max_tokens=1), run)
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_reward_model_learns_rankings_with_ties(policy: LanguageModel, renderer: Renderer, tmp_path: Path) -> None:
    rankings = [Ranking(p, ("bad beta", "good alpha", "good alpha", "beta"), (3, 1, 1, 2)) for p in ASK]
    model = new_scalar_model(policy, "reward", seed=0)
    config = RewardModelConfig(lr=5e-3, epochs=15, batch_size=3, seed=1)
    with Run(tmp_path, display=False) as run:
        last = train_reward_model(model, renderer, rankings, config, run)
    assert last["accuracy"] > 0.95
    best, middle, worst = (score(model, renderer, ASK[4], text) for text in ("good alpha", "beta", "bad beta"))
    assert best > middle > worst


@pytest.mark.parametrize("trusted", ["good alpha", "bad beta"])
def test_a_reward_model_believes_the_labels_that_weigh_more(
    policy: LanguageModel, renderer: Renderer, tmp_path: Path, trusted: str
) -> None:
    """Of as many labels for one as for the other; and the first loss is the weighted mean."""
    said = [(("good alpha", "bad beta"), (1, 2)), (("good alpha", "bad beta"), (2, 1))]
    heavy = 0 if trusted == "good alpha" else 1
    rankings = [Ranking(p, texts, ranks, weight=1.0 if i == heavy else 0.25) for p in ASK for i, (texts, ranks) in enumerate(said)]
    model = new_scalar_model(policy, "reward", seed=0)
    with torch.no_grad():
        difference = [score(model, renderer, p, "good alpha") - score(model, renderer, p, "bad beta") for p in ASK]
    log = torch.nn.functional.logsigmoid
    sides = (1, -1) if heavy == 0 else (-1, 1)
    losses = [-(log(torch.tensor(sides[0] * d)) + 0.25 * log(torch.tensor(sides[1] * d))) for d in difference]
    with Run(tmp_path, display=False) as run:
        train_reward_model(model, renderer, rankings, RewardModelConfig(lr=1e-2, epochs=10, batch_size=18, warmup_fraction=0.0), run)
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(float(sum(losses)) / len(rankings), rel=1e-4)
    good, bad = (score(model, renderer, ASK[4], text) for text in ("good alpha", "bad beta"))
    assert (good > bad) == (trusted == "good alpha")
    assert abs(good - bad) == pytest.approx(math.log(4), abs=0.6), "where the weighted share of labels is 1 / (1 + 0.25)"


def test_scores_are_centred_on_the_training_responses(policy: LanguageModel, renderer: Renderer, tmp_path: Path) -> None:
    model = new_scalar_model(policy, "reward", seed=0)
    with Run(tmp_path, display=False) as run:
        train_reward_model(model, renderer, PAIRS, RewardModelConfig(lr=1e-2, epochs=5), run)
    scores = [score(model, renderer, p.prompt, text) for p in PAIRS for text in (p.chosen, p.rejected)]
    assert sum(scores) / len(scores) == pytest.approx(0.0, abs=1e-4)
    assert max(scores) > 0.5


def score(model, renderer: Renderer, prompt: Prompt, text: str) -> float:
    from heed.models.batch import collate

    with torch.no_grad():
        return float(model.scores(collate([renderer.encode(prompt, text)], model.pad_id, model.device)))


def test_each_response_of_a_ranking_is_encoded_once_and_pairs_point_at_it(renderer: Renderer) -> None:
    rankings = [Ranking(ASK[0], ("good", "bad", "alpha"), (2, 1, 2)), Ranking(ASK[1], ("one", "two"), (1, 2), weight=0.5)]
    encoded = comparisons([*rankings, PreferencePair(ASK[2], "good", "bad", label=0.8, margin=0.3)], renderer)
    assert [len(c.sequences) for c in encoded] == [3, 2, 2]
    flat = flat_pairs(encoded, torch.device("cpu"))
    texts = [renderer.decode(s.ids[sum(not m for m in s.response_mask) :]) for c in encoded for s in c.sequences]
    told = {(texts[b], texts[w], round(float(y), 3)) for b, w, y in zip(flat["better"], flat["worse"], flat["labels"], strict=True)}
    assert told == {("bad", "good", 1.0), ("bad", "alpha", 1.0), ("good", "alpha", 0.5), ("one", "two", 1.0), ("good", "bad", 0.8)}
    assert flat["pairs_per_ranking"].tolist() == [3, 3, 3, 1, 1]
    assert flat["weights"].tolist() == [1, 1, 1, 0.5, 1]
    assert flat["margins"].tolist() == pytest.approx([0, 0, 0, 0, 0.3])


def test_dpo_starts_at_log_two_and_separates_chosen_from_rejected(policy: LanguageModel, renderer: Renderer, tmp_path: Path) -> None:
    with Run(tmp_path, display=False) as run:
        last = train_dpo(policy, renderer, PAIRS, DPOConfig(lr=5e-3, epochs=10, batch_size=4, warmup_fraction=0.0), run)
    rows = metrics(tmp_path)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert last["accuracy"] == 1.0
    assert last["margin"] > 0.5
    assert last["chosen_logratio"] > last["rejected_logratio"]


def test_dpo_under_bf16_starts_at_log_two_as_well(policy: LanguageModel, renderer: Renderer, tmp_path: Path) -> None:
    with Run(tmp_path, display=False) as run:
        train_dpo(policy, renderer, PAIRS, DPOConfig(lr=1e-9, batch_size=9, precision="bf16"), run)
    (row,) = metrics(tmp_path)
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert row["chosen_logratio"] == pytest.approx(0, abs=1e-2)
    assert row["rejected_logratio"] == pytest.approx(0, abs=1e-2)


def test_the_reference_of_dpo_is_computed_once_and_survives_a_resume(tiny_folder: Path, renderer: Renderer, tmp_path: Path) -> None:
    config = DPOConfig(lr=1e-2, epochs=2, batch_size=3, checkpoint_every=1)
    with Run(tmp_path, display=False) as run:
        train_dpo(load_policy(tiny_folder, device="cpu"), renderer, PAIRS, config, run)
    cached = (tmp_path / "reference.safetensors").stat().st_mtime_ns
    other = load_policy(tiny_folder, device="cpu")
    with torch.no_grad():
        for parameter in other.trainable().values():
            parameter.mul_(1.5)  # a resumed run must take the reference from the cache, not from the weights it was given
    with Run(tmp_path, display=False) as run:
        train_dpo(other, renderer, PAIRS, config, run)
    assert (tmp_path / "reference.safetensors").stat().st_mtime_ns == cached


def test_the_reference_is_computed_anew_where_the_pairs_changed(tiny_folder: Path, renderer: Renderer, tmp_path: Path) -> None:
    config = DPOConfig(epochs=1, batch_size=9)
    for pairs in (PAIRS, [PreferencePair(p.prompt, p.rejected, p.chosen) for p in PAIRS]):
        (tmp_path / "checkpoint.safetensors").unlink(missing_ok=True)
        with Run(tmp_path, display=False) as run:
            last = train_dpo(load_policy(tiny_folder, device="cpu"), renderer, pairs, config, run)
        assert last["loss"] == pytest.approx(math.log(2), abs=1e-5)
