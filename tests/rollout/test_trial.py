"""Models whose attention is unlike that of others are sampled from by their own, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DeepseekV2Config, DiffLlamaConfig, FalconConfig, GPTNeoConfig, NemotronConfig

from heed.errors import UserError
from heed.models.language_model import LanguageModel
from heed.records import Prompt, Sampling
from heed.rollout import local, trial
from heed.rollout.local import LocalEngine
from heed.rollout.trial import replaces_attention, takes_cache
from tests.rollout import conftest
from tests.rollout.test_local import recomputed_logprobs

LATENT = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 4, "n_routed_experts": 4}
LOCAL = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 20}
ELSEWISE: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "diffllama": (DiffLlamaConfig, {}),  # halves of its values change places
    "nemotron": (NemotronConfig, {}),  # its layers keep what they are told from their attention
    "deepseek_v2": (DeepseekV2Config, {**LATENT, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2}),
    "falcon": (FalconConfig, {"alibi": True, "new_decoder_architecture": False}),
    "gpt_neo": (GPTNeoConfig, LOCAL),
}


@pytest.fixture
def make_elsewise(make_policy: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], LanguageModel]:
    def make(family: str) -> LanguageModel:
        config, changes = ELSEWISE[family]

        def configured(**settings: Any) -> Any:
            refused = ("head_dim", "num_key_value_heads") if family in ("falcon", "deepseek_v2") else ()
            return config(**{name: value for name, value in settings.items() if name not in refused} | changes)

        monkeypatch.setitem(conftest.FAMILIES, family, configured)
        return make_policy(family)

    return make


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("family", ["diffllama", "nemotron", "deepseek_v2"])
def test_attention_that_does_not_fit_is_left_to_the_model(
    family: str, n: int, make_elsewise: Callable[[str], LanguageModel], make_engine: Callable[..., LocalEngine], prompts: list[Prompt]
) -> None:
    policy = make_elsewise(family)
    assert not replaces_attention(policy)
    rollouts = make_engine(policy, max_rows=5).generate(prompts, Sampling(12), n)
    for rollout, logprobs in zip(rollouts, recomputed_logprobs(policy, rollouts), strict=True):
        assert rollout.logprobs == pytest.approx(logprobs.tolist(), abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "mistral"])
def test_attention_that_fits_is_taken_and_tried_once(
    family: str, make_policy: Callable[..., LanguageModel], make_engine: Callable[..., LocalEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(family)
    assert takes_cache(policy)
    assert replaces_attention(policy)
    monkeypatch.setattr(trial, "_decode", lambda *_: pytest.fail("tried again"))
    make_engine(policy).generate([Prompt("w5 w6")], Sampling(2), 2)


def test_alibi_is_refused_before_anything_is_sampled(
    make_elsewise: Callable[[str], LanguageModel], make_engine: Callable[..., LocalEngine]
) -> None:
    policy = make_elsewise("falcon")
    assert not policy.backbone.shares_prompts
    with pytest.raises(UserError, match="cannot sample from FalconModel; expected a transformer such as Llama"):
        make_engine(policy)


def test_a_window_is_not_shared_by_what_lies_side_by_side(make_elsewise: Callable[[str], LanguageModel]) -> None:
    policy = make_elsewise("gpt_neo")
    assert not policy.backbone.shares_prompts
    assert not policy.backbone.reads_out
    assert local._context_length(policy) == 20


def test_what_a_device_cannot_do_is_not_held_against_the_model(
    make_policy: Callable[..., LanguageModel], make_engine: Callable[..., LocalEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy("llama").reference()

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(trial, "_decode", full)
        for attempt in (takes_cache, replaces_attention, make_engine):
            with pytest.raises(torch.OutOfMemoryError):
                attempt(policy)
    assert takes_cache(policy)
    assert replaces_attention(policy)
