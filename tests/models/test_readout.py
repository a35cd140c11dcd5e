"""The last layer for the tokens that are read alone gives them the states and gradients that it gives them among all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from heed.models import LanguageModel, LoRAConfig, TokenBatch, collate, load_policy, new_scalar_model
from heed.models.attention import attending
from heed.models.readout import Readout
from heed.records import TokenSequence


def sequences(same_prompt: bool) -> list[TokenSequence]:
    """Rows of unequal length with prompts three times as long as their responses; two of one prompt stand together, or none."""
    prompts = [[11] * 6, [11] * 6, [12, 13, 14, 15, 16], [17, 18, 19, 20, 21, 22, 23]]
    responses = [[5, 6, 2], [7], [8, 9], [2]]
    if not same_prompt:
        prompts[1] = [30] * 6
    return [
        TokenSequence((1, *prompt, *response), (False,) * (1 + len(prompt)) + (True,) * len(response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


@pytest.fixture(params=[True, False], ids=["shared", "apart"])
def batch(request: pytest.FixtureRequest) -> TokenBatch:
    return collate(sequences(request.param), pad_id=2)


@pytest.fixture
def widths() -> Callable[[LanguageModel], list[int]]:
    """How many tokens a body's layers are given to their feed-forward parts, in the order in which they run."""

    def watch(policy: LanguageModel) -> list[int]:
        found: list[int] = []
        for name, module in policy.backbone.body.named_modules():
            if name.endswith("mlp"):
                module.register_forward_pre_hook(lambda _, args: found.append(args[0].shape[1]))
        return found

    return watch


@given(read=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_what_is_read_is_taken_and_put_back(read: list[list[bool]], seed: int) -> None:
    marked = torch.tensor(read)
    num_rows, width = marked.shape
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(num_rows, 1, width, width, generator=generator) < 0.5
    readout = Readout.of(marked, visible)
    if readout is None:
        assert 4 * marked.sum(1).max() >= 3 * width
        return
    states, alike = torch.randn(num_rows, width, 2, generator=generator, requires_grad=True), torch.randn(1, width, 2, generator=generator)
    found = readout.put(readout.take(states), width)
    assert torch.equal(found[marked], states[marked])
    (gradient,) = torch.autograd.grad((found * marked[..., None]).sum(), states)
    assert torch.equal(gradient, marked[..., None].expand_as(states).float())
    assert torch.equal(readout.put(readout.take(alike), width)[marked], alike.expand_as(states)[marked])
    positions = torch.arange(width)
    assert torch.equal(readout.take(positions[None]), readout.take(positions.expand(num_rows, -1)))
    for row, columns in enumerate(readout.take(positions[None]).tolist()):
        assert len(set(columns)) == len(columns)
        assert {*marked[row].nonzero()[:, 0].tolist()} <= {*columns}
        for i, column in enumerate(columns):
            assert torch.equal(readout.visible[row, 0, i], visible[row, 0, column])
    looking_left = Readout.of(marked)
    assert looking_left is not None
    for row, columns in enumerate(looking_left.take(positions[None]).tolist()):
        assert looking_left.visible[row, 0].sum(1).tolist() == [column + 1 for column in columns]


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, alpha=8)], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_states_and_gradients_are_those_of_the_whole_layer(
    folder: Path, lora: LoRAConfig | None, checkpointing: bool, batch: TokenBatch, widths: Callable[[LanguageModel], list[int]]
) -> None:
    policy = load_policy(folder, device="cpu", lora=lora, gradient_checkpointing=checkpointing)
    assert policy.backbone.reads_out
    assert policy.backbone.shares_prompts
    with torch.no_grad():
        for i, parameter in enumerate(policy.trainable().values()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    read = batch.before_response
    weights = torch.randn(*batch.ids.shape, 32, generator=torch.Generator().manual_seed(0))[read]
    run = widths(policy)

    def gradients(hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        found = torch.autograd.grad((hidden[read] * weights).sum(), list(policy.trainable().values()), allow_unused=True)
        return hidden[read].detach(), [g for g in found if g is not None]

    states, fast = gradients(policy.hidden(batch, read))
    assert run[:2] == [11 if torch.equal(*batch.ids[:2, 1]) else 10, 3], "the last layer is narrow"
    assert {*run} == {*run[:2]}, "also where it is run again"
    expected, slow = gradients(policy.hidden(batch))
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-4)
    assert len(fast) == len(slow) > 0
    for mine, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()) + 1e-6)


def test_log_probabilities_values_and_scores_do_not_depend_on_it(folder: Path, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(folder, device="cpu")
    critic = new_scalar_model(policy, "value", seed=1)

    def measured() -> list[Tensor]:
        logprobs, entropy = policy.logprobs(batch, with_entropy=True)
        assert entropy is not None
        return [x.detach() for x in (logprobs, entropy, critic.values(batch)[batch.response_mask], critic.scores(batch))]

    fast = measured()
    for backbone in (policy.backbone, critic.backbone):
        assert backbone.reads_out
        monkeypatch.setitem(backbone.__dict__, "reads_out", False)
    for mine, theirs in zip(fast, measured(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_under_bf16_autocast_it_is_as_near_as_bf16_is(folder: Path, batch: TokenBatch) -> None:
    policy = load_policy(folder, device="cpu")
    read = batch.before_response
    assert policy.backbone.reads_out
    exact = policy.hidden(batch).detach()[read]
    with torch.autocast("cpu", torch.bfloat16):
        near = policy.hidden(batch, read).detach().float()[read]
    torch.testing.assert_close(near, exact, rtol=0.1, atol=0.1)


def test_a_body_is_tried_in_its_own_precision_whoever_asks_first(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    rounded: list[bool] = []
    policy.backbone.body.norm.register_forward_hook(lambda *_: rounded.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        assert policy.backbone.reads_out
        assert policy.backbone.shares_prompts
    assert rounded
    assert not any(rounded)


@pytest.fixture
def queries() -> Callable[[LanguageModel], list[int]]:
    """For how many tokens a Llama's last layer computes queries, every time it does."""

    def watch(policy: LanguageModel) -> list[int]:
        found: list[int] = []
        policy.backbone.body.layers[-1].self_attn.q_proj.register_forward_hook(lambda *args: found.append(args[2].shape[1]))
        return found

    return watch


def test_where_most_is_read_the_layer_runs_once(make_folder: Callable[..., Path], queries: Callable[[LanguageModel], list[int]]) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    batch = collate(sequences(False), pad_id=2)
    assert policy.backbone.reads_out
    assert policy.backbone.shares_prompts
    run = queries(policy)
    policy.hidden(batch, batch.attention_mask)
    assert run == [10]


def test_what_the_layer_computes_for_all_is_not_computed_again(
    make_folder: Callable[..., Path], queries: Callable[[LanguageModel], list[int]]
) -> None:
    policy = load_policy(make_folder("llama"), device="cpu", gradient_checkpointing=True)
    batch = collate(sequences(False), pad_id=2)
    assert policy.backbone.reads_out
    assert policy.backbone.shares_prompts
    run = queries(policy)
    policy.logprobs(batch)[0].sum().backward()
    assert run == [10, 3, 3]


def test_layers_that_see_less_than_all_before_run_for_all(make_folder: Callable[..., Path]) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    assert not load_policy(make_folder("qwen2", **windows), device="cpu").backbone.reads_out


def test_who_chose_another_attention_has_it(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    with attending(policy.hf.config, "eager"):
        assert not policy.backbone.reads_out


def test_a_layer_that_keeps_from_its_attention_what_it_is_told_runs_for_all(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    attention = policy.backbone.body.layers[-1].self_attn

    def silent(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {name: value for name, value in options.items() if name != "readout"}

    with attention.register_forward_pre_hook(silent, with_kwargs=True):
        assert not policy.backbone.reads_out
    assert policy.hf.config._attn_implementation == "sdpa"


def test_a_body_whose_states_do_not_come_from_its_last_layer_alone_runs_it_for_all(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    norm = policy.backbone.body.norm
    with norm.register_forward_hook(lambda module, args, states: states + args[0].sum(1, keepdim=True)):
        assert not policy.backbone.reads_out


def test_an_error_in_the_layer_leaves_nothing_behind(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    policy = load_policy(make_folder("llama"), device="cpu", gradient_checkpointing=True)
    assert policy.backbone.reads_out
    layer = policy.backbone.body.layers[-1]
    expected = policy.logprobs(batch)[0]

    def fail(*_: Any) -> None:
        raise MemoryError

    for part in (layer.self_attn.q_proj, layer.mlp):
        with part.register_forward_pre_hook(fail), pytest.raises(MemoryError):
            policy.logprobs(batch)
        assert policy.hf.config._attn_implementation == "sdpa"
        assert layer.gradient_checkpointing
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks
    assert torch.equal(policy.logprobs(batch)[0], expected)
