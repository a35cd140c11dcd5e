"""Steps that a GPU replays by itself, where launching their kernels one by one takes longer than running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FAILED: list[Any] = []
"""Graphs whose capture could not be ended: PyTorch's allocator still knows their addresses, so they must not be freed."""


class Graphs:
    """CUDA graphs of a step, one for each combination of sizes that it comes in more than once.

    A graph holds kernels and addresses. So a step has to find its tensors where they were, leave its results in them, and do nothing on the
    host but what follows from its sizes. The first step of some sizes runs as it is, which lets libraries choose and set up their kernels;
    the second is captured, and it and all others are replayed. Where the first step of all reads values on the host, none is captured; it
    and all others then run as they are, as do those after a capture that failed, and `refuse` is told why.
    """

    def __init__(self, device: torch.device, refuse: Callable[[str], None]) -> None:
        self.device, self.refuse = device, refuse
        self.graphs: dict[tuple[int, ...], Any] = {}
        self.known: set[tuple[int, ...]] = set()
        self.pool: Any = None
        self.refused = False

    def run(self, sizes: tuple[int, ...], step: Callable[[], None]) -> None:
        """Run a step of these sizes."""
        if sizes in self.known and sizes not in self.graphs and not self.refused:
            self._capture(sizes, step)
        if sizes in self.graphs:
            self.graphs[sizes].replay()
        elif self.known:
            step()
        else:
            with HostReads() as reads:
                step()
            if reads.found:
                self.refused = True
                self.refuse(f"{reads.found[0]} needs values on the host")
        self.known.add(sizes)

    def _capture(self, sizes: tuple[int, ...], step: Callable[[], None]) -> None:
        try:
            graph = capture(step, self.device, self.pool)
        except RuntimeError as error:
            self.refused = True
            self.graphs.clear()
            # Before PyTorch 2.13 a generator of random numbers counts as captured until a capture ends well. Let this one:
            with suppress(RuntimeError):
                capture(lambda: torch.zeros(1, device=self.device), self.device, None)
            self.refuse(next(iter(str(error).splitlines()), type(error).__name__))
        else:
            self.graphs[sizes], self.pool = graph, graph.pool()


def capture(step: Callable[[], object], device: torch.device, pool: Any) -> Any:
    """The CUDA graph of a step, which does not run; those that share a pool take turns in its memory.

    Before the first one memory that is free goes back to the device, that of earlier pools too, as a capture can take none of it.
    `torch.cuda.graph` would do so before each, for the next step to ask for it again.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    if pool is None:
        torch.cuda.empty_cache()
    with torch.cuda.stream(_stream(device)):
        # What it sets up for random numbers would else be of use in inference mode alone.
        with torch.inference_mode(False):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            step()
        except BaseException:
            with suppress(RuntimeError):
                _end(graph)
            raise
        _end(graph)
    return graph


def _end(graph: Any) -> None:
    try:
        graph.capture_end()
    except RuntimeError:
        FAILED.append(graph)
        raise


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One to capture on, as each stream keeps a workspace for matrix products."""
    return torch.cuda.Stream(device)


class HostReads(TorchDispatchMode):
    """Finds what no graph can hold: operations whose results the host waits for, or that bring values from it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        # In inference mode operations that are made of others come whole.
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        result = func(*args, **(kwargs or {}))
        if _needs_host(func, args, result):
            self.found.append(str(func))
        return result


def _needs_host(func: Any, args: Sequence[Any], result: Any) -> bool:
    aten = torch.ops.aten
    if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return any(x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None)
    if func in (aten._to_copy.default, aten.copy_.default):
        return len({x.device for x in (*args[:2], result) if isinstance(x, Tensor)}) > 1
    if func is aten.lift_fresh.default:  # a number that stays where it is goes along with the kernel
        return result.dim() > 0 or result.device.type != "cpu"
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
