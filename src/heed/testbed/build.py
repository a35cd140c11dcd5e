"""Rebuild the base model that comes with the package: `python -m heed.testbed.build [FOLDER]`.

One seed and one thread: the same machine writes the same weights again.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from heed.data.render import Renderer
from heed.models.loading import load_policy
from heed.records import Demonstration
from heed.testbed import model_path
from heed.testbed.datasets import load
from heed.testbed.tokenizer import build_tokenizer
from heed.training.run import Run
from heed.training.sft import SFTConfig, train_sft

SEED = 0
CONTEXT_LENGTH = 512
PRETRAINING = SFTConfig(
    lr=3e-3, batch_size=16, max_tokens=512, epochs=1, weight_decay=0.1, warmup_fraction=0.05, precision="fp32", seed=SEED
)


def build(folder: Path, corpus: list[Demonstration], config: SFTConfig = PRETRAINING) -> dict[str, float]:
    """Train tokenizer and base model on a corpus, and put them in place of the folder; returns the final metrics."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
        fresh, trained, run_folder = (Path(temporary) / name for name in ("fresh", "trained", "run"))
        tokenizer = build_tokenizer(_texts(corpus), CONTEXT_LENGTH)
        fresh_model(tokenizer, config.seed).save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        policy = load_policy(fresh, device="cpu")
        renderer = Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=CONTEXT_LENGTH)
        with Run(run_folder, label="pretraining") as run:
            metrics = train_sft(policy, renderer, corpus, config, run)
        policy.save(trained)
        if folder.exists():
            os.replace(folder, Path(temporary) / "replaced")
        os.replace(trained, folder)
    return metrics


def fresh_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of 0.8M parameters with random weights."""
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.06,
        **tokens,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, max_new_tokens=64, **tokens)
    return model


def _texts(corpus: list[Demonstration]) -> list[str]:
    return [text for d in corpus for text in (*(m.content for m in d.prompt.text if not isinstance(m, str)), d.response)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else model_path()
    print(f"{target}: {build(target, load('corpus', SEED))}")
