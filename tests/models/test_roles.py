"""Roles that share a backbone train as if each had a model to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from heed.models import LanguageModel, LoRAConfig, ScalarModel, TokenBatch, critic_from, load_policy, new_scalar_model
from heed.models.role import CPU_TOKENS, GPU_TOKENS, micro_batch_tokens

Roles = tuple[LanguageModel, ScalarModel, ScalarModel]
CHECKPOINTING = pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])


def roles(folder: Path, *, checkpointing: bool = False) -> Roles:
    """A policy, a value model and a reward model on one backbone, each with its own random adapter."""
    policy = load_policy(folder, lora=LoRAConfig(rank=4, alpha=8), device="cpu", gradient_checkpointing=checkpointing)
    value, reward = new_scalar_model(policy, "value", seed=1), new_scalar_model(policy, "reward", seed=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for role in (policy, value, reward):
            for parameter in role.trainable().values():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy, value, reward


def losses(found: Roles, batch: TokenBatch) -> Iterator[Callable[[], Tensor]]:
    policy, value, reward = found
    yield lambda: policy.logprobs(batch)[0].sum()
    yield lambda: (value.values(batch) ** 2)[batch.response_mask].sum()
    yield lambda: (reward.scores(batch) ** 3).sum()


def gradients_held_apart(folder: Path, role: LanguageModel | ScalarModel, batch: TokenBatch) -> dict[str, Tensor]:
    """The gradients of the role's loss in a model of its own: peft's wrapper, rows one by one without padding."""
    base: Any = AutoModelForCausalLM.from_pretrained(folder)
    conv = type(base).__name__.startswith("GPT2")
    wrapped = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", fan_in_fan_out=conv))
    base.eval()
    own = dict(base.named_parameters())
    names = {
        name: name.replace(f".{role.adapter}.", ".default.") for name in role.trainable() if name in base.state_dict() or "lora" in name
    }
    head = nn.Linear(32, 1, bias=False)
    with torch.no_grad():
        for name, parameter in role.trainable().items():
            (head.weight if name == "score.weight" else own[names[name]]).copy_(parameter)
    total = torch.zeros(())
    for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
        ids, mask = batch.ids[row, :length], batch.response_mask[row, :length]
        if isinstance(role, LanguageModel):
            logprobs = torch.log_softmax(wrapped(ids[None]).logits[0], -1)
            total = total + sum(logprobs[t - 1, ids[t]] for t in range(1, length) if mask[t])
            continue
        outputs = head(wrapped(ids[None], output_hidden_states=True).hidden_states[-1][0]).squeeze(-1)
        if role.adapter == "value":
            total = total + sum(outputs[t - 1] ** 2 for t in range(1, length) if mask[t])
        else:
            total = total + outputs[int(mask.nonzero().max())] ** 3
    total.backward()
    found = {name: own[ours].grad for name, ours in names.items()} | (
        {"score.weight": head.weight.grad} if len(names) < len(role.trainable()) else {}
    )
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def check(folder: Path, found: Roles, batch: TokenBatch) -> None:
    for role in found:
        expected = gradients_held_apart(folder, role, batch)
        assert expected.keys() == role.trainable().keys()
        for name, parameter in role.trainable().items():
            assert parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, expected[name], rtol=2e-3, atol=1e-4 * expected[name].abs().max().item() + 1e-6)


@CHECKPOINTING
def test_gradients_of_each_role_are_those_of_a_model_of_its_own(folder: Path, batch: TokenBatch, checkpointing: bool) -> None:
    found = roles(folder, checkpointing=checkpointing)
    for loss in losses(found, batch):
        loss().backward()
    check(folder, found, batch)


@CHECKPOINTING
def test_roles_may_alternate_between_a_forward_and_its_backward(
    make_folder: Callable[..., Path], batch: TokenBatch, checkpointing: bool
) -> None:
    folder = make_folder("qwen3")
    found = roles(folder, checkpointing=checkpointing)
    reference = found[0].reference()
    pending = [loss() for loss in losses(found, batch)]
    with torch.no_grad():
        reference.logprobs(batch)
        found[0].scores(batch) if isinstance(found[0], ScalarModel) else found[0].logprobs(batch)
    for loss in pending:
        loss.backward()
    check(folder, found, batch)


def test_an_update_of_one_role_moves_no_other(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    found = roles(make_folder("llama"))
    policy, value, reward = found
    with torch.no_grad():
        before = policy.logprobs(batch)[0], reward.scores(batch)
    base = {name: tensor.clone() for name, tensor in policy.model.state_dict().items() if "lora_" not in name}
    optimizer = torch.optim.SGD(value.trainable().values(), lr=0.1)
    (value.values(batch) ** 2)[batch.response_mask].sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(policy.logprobs(batch)[0], before[0])
        assert torch.equal(reward.scores(batch), before[1])
    assert all(torch.equal(policy.model.state_dict()[name], tensor) for name, tensor in base.items())


def test_roles_share_the_base_weights_and_nothing_else(make_folder: Callable[..., Path]) -> None:
    policy, value, reward = roles(make_folder("llama"))
    critic = critic_from(reward, policy)
    assert policy.backbone is value.backbone is reward.backbone is critic.backbone
    owned = [id(p) for role in (policy, value, reward, critic) for p in role.trainable().values()]
    assert len(owned) == len(set(owned))
    assert {id(p) for p in policy.model.parameters() if p.requires_grad} <= set(owned)


def test_whole_models_share_nothing(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    value = new_scalar_model(policy, "value", seed=0)
    reference = policy.reference()
    logprobs = policy.logprobs(batch)[0].detach()
    storages = [{p.data_ptr() for p in role.model.parameters()} for role in (policy, value, reference)]
    assert not storages[0] & storages[1]
    assert not storages[0] & storages[2]
    (value.values(batch) ** 2).sum().backward()
    torch.optim.SGD(value.trainable().values(), lr=1.0).step()
    assert torch.equal(policy.logprobs(batch)[0], logprobs)


def test_a_frozen_role_stays_frozen_when_others_act(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    policy, value, reward = roles(make_folder("llama"))
    adapter = reward.backbone.parameters("reward").values()
    reward.freeze()
    for role_loss in (lambda: policy.logprobs(batch)[0].sum(), lambda: value.values(batch).sum()):
        role_loss().backward()
        reward.scores(batch)
    assert reward.trainable() == {}
    assert not any(parameter.requires_grad for parameter in adapter)
    assert not reward.scores(batch).requires_grad


def test_the_third_role_of_a_kind_gets_a_name_of_its_own(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), lora=LoRAConfig(rank=2), device="cpu")
    names = [new_scalar_model(policy, "value", seed=i).adapter for i in range(3)]
    assert names == ["value", "value2", "value3"]


def test_micro_batches_of_larger_models_hold_fewer_tokens_on_a_cpu_but_never_too_few_for_its_products() -> None:
    sizes = [(2, 64), (4, 256), (8, 320), (12, 768), (16, 2048), (80, 8192)]
    budgets = [micro_batch_tokens("cpu", layers, width) for layers, width in sizes]
    assert budgets == sorted(budgets, reverse=True)
    assert (budgets[0], budgets[-1]) == (CPU_TOKENS, CPU_TOKENS // 2)
    assert all(tokens * layers * width <= 2**20 for tokens, (layers, width) in zip(budgets[:2], sizes, strict=False))
    assert micro_batch_tokens("cuda", 80, 8192) == GPU_TOKENS


def test_a_budget_that_is_told_is_kept(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    assert policy.token_budget(None) == CPU_TOKENS
    assert policy.token_budget(7) == 7
