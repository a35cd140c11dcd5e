from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from heed.errors import UserError
from heed.models import LanguageModel, LoRAConfig, TokenBatch, collate, critic_from, load_policy, new_scalar_model
from heed.models.role import context_length
from heed.records import TokenSequence
from tests.models.conftest import FAMILIES, word_tokenizer

LORA = LoRAConfig(rank=4, alpha=8)
MODES = pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])


def naive_logprobs(model: Any, batch: TokenBatch) -> Tensor:
    """Each row alone and unpadded, through transformers' own head and log-softmax."""
    found = torch.zeros(batch.ids.shape)
    for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
        with torch.no_grad():
            logits = model(batch.ids[row : row + 1, :length], use_cache=False).logits[0]
        for t in range(1, length):
            if batch.response_mask[row, t]:
                found[row, t] = torch.log_softmax(logits[t - 1].float(), -1)[batch.ids[row, t]]
    return found


def update(model: Any, batch: TokenBatch, seed: int = 0) -> None:
    """Move every trainable weight, B of an adapter included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def snapshot(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_logprobs_equal_transformers_on_each_row_alone(folder: Path, batch: TokenBatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    policy = load_policy(folder, device="cpu")
    assert policy.context_length == 48
    logprobs, entropy = policy.logprobs(batch)
    torch.testing.assert_close(logprobs.detach(), naive_logprobs(model, batch), rtol=1e-4, atol=1e-5)
    assert entropy is None


def test_temperature_and_entropy_are_those_of_the_scaled_distribution(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    logprobs, entropy = policy.logprobs(batch, temperature=0.5, with_entropy=True)
    assert entropy is not None
    distribution = torch.log_softmax(policy.hf(batch.ids[:1, :4]).logits[0, 3] / 0.5, -1)
    torch.testing.assert_close(logprobs[0, 4], distribution[8])
    torch.testing.assert_close(entropy[0, 4], -(distribution.exp() * distribution).sum())


def test_real_model_ends_with_two_ids_and_pads_with_one_of_them(stories260k: Path) -> None:
    policy = load_policy(stories260k, device="cpu")
    assert policy.eos_ids == (1, 2)
    assert policy.pad_id in policy.eos_ids
    assert policy.context_length == 512
    ids = tuple(policy.tokenizer("Once upon a time")["input_ids"])
    rows = [(*ids, 1), (*ids[:3], 2, 2)]
    batch = collate([TokenSequence(row, tuple(t >= 2 for t in range(len(row)))) for row in rows], policy.pad_id)
    model = AutoModelForCausalLM.from_pretrained(stories260k)
    torch.testing.assert_close(policy.logprobs(batch)[0].detach(), naive_logprobs(model, batch), rtol=1e-4, atol=1e-5)


@MODES
def test_dropout_in_the_configuration_never_acts_and_is_saved_as_it_was(
    make_folder: Callable[..., Path], batch: TokenBatch, lora: LoRAConfig | None, tmp_path: Path
) -> None:
    policy = load_policy(make_folder("gpt2"), lora=lora, device="cpu")
    first = policy.logprobs(batch)[0].detach()
    with torch.no_grad():
        assert torch.equal(first, policy.logprobs(batch)[0])
    assert torch.equal(first, policy.logprobs(batch)[0].detach())
    policy.save(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.resid_pdrop == 0.5


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast"])
def test_an_activation_that_is_written_out_runs_as_one_kernel_and_is_saved_as_it_was(
    make_folder: Callable[..., Path], batch: TokenBatch, activation: str, tmp_path: Path
) -> None:
    folder = make_folder("gpt2", activation_function=activation, resid_pdrop=0.0, attn_pdrop=0.0)
    policy, written_out = load_policy(folder, device="cpu"), cast(Any, AutoModelForCausalLM.from_pretrained(folder))
    states = torch.linspace(-8, 8, 1000)
    kernel, formula = policy.backbone.body.h[0].mlp.act, written_out.transformer.h[0].mlp.act
    assert torch.equal(kernel(states), torch.nn.functional.gelu(states, approximate="tanh"))
    torch.testing.assert_close(kernel(states), formula(states), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(policy.model(batch.ids).logits, written_out(batch.ids).logits, rtol=1e-4, atol=1e-4)
    assert policy.model.config.activation_function == activation
    policy.save(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.activation_function == activation


def test_lora_dropout_acts_only_while_gradients_are_recorded(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    policy = load_policy(make_folder("llama"), lora=LoRAConfig(rank=4, dropout=0.5), device="cpu")
    update(policy, batch)
    with torch.no_grad():
        still = policy.logprobs(batch)[0]
        assert torch.equal(still, policy.logprobs(batch)[0])
    assert not torch.allclose(policy.logprobs(batch)[0], policy.logprobs(batch)[0])


@MODES
def test_trainable_weights(folder: Path, lora: LoRAConfig | None) -> None:
    policy = load_policy(folder, lora=lora, device="cpu")
    own = policy.trainable()
    assert all(parameter.requires_grad for parameter in own.values())
    if lora is None:
        assert {id(p) for p in own.values()} == {id(p) for p in policy.model.parameters()}
    else:
        assert {id(p) for p in own.values()} == {id(p) for p in policy.model.parameters() if p.requires_grad}
        assert all(".lora_A.policy." in name or ".lora_B.policy." in name for name in own)
        # Every linear layer of the body has an adapter: A and B.
        plain = load_policy(folder, device="cpu").backbone.body
        linear = [m for m in plain.modules() if type(m).__name__ in ("Linear", "Conv1D")]
        assert len(own) == 2 * len(linear)


def test_a_new_adapter_changes_nothing_and_its_seed_decides_its_values(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    folder = make_folder("llama")
    plain = load_policy(folder, device="cpu").logprobs(batch)[0]
    first, again, other = (load_policy(folder, lora=LoRAConfig(rank=4, seed=seed), device="cpu") for seed in (3, 3, 4))
    assert torch.equal(first.logprobs(batch)[0], plain)
    assert all(torch.equal(a, b) for a, b in zip(first.state().values(), again.state().values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.state().values(), other.state().values(), strict=True))


def test_named_target_layers_only(make_folder: Callable[..., Path]) -> None:
    targets: list[str | tuple[str, ...]] = [("q_proj", "v_proj"), "q_proj", ("layers.1.mlp.up_proj",)]
    expected = [{"q_proj", "v_proj"}, {"q_proj"}, {"up_proj"}]
    for target, layers in zip(targets, expected, strict=True):
        policy = load_policy(make_folder("llama"), lora=LoRAConfig(rank=2, target=target), device="cpu")
        assert {name.split(".")[4] for name in policy.trainable()} == layers
        policy.backbone.add("value", 0)
    for wrong in (("q_proj", "v_porj"), ("proj",), "lm_head"):
        with pytest.raises(UserError, match=r"lora\.target is '(v_porj|proj|lm_head)'; expected all-linear, or names among down_proj"):
            load_policy(make_folder("llama"), lora=LoRAConfig(rank=2, target=wrong), device="cpu")


@MODES
def test_state_restores_the_policy_exactly(folder: Path, lora: LoRAConfig | None, batch: TokenBatch) -> None:
    policy = load_policy(folder, lora=lora, device="cpu")
    update(policy, batch)
    saved = {name: tensor.clone() for name, tensor in policy.state().items()}
    fresh = load_policy(folder, lora=lora, device="cpu")
    fresh.load_state(saved)
    assert torch.equal(fresh.logprobs(batch)[0], policy.logprobs(batch)[0])


def test_state_of_another_model_is_refused(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    state = policy.state()
    del state["lm_head.weight"]
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        policy.load_state(state)


@MODES
def test_checkpointing_changes_no_gradient(folder: Path, lora: LoRAConfig | None, batch: TokenBatch) -> None:
    grads = []
    for checkpointing in (False, True):
        policy = load_policy(folder, lora=lora, device="cpu", gradient_checkpointing=checkpointing)
        update(policy, batch)
        policy.logprobs(batch)[0].sum().backward()
        grads.append({name: parameter.grad for name, parameter in policy.trainable().items()})
    assert any(gradient.abs().max() > 0.1 for gradient in grads[0].values())
    for name, gradient in grads[0].items():
        assert torch.equal(gradient, grads[1][name]), name


@pytest.mark.parametrize("run_before", [False, True])
def test_copies_of_a_checkpointed_model_recompute_as_themselves(
    make_folder: Callable[..., Path], batch: TokenBatch, run_before: bool
) -> None:
    grads = []
    for checkpointing in (False, True):
        policy = load_policy(make_folder("llama"), device="cpu", gradient_checkpointing=checkpointing)
        if run_before:
            policy.logprobs(batch)[0].sum().backward()
        reference, reward_model = policy.reference(), new_scalar_model(policy, "reward", 0)
        critic = critic_from(reward_model, policy)
        assert torch.equal(reference.logprobs(batch)[0], policy.logprobs(batch)[0])
        assert critic.backbone.body.is_activation_checkpointing == reward_model.backbone.body.is_activation_checkpointing == checkpointing
        reward_model.scores(batch).square().sum().backward()
        critic.values(batch)[batch.response_mask].square().sum().backward()
        grads.append([p.grad for role in (reward_model, critic) for name, p in role.trainable().items() if "lm_head" not in name])
    for kept, recomputed in zip(*grads, strict=True):
        assert torch.equal(kept, recomputed)


def test_checkpointing_really_recomputes(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    calls = []
    for checkpointing in (False, True):
        policy = load_policy(make_folder("llama"), device="cpu", gradient_checkpointing=checkpointing)
        assert policy.backbone.shares_prompts
        assert policy.backbone.reads_out  # both take some calls of their own to find out
        seen: list[int] = []
        policy.backbone.body.layers[0].self_attn.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        policy.logprobs(batch)[0].sum().backward()
        calls.append(len(seen))
    assert calls == [1, 2]


def test_hf_keeps_its_cache_under_checkpointing(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    policy = load_policy(make_folder("llama"), device="cpu", gradient_checkpointing=True)
    policy.logprobs(batch)
    model = policy.hf
    prefix = model(batch.ids[:1, :4], use_cache=True)
    step = model(batch.ids[:1, 4:5], past_key_values=prefix.past_key_values, use_cache=True)
    torch.testing.assert_close(step.logits[0, 0], policy.hf(batch.ids[:1, :5]).logits[0, 4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
@MODES
def test_reference_is_the_policy_as_it_was(folder: Path, lora: LoRAConfig | None, learned: bool, batch: TokenBatch) -> None:
    policy = load_policy(folder, lora=lora, device="cpu")
    if learned:
        update(policy, batch)
    before = policy.logprobs(batch)[0].detach()
    reference = policy.reference()
    assert reference.trainable() == {}
    torch.testing.assert_close(reference.logprobs(batch)[0], before, rtol=0, atol=0)
    assert not reference.logprobs(batch)[0].requires_grad

    assert all(parameter.requires_grad for parameter in policy.trainable().values())
    optimizer = torch.optim.SGD(policy.trainable().values(), lr=0.1)
    for _ in range(2):  # B moves first, then A
        optimizer.zero_grad()
        reference.logprobs(batch)
        (-policy.logprobs(batch)[0].sum()).backward()
        optimizer.step()
    assert not torch.allclose(policy.logprobs(batch)[0], before)
    torch.testing.assert_close(reference.logprobs(batch)[0], before, rtol=0, atol=0)


def test_lora_reference_holds_no_second_copy_of_the_weights(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), lora=LORA, device="cpu")
    assert policy.reference().model is policy.model


@MODES
def test_saved_policy_loads_in_transformers_with_equal_outputs(
    folder: Path, lora: LoRAConfig | None, batch: TokenBatch, tmp_path: Path
) -> None:
    policy = load_policy(folder, lora=lora, device="cpu")
    update(policy, batch)
    logprobs, weights = policy.logprobs(batch)[0].detach(), snapshot(policy.model)
    policy.save(tmp_path)

    after = policy.model.state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in weights | after)
    assert torch.equal(policy.logprobs(batch)[0], logprobs)

    auto: Any = AutoModelForCausalLM
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(loaded) is type(policy.model)
    torch.testing.assert_close(naive_logprobs(loaded, batch), logprobs, rtol=1e-3, atol=1e-4)
    padded = loaded(batch.ids, attention_mask=batch.attention_mask.long()).logits
    torch.testing.assert_close(padded[batch.attention_mask], policy.hf(batch.ids).logits[batch.attention_mask], rtol=1e-3, atol=1e-4)
    again = load_policy(tmp_path, device="cpu")
    torch.testing.assert_close(again.logprobs(batch)[0].detach(), logprobs, rtol=1e-3, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path)("w5 w6")["input_ids"] == policy.tokenizer("w5 w6")["input_ids"]
    assert not list(tmp_path.glob(".saving-*"))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_adapters_of_experts_are_saved_merged(make_folder: Callable[..., Path], family: str, batch: TokenBatch, tmp_path: Path) -> None:
    policy = load_policy(make_folder(family), lora=LORA, device="cpu")
    assert any(".experts." in name for name in policy.trainable())
    before = policy.logprobs(batch)[0].detach()
    update(policy, batch)
    logprobs = policy.logprobs(batch)[0].detach()
    assert (logprobs - before).abs().max() > 0.01
    policy.save(tmp_path)
    again = load_policy(tmp_path, device="cpu")
    torch.testing.assert_close(again.logprobs(batch)[0].detach(), logprobs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(policy.logprobs(batch)[0].detach(), logprobs, rtol=0, atol=0)


@MODES
def test_weights_in_bf16_of_a_family_that_turns_in_fp32(
    make_folder: Callable[..., Path], lora: LoRAConfig | None, batch: TokenBatch
) -> None:
    policy = load_policy(make_folder("olmo2"), lora=lora, device="cpu", dtype="bfloat16")
    with torch.no_grad():
        found = policy.logprobs(batch)[0]
        own = naive_logprobs(policy.hf, batch)
    torch.testing.assert_close(found, own, rtol=0.05, atol=0.1)


def test_padding_that_has_no_embedding_is_not_used(make_folder: Callable[..., Path], batch: TokenBatch, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_folder("llama"), tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    policy = load_policy(folder, device="cpu")
    assert policy.tokenizer.pad_token_id == len(policy.head()[0])
    assert policy.pad_id == min(policy.eos_ids)
    policy.logprobs(collate(batch.sequences(), policy.pad_id))


def test_longrope_goes_as_far_as_its_first_scale(make_folder: Callable[..., Path]) -> None:
    """Beyond it one long row would change all others of its batch."""
    scales = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 20}
    kind, sizes = FAMILIES["llama"]
    config = kind(**sizes, rope_parameters=scales | {"factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4})
    tokenizer = word_tokenizer()
    assert context_length(config, tokenizer) == 20
    assert context_length(kind(**sizes), tokenizer) == 48
    assert context_length(kind(**sizes, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), tokenizer) == 48


def test_adapter_apart_loads_in_peft_over_the_base(folder: Path, batch: TokenBatch, tmp_path: Path) -> None:
    policy = load_policy(folder, lora=LORA, device="cpu")
    update(policy, batch)
    policy.save(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(tmp_path / "adapter"))
    torch.testing.assert_close(naive_logprobs(loaded, batch), policy.logprobs(batch)[0].detach(), rtol=1e-4, atol=1e-5)


def test_adapter_folder_is_a_policy_with_the_adapter_merged(make_folder: Callable[..., Path], batch: TokenBatch, tmp_path: Path) -> None:
    policy = load_policy(make_folder("qwen3"), lora=LORA, device="cpu")
    update(policy, batch)
    policy.save(tmp_path / "first")
    for lora in (None, LORA):
        again = load_policy(tmp_path / "first" / "adapter", lora=lora, device="cpu")
        torch.testing.assert_close(again.logprobs(batch)[0], policy.logprobs(batch)[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(again.reference().logprobs(batch)[0], again.logprobs(batch)[0].detach(), rtol=0, atol=0)
    # Its base is nowhere on disk on its own, so an adapter over it is saved merged only.
    again.save(tmp_path / "second")
    assert not (tmp_path / "second" / "adapter").exists()


def test_every_end_token_is_saved(stories260k: Path, tmp_path: Path) -> None:
    for lora in (None, LORA):
        policy = load_policy(stories260k, lora=lora, device="cpu")
        policy.save(tmp_path)
        assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [1, 2]
        assert load_policy(tmp_path, device="cpu").eos_ids == (1, 2)


def test_end_token_of_the_tokenizer_alone_is_saved_too(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    policy = load_policy(make_folder("llama", max_position_embeddings=40), device="cpu")
    assert policy.eos_ids == (2,)
    policy.eos_ids = (2, 7)
    policy.save(tmp_path)
    assert load_policy(tmp_path, device="cpu").eos_ids == (2, 7)


def test_chat_template_is_saved(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    policy.save(tmp_path)
    assert load_policy(tmp_path, device="cpu").tokenizer.chat_template == policy.tokenizer.chat_template


def test_saving_again_leaves_no_weights_of_before(make_folder: Callable[..., Path], batch: TokenBatch, tmp_path: Path) -> None:
    load_policy(make_folder("llama"), lora=LORA, device="cpu").save(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    (tmp_path / "metrics.jsonl").write_text("kept")
    whole: LanguageModel = load_policy(make_folder("llama"), device="cpu")
    update(whole, batch)
    whole.save(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == "kept"
    assert torch.equal(load_policy(tmp_path, device="cpu").logprobs(batch)[0], whole.logprobs(batch)[0])
