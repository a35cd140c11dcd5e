"""Steps that a GPU replays by itself, where launching their kernels one by one takes longer than running them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FAILED: list[Any] = []
"""Graphs whose recording failed: PyTorch's allocator still knows their addresses, so they must not be freed."""


class Graphs:
    """CUDA graphs of a step, one for each combination of sizes that it comes in more than once.

    A graph holds kernels and addresses. So a step has to find its tensors where they were, leave its results in them, and do nothing on the
    host but what follows from its sizes. The first step of some sizes runs as it is, which lets libraries choose and set up their kernels;
    the second is recorded, and it and all others are replayed. Where the first step of all reads values on the host, none is recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graphs: dict[tuple[int, ...], Any] = {}
        self.known: set[tuple[int, ...]] = set()
        self.pool: Any = None
        self.refused = False

    def run(self, sizes: tuple[int, ...], step: Callable[[], None]) -> None:
        """Run a step of these sizes."""
        if sizes in self.known and sizes not in self.graphs and not self.refused:
            self._record(sizes, step)
        if sizes in self.graphs:
            self.graphs[sizes].replay()
        elif self.known:
            step()
        else:
            with HostReads() as reads:
                step()
            if reads.found:
                self._refuse(f"{reads.found[0]} needs values on the host")
        self.known.add(sizes)

    def _record(self, sizes: tuple[int, ...], step: Callable[[], None]) -> None:
        try:
            graph = record(step, self.device, self.pool)
        except RuntimeError as error:
            self._refuse(str(error).splitlines()[0])
        else:
            self.graphs[sizes], self.pool = graph, graph.pool()

    def _refuse(self, why: str) -> None:
        self.refused = True
        warnings.warn(f"sampling without CUDA graphs, which takes longer: {why}", stacklevel=2)


def record(step: Callable[[], None], device: torch.device, pool: Any) -> Any:
    """The CUDA graph of a step, which does not run; those that share a pool take turns in its memory.

    `torch.cuda.graph` would also hand all free memory back to the device, each time, for the next step to ask for again.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    with torch.cuda.stream(_stream(device)):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            step()
            graph.capture_end()
        except BaseException:
            FAILED.append(graph)
            with suppress(RuntimeError):
                graph.capture_end()
            raise
    return graph


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One to record on, as each stream keeps a workspace for matrix products."""
    return torch.cuda.Stream(device)


class HostReads(TorchDispatchMode):
    """Finds what no graph can hold: operations whose results the host waits for, or that bring values from it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _needs_host(func, [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]):
            self.found.append(str(func))
        return result


def _needs_host(func: Any, tensors: Sequence[Tensor]) -> bool:
    aten = torch.ops.aten
    if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:])
    if func in (aten._to_copy.default, aten.copy_.default):
        return len({x.device for x in tensors}) > 1
    return func is aten.lift_fresh.default or bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
