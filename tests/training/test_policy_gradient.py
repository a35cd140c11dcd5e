"""PPO and REINFORCE on a tiny real model: they climb a known reward, and a resumed run equals an uninterrupted one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from heed.data.render import Renderer
from heed.errors import Interrupted, UserError
from heed.models.batch import TokenBatch
from heed.models.language_model import LanguageModel
from heed.models.loading import LoRAConfig, load_policy
from heed.models.scalar_model import new_scalar_model, value_head
from heed.records import Prompt, Rollout
from heed.rollout.local import LocalEngine
from heed.training import experience as gather
from heed.training import loop
from heed.training.ppo import PPOConfig, train_ppo
from heed.training.reinforce import ReinforceConfig, baselined, train_reinforce
from heed.training.run import Run

PROMPTS = [Prompt(f"{colour} {number}") for colour in ("red", "green", "blue") for number in ("one", "two", "three")]


def fast(**changes: Any) -> dict[str, Any]:
    """Settings that learn in a second."""
    return {"iterations": 12, "prompts_per_iteration": 24, "max_new_tokens": 6, "lr": 5e-3, "warmup_fraction": 0.0, **changes}


def share_good(rollouts: Sequence[Rollout]) -> Tensor:
    """The known preference: the share of words that are `good`."""
    return torch.tensor([r.text.split().count("good") / max(len(r.text.split()), 1) for r in rollouts])


def rows(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def ppo(folder: Path, output: Path, config: PPOConfig, *, lora: LoRAConfig | None = None, stop_after: int | None = None) -> LanguageModel:
    """One run of PPO, made to stop by a signal after some iterations if asked; its last metrics are those logged."""
    policy = load_policy(folder, device="cpu", lora=lora)
    reference = policy.reference()
    critic = value_head(policy) if config.critic == "shared" else new_scalar_model(policy, "value", seed=3)
    renderer = Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=32)
    calls = 0

    def reward(rollouts: Sequence[Rollout]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            run._stop_signal = 15
        return share_good(rollouts)

    with Run(output, display=False) as run:
        metrics = train_ppo(policy, reference, critic, renderer, reward, PROMPTS, config, run)
    assert metrics == {name: value for name, value in rows(output)[-1].items() if name != "step"}
    return policy


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_ppo_climbs_a_known_reward_and_reports_what_it_costs(
    tiny_folder: Path, tmp_path: Path, critic: Literal["separate", "shared"]
) -> None:
    ppo(tiny_folder, tmp_path, PPOConfig(**fast(), batch_size=12, kl_coef=0.01, critic=critic))
    first, *_, last = rows(tmp_path)
    assert last["score"] > first["score"] + 0.3
    assert first["kl_exact"] == pytest.approx(0.0, abs=1e-5)
    assert last["kl_exact"] > 0.5
    assert last["kl"] == pytest.approx(last["kl_exact"], rel=0.6)
    reported = "score shaped_reward kl kl_exact entropy clip_fraction ratio explained_variance response_length eos_rate policy_grad_norm"
    assert set(reported.split()) <= set(last)


def test_the_first_update_of_ppo_has_ratio_one(tiny_folder: Path, tmp_path: Path) -> None:
    """The engine's log-probabilities are the trainer's own: before any update every ratio is 1 and nothing is clipped."""
    settings = fast(iterations=1, lr=1e-12)
    ppo(tiny_folder, tmp_path, PPOConfig(**settings, epochs=1, batch_size=24))
    (row,) = rows(tmp_path)
    assert row["ratio"] == pytest.approx(1.0, abs=1e-4)
    assert row["clip_fraction"] == 0.0
    assert row["update_kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4)], ids=["full", "lora"])
def test_a_stopped_run_goes_on_to_the_same_end_bit_for_bit(
    tiny_folder: Path, tmp_path: Path, lora: LoRAConfig | None, critic: Literal["separate", "shared"]
) -> None:
    """Policy, critic, optimiser, KL controller, data cursor and random state all come back."""
    settings = fast(iterations=6, prompts_per_iteration=8)
    config = PPOConfig(**settings, batch_size=4, epochs=2, kl_target=2.0, kl_horizon=40, seed=5, critic=critic)
    whole = ppo(tiny_folder, tmp_path / "whole", config, lora=lora)
    with pytest.raises(Interrupted):
        ppo(tiny_folder, tmp_path / "cut", config, lora=lora, stop_after=3)
    assert len(rows(tmp_path / "cut")) == 3
    resumed = ppo(tiny_folder, tmp_path / "cut", config, lora=lora)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert len({row["kl_coef"] for row in rows(tmp_path / "whole")}) > 3
    for name, parameter in whole.trainable().items():
        assert torch.equal(resumed.trainable()[name], parameter), name


def test_a_finished_run_does_no_work_again(tiny_folder: Path, tmp_path: Path) -> None:
    settings = fast(iterations=2)
    first = ppo(tiny_folder, tmp_path, PPOConfig(**settings))
    before = rows(tmp_path)
    second = ppo(tiny_folder, tmp_path, PPOConfig(**settings))
    assert rows(tmp_path) == before
    for name, parameter in first.trainable().items():
        assert torch.equal(second.trainable()[name], parameter)


def test_roles_on_one_lora_backbone_learn_and_leave_the_base_alone(tiny_folder: Path, tmp_path: Path) -> None:
    settings = fast(lr=2e-2, iterations=25)
    policy = ppo(tiny_folder, tmp_path, PPOConfig(**settings, batch_size=12, kl_coef=0.0, missing_eos_penalty=0.0), lora=LoRAConfig(rank=8))
    first, *_, last = rows(tmp_path)
    assert last["score"] > first["score"] + 0.2
    base = load_policy(tiny_folder, device="cpu").hf.state_dict()
    reference = policy.reference().hf.state_dict()
    shared = [name for name in base if any(key.endswith(name.replace("proj.weight", "proj.base_layer.weight")) for key in reference)]
    assert shared
    for name in shared:
        key = next(key for key in reference if key.endswith(name.replace("proj.weight", "proj.base_layer.weight")))
        assert torch.equal(base[name], reference[key]), name


def test_engine_and_trainer_agree_in_fp32_so_either_may_be_started_from(tiny_folder: Path, tmp_path: Path) -> None:
    found = {}
    for source in ("engine", "trainer"):
        config = PPOConfig(**fast(iterations=3), batch_size=12, old_logprobs=source, precision="fp32")
        ppo(tiny_folder, tmp_path / source, config)
        found[source] = rows(tmp_path / source)
        assert all(0 <= row["logprob_gap"] < 1e-4 for row in found[source])
    assert found["engine"] != found["trainer"], "rounding at least should tell them apart"
    assert found["engine"][-1]["score"] == pytest.approx(found["trainer"][-1]["score"], abs=0.05)


def test_under_bf16_the_gap_is_told_and_the_ratio_still_starts_at_one(tiny_folder: Path, tmp_path: Path) -> None:
    for source in ("auto", "engine"):
        config = PPOConfig(**fast(iterations=1), batch_size=24, epochs=1, old_logprobs=source, precision="bf16")
        ppo(tiny_folder, tmp_path / source, config)
        (row,) = rows(tmp_path / source)
        assert row["logprob_gap"] > 1e-3
        assert (row["update_kl"] < 1e-7) == (source == "auto")


def test_over_bf16_weights_the_ratio_starts_at_one_too(tiny_folder: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny_folder, device="cpu", dtype="bfloat16", lora=LoRAConfig(rank=2))
    critic = new_scalar_model(policy, "value", seed=3)
    renderer = Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=32)
    config = PPOConfig(**fast(iterations=1), batch_size=24, epochs=1, precision="fp32")
    with Run(tmp_path, display=False) as run:
        train_ppo(policy, policy.reference(), critic, renderer, share_good, PROMPTS, config, run)
    (row,) = rows(tmp_path)
    assert row["logprob_gap"] > 1e-3
    assert row["update_kl"] < 1e-7


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kl_coef": 0.0, "kl_target": 6.0}, "kl_coef is 0.0; expected a number above 0 to begin with"),
        ({"kl_target": 6.0, "kl_horizon": 63, "prompts_per_iteration": 32, "samples_per_prompt": 2}, "kl_horizon is 63; expected 64"),
    ],
)
def test_a_leash_that_could_not_be_steered_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        PPOConfig(**settings)
    PPOConfig(**{**settings, "kl_target": None})


@pytest.mark.parametrize("estimator", ["k2", "exact"])
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=8)], ids=["full", "lora"])
def test_a_kl_in_the_loss_holds_the_policy_near_the_reference(
    tiny_folder: Path, tmp_path: Path, estimator: str, lora: LoRAConfig | None
) -> None:
    kl = {}
    for coefficient in (0.0, 10.0):
        settings = fast(iterations=10, kl_coef=coefficient, kl_estimator=estimator, kl_in="loss")
        ppo(tiny_folder, tmp_path / str(coefficient), PPOConfig(**settings, batch_size=12), lora=lora)
        kl[coefficient] = rows(tmp_path / str(coefficient))[-1]["kl_exact"]
    assert kl[10.0] < 0.5 * kl[0.0]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_an_estimator_without_the_gradient_of_the_kl_is_refused_in_the_loss(estimator: str) -> None:
    with pytest.raises(UserError, match="exact or k2"):
        PPOConfig(kl_in="loss", kl_estimator=estimator)  # pyright: ignore[reportArgumentType]


def test_exact_kl_in_the_reward_agrees_with_k1_on_average(tiny_folder: Path, tmp_path: Path) -> None:
    settings = fast(iterations=4, prompts_per_iteration=64)
    ppo(tiny_folder, tmp_path, PPOConfig(**settings, kl_estimator="exact", kl_coef=0.1, kl_sample=64))
    last = rows(tmp_path)[-1]
    # What the shaped reward lost to the leash is the coefficient times the exact KL over the same rollouts.
    assert last["score"] - last["shaped_reward"] == pytest.approx(0.1 * last["kl_exact"], rel=1e-3)


@pytest.mark.parametrize("estimator", ["k3", "exact"])
@pytest.mark.parametrize("source", ["engine", "trainer"])
def test_what_is_measured_is_what_each_sequence_alone_shows(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, estimator: Any, source: Any
) -> None:
    """Against logits of one sequence at a time; and no model reads a response twice, or one that nothing is asked of."""
    policy, temperature = load_policy(tiny_folder, device="cpu"), 0.8
    reference = policy.reference()
    with torch.no_grad():
        for parameter in policy.hf.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    settings = fast(samples_per_prompt=2, temperature=temperature, kl_sample=5, kl_estimator=estimator, old_logprobs=source)
    config = PPOConfig(**settings, precision="fp32")
    renderer = Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=32)
    rollouts = LocalEngine(policy, renderer, seed=0).generate(PROMPTS, config.sampling, 2)
    state = loop.TrainState.create({"policy": policy}, config, 1)
    read: dict[int, int] = {}
    for model in (policy, reference):
        hidden = model.hidden

        def counted(batch: TokenBatch, *args: Any, model: LanguageModel = model, hidden: Any = hidden) -> Tensor:
            read[id(model)] = read.get(id(model), 0) + int(batch.response_mask.sum())
            return hidden(batch, *args)

        monkeypatch.setattr(model, "hidden", counted)
    scored = gather.measure(state, rollouts, torch.zeros(len(rollouts)), policy, reference, None, config)

    observed = gather.observed_rows(len(rollouts), config)
    assert observed == [0, 1, 6, 7, 12, 13]
    lengths = [len(r.response_ids) for r in rollouts]
    some = sum(lengths[i] for i in observed)
    assert read == {id(reference): sum(lengths), id(policy): some if (estimator, source) == ("k3", "engine") else sum(lengths)}
    kls, entropies = {}, {}
    for i, rollout in enumerate(rollouts):
        ids = torch.tensor([rollout.sequence().ids])
        with torch.no_grad():
            log_p, log_q = ((model.hf(ids).logits[0] / temperature).log_softmax(-1) for model in (policy, reference))
        start = len(rollout.prompt_ids)
        at = torch.arange(start - 1, ids.shape[1] - 1)
        place = i, slice(start, ids.shape[1])
        torch.testing.assert_close(scored.ref_logprobs[place], log_q[at, ids[0, start:]], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scored.old_logprobs[place], log_p[at, ids[0, start:]], rtol=1e-4, atol=1e-4)
        kls[i] = (log_p.exp() * (log_p - log_q)).sum(-1)[at]
        entropies[i] = -(log_p.exp() * log_p).sum(-1)[at]
        ratio = (log_q - log_p)[at, ids[0, start:]]
        expected = kls[i] if estimator == "exact" else ratio.exp() - 1 - ratio
        torch.testing.assert_close(scored.kl[place], expected, rtol=1e-3, atol=1e-4)
    assert scored.observed.kl == pytest.approx(float(sum(kls[i].sum() for i in observed)) / len(observed), rel=1e-3)
    assert scored.observed.entropy == pytest.approx(float(torch.cat([entropies[i] for i in observed]).mean()), rel=1e-3)
    assert 0 < scored.observed.logprob_gap < 1e-4


def test_a_response_that_does_not_end_is_penalised(policy: LanguageModel, renderer: Renderer) -> None:
    config = PPOConfig(**fast(max_new_tokens=2), missing_eos_penalty=0.7)
    rollouts, scores = gather.sample_and_score(LocalEngine(policy, renderer, seed=0), share_good, PROMPTS * 4, config)
    expected = share_good(rollouts) - 0.7 * torch.tensor([r.finish_reason == "length" for r in rollouts]).float()
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    torch.testing.assert_close(scores, expected)


def test_a_reward_that_is_not_finite_stops_with_the_response_named(policy: LanguageModel, renderer: Renderer) -> None:
    with pytest.raises(UserError, match=r"the reward gave nan to response 0 of 9.*finite score"):
        gather.sample_and_score(
            LocalEngine(policy, renderer, seed=0), lambda r: torch.full((len(r),), float("nan")), PROMPTS, PPOConfig(**fast())
        )


def test_prompts_are_all_seen_before_any_comes_again() -> None:
    config = PPOConfig(prompts_per_iteration=4)
    drawn = [p for k in range(9) for p in gather.draw_prompts(PROMPTS, k, config)]
    for start in range(0, 36, 9):
        assert sorted(p.id for p in drawn[start : start + 9]) == sorted(p.id for p in PROMPTS)
    assert gather.draw_prompts(PROMPTS, 5, config) == drawn[20:24]


@pytest.mark.parametrize("baseline", ["leave_one_out", "group", "running_mean", "none"])
def test_reinforce_climbs_a_known_reward(policy: LanguageModel, renderer: Renderer, tmp_path: Path, baseline: Any) -> None:
    settings = fast(iterations=20, prompts_per_iteration=12, samples_per_prompt=4)
    config = ReinforceConfig(**settings, baseline=baseline, batch_size=48, kl_coef=0.01, schedule="constant")
    with Run(tmp_path, display=False) as run:
        train_reinforce(policy, policy.reference(), renderer, share_good, PROMPTS, config, run)
    first, *_, last = rows(tmp_path)
    assert last["score"] > first["score"] + 0.2


def test_reinforce_resumes_bit_for_bit_with_its_running_baseline(tiny_folder: Path, tmp_path: Path) -> None:
    settings = fast(iterations=5, prompts_per_iteration=6, samples_per_prompt=1)
    config = ReinforceConfig(**settings, baseline="running_mean", batch_size=6, checkpoint_every=2)

    def go(output: Path, until: int | None) -> None:
        policy = load_policy(tiny_folder, device="cpu")
        renderer = Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=32)
        calls = 0

        def reward(rollouts: Sequence[Rollout]) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == until:
                raise RuntimeError("killed between two checkpoints")
            return share_good(rollouts)

        with Run(output, display=False) as run:
            train_reinforce(policy, policy.reference(), renderer, reward, PROMPTS, config, run)

    go(tmp_path / "whole", None)
    with pytest.raises(RuntimeError):
        go(tmp_path / "cut", 4)
    go(tmp_path / "cut", None)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_group_of_one_has_no_leave_one_out_baseline() -> None:
    with pytest.raises(UserError, match="samples_per_prompt"):
        ReinforceConfig(samples_per_prompt=1)
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
    config = ReinforceConfig(samples_per_prompt=2)
    assert baselined(returns, None, config).tolist() == [-1.0, 1.0, -3.0, 3.0]


def test_iterations_walk_through_all_prompts(policy: LanguageModel, renderer: Renderer, tmp_path: Path) -> None:
    asked: list[str] = []

    def reward(rollouts: Sequence[Rollout]) -> Tensor:
        asked.extend(r.prompt.id for r in rollouts)
        return share_good(rollouts)

    with Run(tmp_path, display=False) as run:
        config = PPOConfig(**fast(iterations=3, prompts_per_iteration=3))
        train_ppo(policy, policy.reference(), new_scalar_model(policy, "value", seed=0), renderer, reward, PROMPTS, config, run)
    assert sorted(asked) == sorted(p.id for p in PROMPTS)
