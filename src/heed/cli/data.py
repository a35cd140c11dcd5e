"""`heed data check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from heed.data.check import check


@dataclass(frozen=True, slots=True)
class Data:
    """Say what format a data file has, how many rows, and what is wrong with which line."""

    action: tyro.conf.Positional[Literal["check"]]
    file: tyro.conf.Positional[str]
    """A .jsonl, .json, .csv (each also .gz) or .parquet file, or the id of a Hugging Face data set."""

    def __call__(self) -> int:
        report = check(self.file)
        print(report)
        return 0 if report.ok else 2
