"""A reward model as a reward: batched scoring against scoring one rollout at a time."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from heed.data.render import Renderer
from heed.errors import UserError
from heed.models.batch import collate
from heed.models.loading import load_policy
from heed.models.scalar_model import ScalarModel, new_scalar_model
from heed.records import Prompt, Rollout, TokenSequence
from heed.rewards.model import ModelReward

WORDS = [f"w{i}" for i in range(30)]


def tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "</s>", *words])}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ScalarModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    folder = tmp_path_factory.mktemp("policy")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(WORDS).save_pretrained(folder)
    return new_scalar_model(load_policy(folder, device="cpu"), "reward", seed=1)


def rollout(prompt: str, response: str, *, stop: bool = True, shift: int = 0) -> Rollout:
    """As a policy with the words of `WORDS`, rotated by `shift`, would have sampled it."""
    ids = {word: 2 + (i + shift) % len(WORDS) for i, word in enumerate(WORDS)}
    response_ids = (*(ids[word] for word in response.split()), *((1,) if stop else ()))
    return Rollout(
        Prompt(prompt),
        tuple(ids[w] for w in prompt.split()),
        response_ids,
        (0.0,) * len(response_ids),
        response,
        "stop" if stop else "length",
    )


def rollouts(shift: int = 0) -> list[Rollout]:
    lengths = [(3, 4), (1, 9), (12, 2), (2, 1), (5, 0), (4, 4), (1, 1)]
    texts = [(" ".join(WORDS[i : i + p]), " ".join(WORDS[::-1][i : i + r])) for i, (p, r) in enumerate(lengths)]
    return [rollout(p, r, stop=i != 3, shift=shift) for i, (p, r) in enumerate(texts)]


def one_by_one(model: ScalarModel, sequences: list[TokenSequence]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.scores(collate([sequence], pad_id=7)) for sequence in sequences])


@pytest.mark.parametrize("max_tokens", [1, 16, 40, 10_000])
def test_micro_batches_change_nothing(model: ScalarModel, max_tokens: int) -> None:
    scores = ModelReward(model, max_tokens=max_tokens)(rollouts())
    assert scores.dtype == torch.float32
    assert len(scores.unique()) == len(scores)
    torch.testing.assert_close(scores, one_by_one(model, [r.sequence() for r in rollouts()]), atol=1e-5, rtol=0)


def test_another_tokenizer_reads_the_text_anew(model: ScalarModel) -> None:
    reward = ModelReward(model, Renderer(model.tokenizer, eos_ids=model.eos_ids, max_length=24))
    foreign = rollouts(shift=11)
    expected = one_by_one(model, [r.sequence() for r in rollouts()])
    torch.testing.assert_close(reward(foreign), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(ModelReward(model)(foreign), expected, atol=1e-2)


def test_a_response_cut_before_any_text_is_scored_at_its_end(model: ScalarModel) -> None:
    reward = ModelReward(model, Renderer(model.tokenizer, eos_ids=model.eos_ids, max_length=24))
    cut = rollout("w1 w2", "", stop=False)
    torch.testing.assert_close(reward([cut]), one_by_one(model, [rollout("w1 w2", "").sequence()]))


def test_no_rollouts_have_no_scores(model: ScalarModel) -> None:
    assert ModelReward(model)([]).shape == (0,)


def test_what_the_reward_model_cannot_read_is_said(model: ScalarModel) -> None:
    with pytest.raises(UserError, match=r"30 tokens.*24"):
        ModelReward(model)([rollout("w1 " * 20, "w2 " * 9)])
