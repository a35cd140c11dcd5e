"""Norms and rotations in few passes are those that transformers writes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModel, CohereConfig, GemmaConfig, GptOssConfig, MistralConfig, Olmo2Config
from transformers.models.gemma import modeling_gemma
from transformers.models.llama import modeling_llama

from heed.models import LoRAConfig, TokenBatch, fused, load_policy
from heed.models.fused import replaced, replacements, rms_norm, rotate
from tests.models.conftest import FAMILIES, GROUPED


def naive_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def naive_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of numbers turned by itself."""
    half = x.shape[-1] // 2
    columns = [x[..., i] * cos[:, None, :, i] - x[..., i + half] * sin[:, None, :, i] for i in range(half)]
    columns += [x[..., i] * cos[:, None, :, i] + x[..., i - half] * sin[:, None, :, i] for i in range(half, 2 * half)]
    return torch.stack(columns, dim=-1)


def assert_same_with_gradients(found: Sequence[Tensor], expected: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        weights = torch.randn(theirs.shape, dtype=theirs.dtype, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(mine, theirs)
        gradients = (torch.autograd.grad((x * weights).sum(), inputs, retain_graph=True, allow_unused=True) for x in (mine, theirs))
        torch.testing.assert_close(*gradients)


@given(
    shape=st.lists(st.integers(1, 5), max_size=3),
    width=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    trained=st.sampled_from([(True, True), (True, False), (False, True)]),
    seed=st.integers(0, 9),
)
def test_a_norm_and_its_gradients_are_those_of_the_formula(
    shape: list[int], width: int, scale: float, trained: tuple[bool, bool], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (scale * torch.randn(*shape, width, generator=generator, dtype=torch.float64)).requires_grad_(trained[0])
    weight = torch.randn(width, generator=generator, dtype=torch.float64).requires_grad_(trained[1])
    inputs = [tensor for tensor in (x, weight) if tensor.requires_grad]
    assert_same_with_gradients([rms_norm(x, weight, 1e-6)], [naive_norm(x, weight, 1e-6)], inputs)


@given(
    size=st.integers(1, 3), heads=st.sampled_from([(1, 1), (4, 2)]), length=st.integers(1, 6), half=st.integers(1, 5), apart=st.booleans()
)
def test_a_rotation_and_its_gradients_are_those_of_each_pair(
    size: int, heads: tuple[int, int], length: int, half: int, apart: bool
) -> None:
    generator = torch.Generator().manual_seed(half)

    def rows(heads: int) -> Tensor:
        return torch.randn(size, length, heads, 2 * half, generator=generator, dtype=torch.float64, requires_grad=True)

    inputs = [rows(n) for n in heads]
    # Halves that differ, as no rotation has them: each number has a gradient of its own.
    cos, sin = torch.randn(2, size if apart else 1, length, 2 * half, generator=generator, dtype=torch.float64)
    q, k = (x.transpose(1, 2) for x in inputs)
    assert_same_with_gradients(rotate(q, k, cos, sin), [naive_rotation(x, cos, sin) for x in (q, k)], inputs)


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, weight, cos, sin = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=i < 3)
        for i, shape in enumerate([(2, 2, 3, 4), (2, 1, 3, 4), (4,), (2, 3, 4), (2, 3, 4)])
    )
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (x, weight))
    assert torch.autograd.gradcheck(lambda x, y: rotate(x, y, cos, sin), (x, y))


@pytest.mark.skipif(fused.kernels() is None, reason="no compiler")
@given(
    size=st.integers(1, 3),
    heads=st.integers(1, 5),
    length=st.sampled_from([1, 2, 7, 60]),
    half=st.sampled_from([1, 3, 16, 40]),
    apart=st.booleans(),
    layout=st.sampled_from(["whole", "part", "heads first", "turned"]),
    trained=st.booleans(),
)
def test_kernels_are_the_formulas(size: int, heads: int, length: int, half: int, apart: bool, layout: str, trained: bool) -> None:
    """Both in fp32, on tensors as models have them: heads behind tokens, parts of wider ones, small and large."""
    generator = torch.Generator().manual_seed(length)
    wider = torch.randn(size, length, 3 * heads, 2 * half, generator=generator)
    x = wider[:, :, heads : 2 * heads] if layout == "part" else wider[:, :, :heads].contiguous()
    x = x.transpose(1, 2)
    if layout == "heads first":
        x = x.contiguous()
    elif layout == "turned":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    x = x.detach().requires_grad_(trained)
    cos, sin = torch.randn(2, size if apart else 1, length, 4 * half, generator=generator)[..., : 2 * half]
    weight = torch.randn(2 * half, generator=generator).requires_grad_(trained)
    for found, expected in (
        (rotate(x, x, cos, sin)[0], naive_rotation(x, cos, sin)),
        (rms_norm(x, weight, 1e-3), naive_norm(x, weight, 1e-3)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if trained:
            pull = torch.randn(expected.shape, generator=generator)
            mine, theirs = (torch.autograd.grad((y * pull).sum(), (x, weight), allow_unused=True) for y in (found, expected))
            for a, b in zip(mine, theirs, strict=True):
                assert (a is None) == (b is None)
                if a is not None and b is not None:
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(fused.kernels() is None, reason="no compiler")
def test_kernels_run_where_they_fit_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    library, calls = fused.kernels(), []
    assert library is not None
    counting = SimpleNamespace(
        rms_norm=lambda *a: (calls.append("norm"), library.rms_norm(*a)), rotate=lambda *a: (calls.append("rotation"), library.rotate(*a))
    )
    monkeypatch.setattr(fused, "kernels", lambda: counting)
    x, angles, weight = torch.randn(2, 3, 4, 8), torch.randn(1, 4, 8), torch.ones(8)
    rms_norm(x, weight, 1e-6)
    rotate(x, x, angles, angles)
    assert calls == ["norm", "rotation", "rotation"]
    calls.clear()
    for dtype in (torch.float64, torch.bfloat16):
        rms_norm(x.to(dtype), weight.to(dtype), 1e-6)
        rotate(x.to(dtype), x.to(dtype), angles.to(dtype), angles.to(dtype))
    rms_norm(x.to("meta"), weight.to("meta"), 1e-6)
    rotate(*(each.to("meta") for each in (x, x, angles, angles)))
    for wrong in (
        lambda: rms_norm(x, torch.ones(4), 1e-6),
        lambda: rotate(x, x, angles[:, :3], angles[:, :3]),
        lambda: rotate(x, x, angles.expand(3, -1, -1), angles.expand(3, -1, -1)),
        lambda: rotate(x[..., :7], x[..., :7], angles[..., :7], angles[..., :7]),
    ):
        with pytest.raises(RuntimeError, match="must match"):
            wrong()
    assert not calls


def body_of(config: Any) -> nn.Module:
    torch.manual_seed(0)
    return AutoModel.from_config(config)


def names(found: list[fused.Replacement]) -> list[str]:
    return [getattr(each.owner, "__name__", "").rpartition(".")[2] for each in found]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", ["LlamaRMSNorm", "modeling_llama"]),
        ("qwen2", ["Qwen2RMSNorm", "modeling_qwen2"]),
        ("qwen3", ["Qwen3RMSNorm", "modeling_qwen3"]),
        ("gpt_neox", ["modeling_gpt_neox"]),
        ("gpt2", []),
    ],
)
def test_what_is_replaced_in_each_family(family: str, expected: list[str]) -> None:
    kind, sizes = FAMILIES[family]
    assert names(replacements(body_of(kind(**sizes, vocab_size=100)))) == expected


def test_what_computes_something_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(replacements(body_of(MistralConfig(**GROUPED, vocab_size=100)))) == ["MistralRMSNorm", "modeling_mistral"]
    gemma = names(replacements(body_of(GemmaConfig(**GROUPED, vocab_size=100))))
    assert gemma == ["modeling_gemma"], "its norm scales by 1 + weight"
    assert names(replacements(body_of(CohereConfig(**GROUPED, vocab_size=100)))) == [], "its rotation turns neighbours"

    olmo = names(replacements(body_of(Olmo2Config(**{k: v for k, v in GROUPED.items() if k != "head_dim"}, vocab_size=100))))
    assert olmo == ["Olmo2RMSNorm"], "its rotation gives queries back in their own dtype"

    experts: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1}
    gpt_oss = names(replacements(body_of(GptOssConfig(**GROUPED, **experts, vocab_size=100))))
    assert gpt_oss == ["GptOssRMSNorm"], "its rotation takes cosines of half the width, and raises with others"

    kind, sizes = FAMILIES["llama"]
    other_eps = body_of(kind(**sizes, vocab_size=100))
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda norm, x: naive_norm(x, norm.weight, 2 * norm.variance_epsilon))
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q * cos[:, None], k * cos[:, None]))
    assert names(replacements(other_eps)) == []
    assert replacements(other_eps.to("meta")) == []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each of the two has run since."""
    found = {"norm": 0, "rotation": 0}

    def counting(name: str, true: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any) -> Any:
            found[name] += 1
            return true(*args)

        return count

    monkeypatch.setattr(fused, "rms_norm", counting("norm", rms_norm))
    monkeypatch.setattr(fused, "rotate", counting("rotation", rotate))
    return found


def gradients(policy: Any, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    logprobs, _ = policy.logprobs(batch)
    logprobs[batch.response_mask].sum().backward()
    found = {name: p.grad for name, p in policy.trainable().items() if p.grad is not None}
    for parameter in policy.trainable().values():
        parameter.grad = None
    return logprobs.detach(), found


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, alpha=8)], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt_neox"])
def test_a_model_has_the_logprobs_and_gradients_that_it_has_without(
    family: str, lora: LoRAConfig | None, checkpointing: bool, make_folder: Callable[..., Path], batch: TokenBatch, calls: dict[str, int]
) -> None:
    folder = make_folder(family, **({"rotary_pct": 1.0} if family == "gpt_neox" else {}))
    policy = load_policy(folder, device="cpu", lora=lora, gradient_checkpointing=checkpointing)
    if lora is not None:
        for name, p in policy.trainable().items():
            if ".lora_B." in name:
                p.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    logprobs, found = gradients(policy, batch)
    assert calls["rotation"] >= 2 * (1 + checkpointing)
    assert (calls["norm"] > 0) == (family != "gpt_neox")
    calls.update(norm=0, rotation=0)
    policy.backbone.__dict__["_replacements"] = []
    expected_logprobs, expected = gradients(policy, batch)
    assert calls == {"norm": 0, "rotation": 0}
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-6, msg=name)


def test_under_bf16_autocast_both_still_run_in_fp32_as_they_do_without(
    make_folder: Callable[..., Path], batch: TokenBatch, calls: dict[str, int]
) -> None:
    policy = load_policy(make_folder("qwen3"), device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, found = gradients(policy, batch)
        assert min(calls.values()) > 0
        policy.backbone.__dict__["_replacements"] = []
        expected_logprobs, expected = gradients(policy, batch)
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=0.02, atol=0.02)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0.05, atol=0.02 * float(gradient.abs().max()), msg=name)


def test_weights_in_bf16_and_partial_rotations_keep_transformers_own(
    make_folder: Callable[..., Path], batch: TokenBatch, calls: dict[str, int]
) -> None:
    for policy in load_policy(make_folder("llama"), device="cpu", dtype="bfloat16"), load_policy(make_folder("gpt_neox"), device="cpu"):
        assert names(policy.backbone._replacements)[-1].startswith("modeling_")
        calls.update(norm=0, rotation=0)
        policy.logprobs(batch)
        assert calls == {"norm": 0, "rotation": 0}


def test_transformers_own_stand_before_and_after_each_forward(make_folder: Callable[..., Path], batch: TokenBatch) -> None:
    own = modeling_llama.LlamaRMSNorm.forward, modeling_llama.apply_rotary_pos_emb
    policy = load_policy(make_folder("llama"), device="cpu")
    seen = []
    hook = policy.backbone.body.norm.register_forward_hook(lambda *_: seen.append(modeling_llama.LlamaRMSNorm.forward is own[0]))
    policy.logprobs(batch)
    assert set(seen) == {False}, "the spy looks within the forward"
    assert (modeling_llama.LlamaRMSNorm.forward, modeling_llama.apply_rotary_pos_emb) == own
    hook.remove()

    policy.backbone.body.norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy.logprobs(batch)
    assert (modeling_llama.LlamaRMSNorm.forward, modeling_llama.apply_rotary_pos_emb) == own


def test_more_arguments_go_to_transformers_own(calls: dict[str, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, heads, 8, generator=generator) for heads in (4, 2))
    cos, sin = torch.randn(2, 2, 3, 8, generator=generator)
    body = body_of(GemmaConfig(**GROUPED, vocab_size=100))
    expected = modeling_gemma.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    with replaced(replacements(body)):
        calls.update(rotation=0)
        found = modeling_gemma.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    assert calls["rotation"] == 0
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
