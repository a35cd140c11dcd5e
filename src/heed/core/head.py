"""The language-model head over a few tokens at a time, so that no `[N, V]` tensor ever exists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ELEMENTS = 2**22
"""How many logits exist at a time unless told: 16 MB in fp32, or a quarter of the head's own size where that is more."""


class Head(NamedTuple):
    """Logits `(hidden @ weight.T + bias) / temperature`, made and differentiated chunk by chunk."""

    hidden: Tensor
    """`[N, D]`."""
    weight: Tensor
    """`[V, D]`."""
    bias: Tensor | None
    """`[V]`."""
    temperature: float

    def chunks(self, chunk_elements: int | None) -> Iterator[slice]:
        """The tokens in runs about as long, of at most `chunk_elements` logits, and of one token at least."""
        if chunk_elements is None:  # every chunk reads the whole weight and writes its whole gradient: few tokens are not worth that
            chunk_elements = max(CHUNK_ELEMENTS, self.weight.numel() // 4)
        num_tokens, most = self.hidden.shape[0], max(1, chunk_elements // self.weight.shape[0])
        num_chunks = math.ceil(num_tokens / most)
        step = math.ceil(num_tokens / max(1, num_chunks))
        return (slice(i * step, (i + 1) * step) for i in range(num_chunks))

    def log_p(self, rows: slice) -> Tensor:
        """The log-probability of every word at some tokens, `[n, V]`: products in the dtype of the inputs, the rest in fp32 or wider."""
        logits = F.linear(self.hidden[rows], self.weight, self.bias).to(wide(self.hidden.dtype))
        return (logits if self.temperature == 1 else logits.div_(self.temperature)).log_softmax(1)

    def backward(
        self, chunk_elements: int | None, needed: tuple[bool, ...], grad_logits: Callable[[slice], Tensor]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden, weight and bias (None where not needed) from `grad_logits(rows)`, `[n, V]`, which is overwritten."""
        dtype = wide(self.hidden.dtype)  # sums over many chunks need more bits than bf16 has
        hidden = torch.empty_like(self.hidden) if needed[0] else None
        weight = torch.zeros_like(self.weight, dtype=dtype) if needed[1] else None
        bias = torch.zeros_like(self.bias, dtype=dtype) if self.bias is not None and needed[2] else None
        for rows in self.chunks(chunk_elements):
            grad = grad_logits(rows)
            grad = grad if self.temperature == 1 else grad.div_(self.temperature)
            if bias is not None:
                bias += grad.sum(0)
            grad = grad.to(self.hidden.dtype)
            if hidden is not None:
                hidden[rows] = grad @ self.weight
            if weight is not None and weight.dtype == grad.dtype:
                weight.addmm_(grad.T, self.hidden[rows])
            elif weight is not None:
                weight += grad.T @ self.hidden[rows]
        narrow = self.weight.dtype
        return hidden, None if weight is None else weight.to(narrow), None if bias is None else bias.to(narrow)


def autocast_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Head:
    """The head with its inputs cast as a surrounding autocast region would cast those of `F.linear`."""
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return Head(hidden, weight, bias, temperature)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmax maths on inputs of `dtype`: fp32, or fp64 where the inputs are."""
    return torch.promote_types(dtype, torch.float32)
