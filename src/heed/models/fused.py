"""Norms and rotary embeddings in few passes over memory, for those that transformers writes out in many."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from heed.models.compiled import compiled, floats

SOURCE = Path(__file__).with_name("fused.c")
ROTATION = "apply_rotary_pos_emb"
"""What transformers calls the rotation of queries and keys, in the module of each family."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """A function of a class or module, and the one that gives the same in fewer passes."""

    owner: Any
    name: str
    written_out: Callable[..., Any]
    fused: Callable[..., Any]

    @property
    def stands(self) -> bool:
        """Whether the fused function is in its place now."""
        return getattr(self.owner, self.name) is self.fused


@contextmanager
def replaced(replacements: Sequence[Replacement]) -> Iterator[None]:
    """Within, the fused functions stand where transformers has its own."""
    for each in replacements:
        setattr(each.owner, each.name, each.fused)
    try:
        yield
    finally:
        for each in replacements:
            setattr(each.owner, each.name, each.written_out)


@torch.no_grad()
def replacements(body: nn.Module) -> list[Replacement]:
    """What can be replaced in a body that is on a CPU: norms and rotations that come out the same but for rounding when tried."""
    if next(body.parameters()).device.type != "cpu":
        return []
    with torch.autocast("cpu", enabled=False):
        norms = [m for m in body.modules() if type(m).__name__.endswith("RMSNorm")]
        kinds = [kind for kind in dict.fromkeys(map(type, norms)) if all(_passes(_is_rms_norm, m) for m in norms if type(m) is kind)]
        homes = (sys.modules.get(name) for name in dict.fromkeys(type(m).__module__ for m in body.modules()))
        families = [home for home in homes if _passes(_is_rotation, getattr(home, ROTATION, None))]
    return [Replacement(kind, "forward", kind.forward, _fused_norm(kind.forward)) for kind in kinds] + [
        Replacement(home, ROTATION, getattr(home, ROTATION), _fused_rotation(getattr(home, ROTATION))) for home in families
    ]


def _passes(trial: Callable[[Any], bool], candidate: Any) -> bool:
    try:
        return trial(candidate)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # it is made for something else, such as cosines of half the width
        return False


def _is_rms_norm(norm: Any) -> bool:
    weight, eps = getattr(norm, "weight", None), _eps(norm)
    if weight is None or eps is None or weight.dtype != torch.float32 or weight.dim() != 1:
        return False
    # So small that eps counts.
    x = eps**0.5 * torch.randn(2, 3, len(weight), generator=torch.Generator().manual_seed(0))
    return _is_same(rms_norm(x, weight, eps), norm.forward(x))


def _eps(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _is_rotation(function: Any) -> bool:
    if function is None or list(signature(function).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return False
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 3, 8, generator=generator) for heads in (4, 2))
    cos, sin = torch.randn(2, 2, 3, 8, generator=generator)
    # Products under autocast are bf16: some functions give those back as they came.
    pairs = [(q, k), (q.bfloat16(), k.bfloat16())]
    return all(
        _is_same(found, own) for pair in pairs for found, own in zip(rotate(*pair, cos, sin), function(*pair, cos, sin), strict=True)
    )


def _is_same(found: Any, expected: Any) -> bool:
    return (found.shape, found.dtype) == (expected.shape, expected.dtype) and bool(
        (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    )


def _fused_norm(written_out: Callable[..., Any]) -> Callable[..., Any]:
    def forward(norm: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or x.device.type != "cpu" or not x.dtype == norm.weight.dtype == torch.float32:
            return written_out(norm, x, *args, **kwargs)
        return rms_norm(x, norm.weight, _eps(norm))

    return forward


def _fused_rotation(written_out: Callable[..., Any]) -> Callable[..., Any]:
    def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        fits = q.shape[-1] == k.shape[-1] == cos.shape[-1] and torch.result_type(q, cos) == torch.float32
        if args or kwargs or q.device.type != "cpu" or not fits:
            return written_out(q, k, cos, sin, *args, **kwargs)
        return rotate(q, k, cos, sin)

    return apply_rotary_pos_emb


@cache
def kernels() -> ctypes.CDLL | None:
    """Both in one pass each; None where they cannot be compiled."""
    library = compiled(SOURCE)
    if library is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.rms_norm.argtypes = [*[pointer] * 4, number, number, ctypes.c_float]
        library.rotate.argtypes = [*[pointer] * 4, *[number] * 11, ctypes.c_int]
    return library


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`y = x r w`, `r = 1 / sqrt(mean(x^2) + eps)`, over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4)."""
    if not torch.is_grad_enabled():
        return _norm(x, weight, eps)[0]
    return _RMSNorm.apply(x, weight, eps)  # pyright: ignore[reportReturnType]


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys `[B, heads, T, dim]` turned by the angles of their positions (Su et al. 2021, arXiv:2104.09864, eq. 34).

    `(x1, x2) -> (x1 cos1 - x2 sin1, x2 cos2 + x1 sin2)` for the halves of the last dimension; cosines and sines `[B or 1, T, dim]`.
    """
    if not torch.is_grad_enabled():
        return _turn(q, cos, sin), _turn(k, cos, sin)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)  # pyright: ignore[reportReturnType]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, r = _norm(x, weight, eps)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`dx = r (g - x r mean(g x r))` and `dw = sum(dy x r)`, where `g = dy w`.

        The gradient of layer norm, which PyTorch has in one pass, is `r (g - mean(g) - n mean(g n))` with `n = (x - mean) r`. Told that the
        mean is 0 it lacks `r mean(g)`.
        """
        x, weight, r = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [x.shape[-1]], torch.zeros_like(r), r, weight, None, wanted
        )
        if grad_x is not None:
            grad_x.add_((grad @ weight).unsqueeze(-1).mul_(r), alpha=1 / x.shape[-1])
        return grad_x, grad_weight, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, back=True), None, None


def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm and its `r`, `[..., 1]`."""
    library = kernels()
    fits = x.is_cpu and x.dtype == weight.dtype == torch.float32 and weight.shape == x.shape[-1:]
    if library is None or not fits:
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        return (x * r).mul_(weight), r
    x, width = x.contiguous(), x.shape[-1]
    y, r = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1)
    library.rms_norm(*map(floats, (x, weight, y, r)), r.numel(), width, eps)
    return y, r


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """The rotation of `[B, heads, T, dim]`, or the gradient of it."""
    library = kernels()
    fits = x.is_cpu and x.dtype == cos.dtype == sin.dtype == torch.float32 and x.stride(3) == 1 and x.shape[3] % 2 == 0
    matches = cos.shape == sin.shape and cos.shape[1:] == x.shape[2:] and len(cos) in (1, len(x))
    if library is None or not (fits and matches):
        return _turn_written_out(x, cos.unsqueeze(1), sin.unsqueeze(1), back=back)
    cos, sin, y = cos.contiguous(), sin.contiguous(), torch.empty_like(x)
    batch, heads, length, dim = x.shape
    strides = *x.stride()[:3], *y.stride()[:3], length * dim if len(cos) > 1 else 0
    library.rotate(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), batch, heads, length, dim // 2, *strides, back)
    return y


def _turn_written_out(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    """By PyTorch's operations, with cosines and sines `[B or 1, 1, T, dim]`."""
    sin1, sin2 = sin.chunk(2, dim=-1)
    from_second, from_first = (sin2, -sin1) if back else (-sin1, sin2)
    turned = x * cos
    (first, second), (x1, x2) = turned.chunk(2, dim=-1), x.chunk(2, dim=-1)
    first.addcmul_(x2, from_second)
    second.addcmul_(x1, from_first)
    return turned
