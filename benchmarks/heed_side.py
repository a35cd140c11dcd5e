"""heed's side of a comparison: a run that measures itself and writes no checkpoint, since the peers write none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from measure import Meter

from heed.training.loop import Batches
from heed.training.run import Run


class TimedRun(Run):
    """Marks the end of every update or iteration, and keeps the metrics."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="bench-heed-")), display=False)
        self.meter = meter
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, total: int, metrics: Mapping[str, float], *, show: Sequence[str] = ()) -> None:
        super().log(step, total, metrics, show=show)
        self.rows.append(dict(metrics))
        self.meter.mark()

    def checkpoint_if_due(self, due: bool, save: Callable[[], None]) -> None:
        return


def in_heeds_order(num_items: int, batch_size: int) -> list[int]:
    """The items in the order in which heed's one epoch takes them, for the peer to take them so."""
    return [i for batch in Batches(num_items, batch_size, 1, 0) for i in batch]
