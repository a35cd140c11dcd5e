"""What the dashboard says of reward models: how far they agree with people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from heed.feedback.quality import Estimate
from heed.feedback.reward_agreement import ModelAgreement
from heed.web.charts import Shares, shares


class RewardSection(NamedTuple):
    """The newest reward model, and those before it."""

    models: tuple[ModelAgreement, ...]
    """The newest first."""
    chart: Shares | None
    """Of the newest, over time."""
    ceiling: Estimate | None


def reward_section(found: Sequence[ModelAgreement], ceiling: Estimate | None) -> RewardSection | None:
    """None where no reward model has scored the project."""
    if not found:
        return None
    return RewardSection(tuple(found), _over_time(found[0], ceiling), ceiling)


def _over_time(found: ModelAgreement, ceiling: Estimate | None) -> Shares | None:
    if not found.slices:
        return None
    labels = [
        f"{_percent(part.share.value)} ({_percent(part.share.low)} to {_percent(part.share.high)}) in {part.answers:,} answers, "
        f"{part.first:%d %b %H:%M} to {part.last:%d %b %H:%M} UTC"
        for part in found.slices
    ]
    description = f"Agreement with people, oldest answers first: {', '.join(_percent(part.share.value) for part in found.slices)}"
    if ceiling is not None:
        description += f"; noise ceiling {_percent(ceiling.value)}"
    return shares(
        [part.share for part in found.slices],
        labels,
        description,
        ceiling=None if ceiling is None else ceiling.value,
        since=found.before / found.answers if 0 < found.before < found.answers else None,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
