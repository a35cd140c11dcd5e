from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heed.core.losses import sft_loss
from heed.data.render import Renderer
from heed.errors import NonFiniteLoss, UserError
from heed.models.backbone import LoRAConfig
from heed.models.batch import collate, micro_batches
from heed.models.language_model import LanguageModel
from heed.models.loading import load_policy
from heed.records import Prompt
from heed.training import loop


@given(num_items=st.integers(1, 30), batch_size=st.integers(1, 10), epochs=st.integers(1, 4), seed=st.integers(0, 5))
def test_every_epoch_sees_every_item_once(num_items: int, batch_size: int, epochs: int, seed: int) -> None:
    batches = loop.Batches(num_items, batch_size, epochs, seed)
    for epoch in range(epochs):
        seen = [i for k in range(batches.per_epoch) for i in batches[epoch * batches.per_epoch + k]]
        assert sorted(seen) == list(range(num_items))
    again = loop.Batches(num_items, batch_size, epochs, seed)
    assert again[len(again) - 1] == batches[len(batches) - 1]


def test_epochs_differ_in_order() -> None:
    batches = loop.Batches(50, 50, 2, seed=0)
    assert batches[0] != batches[1]


def test_schedule_warms_up_peaks_and_falls() -> None:
    config = loop.TrainConfig(warmup_fraction=0.1, schedule="cosine")
    factors = [loop.schedule_factor(i, 100, config) for i in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[0] > 0
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.01
    linear = loop.TrainConfig(warmup_fraction=0.0, schedule="linear")
    assert loop.schedule_factor(50, 100, linear) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("field", "value"), [("lr", 0.0), ("batch_size", 0), ("epochs", 0), ("warmup_fraction", 1.0), ("max_grad_norm", -1)]
)
def test_a_setting_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=field):
        loop.TrainConfig(**{field: value})


def trained_once(folder: Path, renderer: Renderer, max_tokens: int) -> tuple[LanguageModel, dict[str, float]]:
    policy = load_policy(folder, device="cpu")
    texts = ["alpha beta", "red green blue one two", "good", "bad bad bad three three three delta"]
    sequences = renderer.encode_all((Prompt("one two"), text) for text in texts)
    num_tokens = sum(sum(s.response_mask) for s in sequences)
    state = loop.TrainState.create({"policy": policy}, loop.TrainConfig(lr=1e-2, warmup_fraction=0.0), 10)
    stats = loop.Stats()

    def losses(items: list[int], stats: loop.Stats) -> Iterator[Tensor]:
        batch = collate([sequences[i] for i in items], policy.pad_id, policy.device)
        loss = sft_loss(policy.logprobs(batch)[0], batch.response_mask, num_tokens)
        stats.add("loss", loss * num_tokens, batch.num_tokens)
        yield loss

    loop.update(state, micro_batches([len(s.ids) for s in sequences], max_tokens), losses, stats)
    return policy, stats.means()


def test_splitting_a_batch_into_micro_batches_changes_nothing(tiny_folder: Path, renderer: Renderer) -> None:
    whole, loss_whole = trained_once(tiny_folder, renderer, max_tokens=10_000)
    split, loss_split = trained_once(tiny_folder, renderer, max_tokens=1)
    assert loss_split["loss"] == pytest.approx(loss_whole["loss"], abs=1e-6)
    assert loss_split["grad_norm"] == pytest.approx(loss_whole["grad_norm"], rel=1e-5)
    for name, parameter in whole.trainable().items():
        torch.testing.assert_close(split.trainable()[name], parameter, atol=2e-5, rtol=1e-4)


def test_a_non_finite_loss_stops_before_any_weight_changes(policy: LanguageModel) -> None:
    state = loop.TrainState.create({"policy": policy}, loop.TrainConfig(), 10)
    before = {name: p.detach().clone() for name, p in state.parameters.items()}

    def losses(batch: int, stats: loop.Stats) -> Iterator[Tensor]:
        yield sum(p.sum() for p in policy.trainable().values()) * math.inf  # pyright: ignore[reportReturnType]

    with pytest.raises(NonFiniteLoss, match=r"policy is (nan|inf)"):
        loop.update(state, [0], losses, loop.Stats())
    assert all(torch.equal(before[name], p) for name, p in state.parameters.items())
    assert state.update == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_too_coarse_for_an_optimiser_are_refused_but_below_lora(tiny_folder: Path, dtype: str) -> None:
    config = loop.TrainConfig()
    with pytest.raises(UserError, match=f"policy are torch.{dtype}.*expected float32"):
        loop.TrainState.create({"policy": load_policy(tiny_folder, device="cpu", dtype=dtype)}, config, 10)
    adapted = load_policy(tiny_folder, device="cpu", dtype=dtype, lora=LoRAConfig(rank=2))
    assert {p.dtype for p in loop.TrainState.create({"policy": adapted}, config, 10).parameters.values()} == {torch.float32}


def test_dropout_is_drawn_from_the_seed(tiny_folder: Path, renderer: Renderer) -> None:
    def losses(seed: int) -> list[float]:
        torch.rand(1)  # whatever was drawn before
        policy = load_policy(tiny_folder, device="cpu", lora=LoRAConfig(rank=2, dropout=0.5))
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.normal_(generator=torch.Generator().manual_seed(0))
        loop.TrainState.create({"policy": policy}, loop.TrainConfig(seed=seed), 10)
        batch = collate(renderer.encode_all([(Prompt("one two"), "red green")]), policy.pad_id)
        return [float(policy.logprobs(batch)[0].detach().sum()) for _ in range(3)]

    assert losses(1) == losses(1) != losses(2)
    assert len(set(losses(1))) == 3


def test_forwards_are_cast_and_backward_passes_keep_what_they_had(policy: LanguageModel) -> None:
    state = loop.TrainState.create({"policy": policy}, loop.TrainConfig(precision="bf16", warmup_fraction=0.0), 10)
    seen: list[tuple[str, bool]] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            seen.append(("forward", torch.is_autocast_enabled("cpu")))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            seen.append(("backward", torch.is_autocast_enabled("cpu")))
            return grads[0]

    def losses(batch: int, stats: loop.Stats) -> Iterator[Tensor]:
        for _ in range(2):
            yield Watched.apply(sum(p.sum() for p in policy.trainable().values()))  # pyright: ignore[reportReturnType]

    loop.update(state, [0], losses, loop.Stats())
    assert seen == 2 * [("forward", True), ("backward", False)]


def test_agreement_is_with_what_people_preferred_and_leaves_their_ties_out() -> None:
    stats = loop.Stats()
    stats.add_agreement(torch.tensor([2.0, -1.0, 0.0, 5.0]), torch.tensor([1.0, 0.8, 0.9, 0.5]))
    stats.add_agreement(torch.tensor([-3.0, 1.0]), torch.tensor([0.0, 0.2]))
    assert stats.means() == pytest.approx({"accuracy": (1 + 0 + 0.5 + 1 + 0) / 5, "margin": (2 - 1 + 0 + 3 - 1) / 5})


def test_stats_are_means_over_what_was_counted() -> None:
    stats = loop.Stats()
    stats.add("x", torch.tensor(6.0), 2)
    stats.add("x", 0.0, torch.tensor(1))
    assert stats.means() == {"x": pytest.approx(2.0)}
