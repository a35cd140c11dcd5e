"""heed on one CUDA device, without the peers, data or downloads; `gpu.sh` runs all parts.

    python benchmarks/gpu.py rollout-64 | rollout-512 | reward-model | dpo | ppo

A Llama in the shape of 1B parameters with random weights in bf16 (in float32 where whole models are trained, whose products are in bf16),
prompts of made-up words, and the tokenizer that heed ships. Each part warms up once and times what follows; as soon as it is measured, each
side is a line of JSON with the card's name, tokens a second, the most memory that PyTorch held of the device, and the share of its bf16
matrix products. `rollout-*` also times heed without graphs and transformers' `generate` on the same prompts, and gives the share of the
memory's bandwidth: each step reads all weights once, and of every row the keys and values so far. `--device cpu --shape 7m` tries it
without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from flops import TRAINING, Flops
from heed_side import TimedRun
from inputs import FOLDER, left_padded, shape_config
from measure import Meter
from results import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from heed.data.render import Renderer
from heed.models import LanguageModel, LoRAConfig, critic_from, load_policy, new_scalar_model
from heed.records import PreferencePair, Prompt, Sampling
from heed.rewards.model import ModelReward
from heed.rollout import LocalEngine
from heed.rollout.cache import cache_bytes_per_token
from heed.training.dpo import DPOConfig, train_dpo
from heed.training.ppo import PPOConfig, train_ppo
from heed.training.reward_model import RewardModelConfig, train_reward_model

PROMPT_TOKENS, NEW_TOKENS = 256, 128
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family", "student")


class Bench:
    """The model of one part, and what it is asked to do."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.scale = options.device, options.scale
        self.folder = model_folder(options.shape, options.device)
        self.words = random.Random(0)

    def policy(self, lora: LoRAConfig | None = None, *, dtype: str = "bfloat16") -> LanguageModel:
        return load_policy(self.folder, device=self.device, dtype=dtype, lora=lora)

    def renderer(self, policy: LanguageModel) -> Renderer:
        return Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=1024, max_prompt_length=PROMPT_TOKENS)

    def text(self, words: int) -> str:
        return " ".join(self.words.choices(WORDS, k=words))

    def pairs(self, count: int) -> list[PreferencePair]:
        return [PreferencePair(Prompt(self.text(60)), self.text(30), self.text(30)) for _ in range(count)]

    def rollout(self, rows: int) -> Iterator[tuple[str, dict[str, float]]]:
        rows //= self.scale
        policy, prompts = self.policy(), [Prompt(self.text(80)) for _ in range(rows)]
        renderer = self.renderer(policy)
        engine = LocalEngine(policy, renderer, seed=0, max_rows=rows)
        ids = [list(each) for each in renderer.encode_prompts(prompts)]
        config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=list(policy.eos_ids))
        batch = {name: tensor.to(self.device) for name, tensor in left_padded(ids, 0).items()}

        def sample() -> int:
            return sum(len(rollout.response_ids) for rollout in engine.generate(prompts, Sampling(max_new_tokens=NEW_TOKENS)))

        flops = Flops.of(policy.model.config)
        needed = sum(flops.language_model(len(each), [NEW_TOKENS]) for each in ids)
        cached = sum(NEW_TOKENS * len(each) + NEW_TOKENS * (NEW_TOKENS - 1) / 2 for each in ids)
        weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
        read = NEW_TOKENS * weights + cached * cache_bytes_per_token(policy)
        rate = bandwidth(self.device)

        def measured(work: Callable[[], int]) -> dict[str, float]:
            row = self.row(*self.timed(work), needed)
            return row | {"share_of_bandwidth": read / row["seconds"] / rate, "gb_per_second": rate / 1e9}

        yield "heed", measured(sample)
        engine.graphs = False
        yield "without_graphs", measured(sample)
        start = len(batch["input_ids"][0])
        yield "generate", measured(lambda: policy.hf.generate(**batch, generation_config=config)[:, start:].numel())

    def timed(self, work: Callable[[], int]) -> tuple[int, float, float]:
        """Tokens, seconds and peak memory of the second of two calls."""
        work()
        synchronize(self.device, reset=True)
        start = time.perf_counter()
        tokens = work()
        synchronize(self.device)
        return tokens, time.perf_counter() - start, peak_gb(self.device)

    def row(self, tokens: float, seconds: float, peak: float, flops: float) -> dict[str, float]:
        share = flops / seconds / matmul_rate(self.device)
        return {"tokens_per_second": tokens / seconds, "seconds": seconds, "peak_gb": peak, "share_of_matmul": share}

    def training(self, run: TimedRun, tokens: float, flops: float) -> Iterator[tuple[str, dict[str, float]]]:
        """Of the steps after the first."""
        times = run.meter.times
        yield "heed", self.row(tokens, (times[-1] - times[0]) / (len(times) - 1), peak_gb(self.device), flops)

    def preferences(self, method: str) -> Iterator[tuple[str, dict[str, float]]]:
        batch = 32 // self.scale
        policy, pairs, run = self.policy(dtype="float32"), self.pairs(3 * batch), TimedRun(Meter())  # multiplied in bf16
        renderer, flops = self.renderer(policy), Flops.of(policy.model.config)
        with run:
            if method == "dpo":
                train_dpo(policy, renderer, pairs, DPOConfig(batch_size=batch, precision="bf16"), run)
            else:
                model = new_scalar_model(policy, "reward", 0)
                train_reward_model(model, renderer, pairs, RewardModelConfig(batch_size=batch, precision="bf16"), run)
        needed, tokens = 0.0, 0
        for pair in pairs[:batch]:
            both = [renderer.encode(pair.prompt, response) for response in (pair.chosen, pair.rejected)]
            prompt, lengths = both[0].prompt_length, [len(s.ids) - both[0].prompt_length for s in both]
            needed += TRAINING * (flops.language_model(prompt, lengths) if method == "dpo" else flops.body(prompt, lengths, scores=True))
            tokens += sum(len(s.ids) for s in both)
        return self.training(run, tokens, needed)

    def ppo(self) -> Iterator[tuple[str, dict[str, float]]]:
        size = 64 // self.scale
        policy = self.policy(LoRAConfig())
        reward_model = new_scalar_model(policy, "reward", 0)
        critic, run = critic_from(reward_model, policy), TimedRun(Meter())
        prompts = [Prompt(self.text(80)) for _ in range(3 * size)]
        config = PPOConfig(batch_size=size, iterations=3, prompts_per_iteration=size, max_new_tokens=64, precision="bf16")
        with run:
            train_ppo(policy, policy.reference(), critic, self.renderer(policy), ModelReward(reward_model), prompts, config, run)
        flops = Flops.of(policy.model.config)
        whole, body = flops.language_model(PROMPT_TOKENS, [64]), flops.body(PROMPT_TOKENS, [64])
        reward = flops.body(PROMPT_TOKENS, [64], scores=True)
        return self.training(run, 64 * size, size * (whole + reward + (1 + config.epochs * (TRAINING - 1)) * (whole + body)))


def model_folder(shape: str, device: str) -> Path:
    """Random weights, made once."""
    folder = FOLDER / f"{shape}-bf16"
    if not (folder / "tokenizer.json").exists():
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(shape_config(shape), dtype=torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer = ROOT / "src" / "heed" / "testbed" / "model"
        AutoTokenizer.from_pretrained(tokenizer, model_max_length=model.config.max_position_embeddings).save_pretrained(folder)
    return folder


def synchronize(device: str, *, reset: bool = False) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def peak_gb(device: str) -> float:
    # What is held, as what a graph leaves between its kernels counts as allocated only while it is captured.
    return torch.cuda.max_memory_reserved() / 1e9 if device == "cuda" else 0.0


def matmul_rate(device: str) -> float:
    """Operations a second of bf16 matrix products."""
    size, repetitions = (8192, 20) if device == "cuda" else (1024, 3)
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    torch.mm(left, right)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repetitions):
        torch.mm(left, right)
    synchronize(device)
    return repetitions * 2 * size**3 / (time.perf_counter() - start)


def bandwidth(device: str) -> float:
    """Bytes a second that a copy reads and writes."""
    size, repetitions = (2**30, 20) if device == "cuda" else (2**26, 3)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repetitions):
        target.copy_(source)
    synchronize(device)
    return repetitions * 2 * size / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("rollout-64", "rollout-512", "reward-model", "dpo", "ppo"))
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=int, default=1, help="divides all batch sizes")
    options = parser.parse_args()
    bench = Bench(options)
    name, _, rows = options.part.partition("-")
    found = bench.rollout(int(rows)) if name == "rollout" else bench.ppo() if name == "ppo" else bench.preferences(options.part)
    card = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    for side, row in found:
        print(json.dumps({"part": options.part, "side": side, "card": card, "torch": torch.__version__} | row), flush=True)


if __name__ == "__main__":
    main()
