from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from heed.errors import UserError
from heed.models import (
    LoRAConfig,
    ScalarModel,
    TokenBatch,
    collate,
    critic_from,
    load_policy,
    load_reward_model,
    new_scalar_model,
    value_head,
)
from heed.records import TokenSequence

LORA = LoRAConfig(rank=4, alpha=8)
MODES = pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])


def reward_model(folder: Path, lora: LoRAConfig | None = None, *, moved: bool = True) -> ScalarModel:
    model = new_scalar_model(load_policy(folder, lora=lora, device="cpu"), "reward", seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values() if moved else ():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def transformers_scores(model: Any, tokenizer: Any, batch: TokenBatch, *, padded: bool) -> Tensor:
    """What another tool computes from the token ids alone, padding as the saved tokenizer says."""
    rows = [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.attention_mask, strict=True)]
    with torch.no_grad():
        if not padded:
            return torch.cat([model(torch.tensor([row])).logits[:, 0] for row in rows])
        inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        return model(**inputs).logits[:, 0]


@MODES
def test_scores_are_read_at_the_last_response_token_whatever_the_padding(folder: Path, lora: LoRAConfig | None) -> None:
    model = reward_model(folder, lora)
    short = TokenSequence((1, 5, 6, 2, 7), (False, False, True, True, False))
    alone = model.scores(collate([short], 2)).item()
    hidden = model.hidden(collate([short], 2))
    assert alone == pytest.approx((hidden[0, 3] @ model.head.weight[0]).item(), rel=1e-4)
    for pad_id in (0, 2, 9):
        batch = collate([short, TokenSequence((1, *range(10, 30)), (False, *[True] * 20))], pad_id)
        assert model.scores(batch)[0].item() == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_values_stand_before_the_token_they_predict(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    model = reward_model(make_folder("llama"))
    values, hidden = model.values(batch), model.hidden(batch)
    assert values.shape == batch.ids.shape
    for row, t in batch.response_mask.nonzero().tolist():
        torch.testing.assert_close(values[row, t], hidden[row, t - 1] @ model.head.weight[0])
    # A value must not know the token it stands before.
    ids = batch.ids.clone()
    ids[0, 4:] = 50
    other = model.values(TokenBatch(ids, batch.attention_mask, batch.response_mask))
    torch.testing.assert_close(other[0, :5], values[0, :5])
    assert not torch.allclose(other[0, 5:], values[0, 5:])


def test_a_new_head_is_small_and_its_seed_decides_it(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    first, again, other = (new_scalar_model(policy, "reward", seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx((32 + 1) ** -0.5, rel=0.4)


@MODES
def test_a_new_role_starts_from_the_policy_as_it_is(folder: Path, lora: LoRAConfig | None, batch: TokenBatch) -> None:
    policy = load_policy(folder, lora=lora, device="cpu")
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.05
    reward = new_scalar_model(policy, "reward", seed=0)
    assert torch.equal(reward.hidden(batch), policy.hidden(batch))


@MODES
def test_trainable_covers_the_head(folder: Path, lora: LoRAConfig | None) -> None:
    model = reward_model(folder, lora)
    assert model.trainable()["score.weight"] is model.head.weight
    body = {id(p) for p in model.backbone.body.parameters()}
    assert lora is not None or body < {id(p) for p in model.trainable().values()}
    saved = {name: tensor.clone() for name, tensor in model.state().items()}
    fresh = reward_model(folder, lora, moved=False)
    fresh.load_state(saved)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state().values(), saved.values(), strict=True))


@MODES
def test_saved_reward_model_loads_in_transformers_with_equal_scores(
    folder: Path, lora: LoRAConfig | None, batch: TokenBatch, tmp_path: Path
) -> None:
    model = reward_model(folder, lora)
    model.offset = 0.25
    scores = model.scores(batch).detach()
    weights = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    model.save(tmp_path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.model.state_dict().items())
    assert torch.equal(model.scores(batch), scores)

    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id == loaded.config.pad_token_id != 2
    for padded in (False, True):
        found = transformers_scores(loaded, tokenizer, batch, padded=padded)
        torch.testing.assert_close(found - 0.25, scores, rtol=1e-3, atol=1e-4)

    again = load_reward_model(tmp_path, device="cpu")
    assert again.offset == 0.25
    torch.testing.assert_close(again.scores(batch).detach(), scores, rtol=1e-3, atol=1e-4)


def test_adapter_apart_loads_in_peft_over_the_base(folder: Path, batch: TokenBatch, tmp_path: Path) -> None:
    model = reward_model(folder, LORA)
    model.offset = 0.5
    model.save(tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    base.config.pad_token_id = tokenizer.pad_token_id
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    for padded in (False, True):
        found = transformers_scores(loaded, tokenizer, batch, padded=padded)
        torch.testing.assert_close(found - 0.5, model.scores(batch).detach(), rtol=1e-3, atol=1e-4)
    merged = load_reward_model(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(merged.scores(batch), model.scores(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_where_every_special_token_ends_a_response_padding_gets_a_new_one(
    make_folder: Callable[..., Path], family: str, lora: LoRAConfig | None, batch: TokenBatch, tmp_path: Path
) -> None:
    model = reward_model(make_folder(family, unk=False), lora)
    model.save(tmp_path / "first")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert tokenizer.pad_token_id == 100
    assert loaded.get_input_embeddings().num_embeddings == 101
    found = transformers_scores(loaded, tokenizer, batch, padded=True)
    torch.testing.assert_close(found, model.scores(batch).detach(), rtol=1e-3, atol=1e-4)
    assert model.backbone.body.get_input_embeddings().weight.shape[0] == 100

    again = load_reward_model(tmp_path / "first", device="cpu")
    again.save(tmp_path / "second")
    assert AutoTokenizer.from_pretrained(tmp_path / "second").pad_token_id == 100
    policy = load_policy(make_folder(family, unk=False), device="cpu")
    torch.testing.assert_close(critic_from(again, policy).scores(batch), model.scores(batch), rtol=1e-3, atol=1e-4)


@MODES
def test_real_model_whose_padding_and_start_both_end_a_response(stories260k: Path, lora: LoRAConfig | None, tmp_path: Path) -> None:
    model = reward_model(stories260k, lora)
    rows = [(1, 403, 407, 261, 1), (1, 403, 2), (1, 403, 407, 2, 2)]
    batch = collate([TokenSequence(row, tuple(t >= 2 for t in range(len(row)))) for row in rows], model.pad_id)
    model.save(tmp_path)
    loaded, tokenizer = AutoModelForSequenceClassification.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for padded in (False, True):
        found = transformers_scores(loaded, tokenizer, batch, padded=padded)
        torch.testing.assert_close(found, model.scores(batch).detach(), rtol=1e-3, atol=1e-4)
    assert load_reward_model(tmp_path, device="cpu").eos_ids == (1, 2)


def test_scores_keep_float32_under_autocast(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    model = reward_model(make_folder("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        scores, values = model.scores(batch), model.values(batch)
    assert scores.dtype == values.dtype == torch.float32
    assert (scores != scores.bfloat16().float()).any()


def test_encoder_scores_as_transformers_does(bert_folder: Path, batch: TokenBatch, tmp_path: Path) -> None:
    model = load_reward_model(bert_folder, device="cpu")
    batch = collate([TokenSequence((1, 5, 6, 7, 8), (False,) * 3 + (True,) * 2), TokenSequence((1, 9), (False, True))], model.pad_id)
    expected = transformers_scores(AutoModelForSequenceClassification.from_pretrained(bert_folder), None, batch, padded=False)
    torch.testing.assert_close(model.scores(batch).detach(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(model.scores(batch), model.scores(batch))  # dropout off, gradients on
    model.scores(batch).sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.trainable().items() if "token_type" not in name)
    with pytest.raises(ValueError, match="encoder"):
        model.values(batch)
    model.offset = 1.5
    model.save(tmp_path)
    loaded, tokenizer = AutoModelForSequenceClassification.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    torch.testing.assert_close(transformers_scores(loaded, tokenizer, batch, padded=True), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(load_reward_model(tmp_path, device="cpu").scores(batch), expected - 1.5, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reward_lora", [None, LORA], ids=["whole-reward", "adapter-reward"])
@pytest.mark.parametrize("policy_lora", [None, LORA], ids=["whole-policy", "adapter-policy"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_critic_starts_as_the_reward_model_and_trains_apart_from_it(
    folder: Path, reward_lora: LoRAConfig | None, policy_lora: LoRAConfig | None, checkpointing: bool, batch: TokenBatch
) -> None:
    reward = reward_model(folder, reward_lora)
    reward.offset = 0.75
    policy = load_policy(folder, lora=policy_lora, device="cpu", gradient_checkpointing=checkpointing)
    critic = critic_from(reward, policy)
    scores = reward.scores(batch).detach()
    torch.testing.assert_close(critic.scores(batch).detach(), scores, rtol=0, atol=0)

    assert (critic.adapter is None) == (policy_lora is None and reward_lora is None)
    assert critic.backbone.body.is_activation_checkpointing == checkpointing
    optimizer = torch.optim.SGD(critic.trainable().values(), lr=0.1)
    values = critic.values(batch).detach()
    for _ in range(2):
        optimizer.zero_grad()
        (critic.values(batch) ** 2)[batch.response_mask].sum().backward()
        optimizer.step()
    assert all(parameter.grad is not None for name, parameter in critic.trainable().items() if "lm_head" not in name)
    assert not torch.allclose(critic.values(batch)[batch.response_mask], values[batch.response_mask])
    torch.testing.assert_close(reward.scores(batch).detach(), scores, rtol=0, atol=0)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_value_head_owns_its_head_alone_and_its_gradient_reaches_the_policy(
    make_folder: Callable[..., Path], batch: TokenBatch, lora: LoRAConfig | None
) -> None:
    """From the policy's own hidden states, as a critic with the policy's trunk would have it from a pass of its own."""
    policy = load_policy(make_folder("llama"), lora=lora, device="cpu")
    critic = value_head(policy)
    assert list(critic.trainable()) == ["score.weight"]
    assert not critic.values(batch).any()
    with torch.no_grad():
        critic.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    apart = critic.values(batch)
    apart[batch.response_mask].square().sum().backward()
    expected = {name: p.grad for name, p in (policy.trainable() | critic.trainable()).items() if p.grad is not None}
    assert "score.weight" in expected
    assert len(expected) > 2
    policy.model.zero_grad(set_to_none=True)
    critic.head.zero_grad(set_to_none=True)
    together = critic.values_of(policy.hidden(batch, batch.before_response))
    torch.testing.assert_close(together[batch.response_mask], apart[batch.response_mask])
    together[batch.response_mask].square().sum().backward()
    for name, parameter in (policy.trainable() | critic.trainable()).items():
        torch.testing.assert_close(parameter.grad, expected.get(name), msg=name)
    critic.freeze()
    assert not critic.trainable()
    assert policy.trainable()


def test_critic_on_a_whole_reward_model_shares_and_freezes_it(make_folder: Callable[..., Path], batch: TokenBatch, tmp_path: Path) -> None:
    folder = make_folder("llama")
    reward = reward_model(folder)
    critic = critic_from(reward, load_policy(folder, lora=LORA, device="cpu"))
    assert critic.backbone is reward.backbone
    assert reward.trainable() == {}
    assert not reward.scores(batch).requires_grad
    reward.save(tmp_path / "reward")
    torch.testing.assert_close(load_reward_model(tmp_path / "reward", device="cpu").scores(batch), reward.scores(batch), rtol=0, atol=0)


def test_critic_needs_a_decoder_with_the_policys_tokenizer(make_folder: Callable[..., Path], bert_folder: Path) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    with pytest.raises(UserError, match="encoder"):
        critic_from(load_reward_model(bert_folder, device="cpu"), policy)
    reward = reward_model(make_folder("gpt2", unk=False))
    with pytest.raises(UserError, match="tokenizer"):
        critic_from(reward, policy)


def test_saved_reward_adapter_joins_the_policys_backbone(folder: Path, batch: TokenBatch, tmp_path: Path) -> None:
    trained = reward_model(folder, LoRAConfig(rank=2, alpha=6))
    trained.offset = 0.5
    trained.save(tmp_path)
    policy = load_policy(folder, lora=LORA, device="cpu")
    logprobs = policy.logprobs(batch)[0].detach()
    reward = load_reward_model(tmp_path, policy=policy, device="cpu")
    critic = critic_from(reward, policy)
    assert policy.backbone is reward.backbone is critic.backbone
    for role in (reward, critic):
        torch.testing.assert_close(role.scores(batch), trained.scores(batch), rtol=1e-4, atol=1e-5)
    assert torch.equal(policy.logprobs(batch)[0], logprobs)


def test_a_policys_adapter_is_no_reward_model(folder: Path, tmp_path: Path) -> None:
    policy = load_policy(folder, lora=LORA, device="cpu")
    policy.save(tmp_path)
    names = list(policy.backbone.configs)
    with pytest.raises(UserError, match="its adapter has no head; expected a trained reward model"):
        load_reward_model(tmp_path, policy=policy, device="cpu")
    assert list(policy.backbone.configs) == names


def test_reward_model_over_another_base_keeps_its_own_backbone(make_folder: Callable[..., Path], batch: TokenBatch, tmp_path: Path) -> None:
    trained = reward_model(make_folder("llama"), LORA)
    trained.save(tmp_path)
    for policy in (load_policy(make_folder("llama-tied"), lora=LORA, device="cpu"), load_policy(make_folder("llama"), device="cpu")):
        reward = load_reward_model(tmp_path, policy=policy, device="cpu")
        assert reward.backbone is not policy.backbone
        torch.testing.assert_close(reward.scores(batch), trained.scores(batch), rtol=1e-3, atol=1e-4)
