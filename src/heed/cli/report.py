"""`heed report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from heed.report import load_run, write_report


@dataclass(frozen=True, slots=True)
class Report:
    """Write a run's report.html anew, from whatever lies in its folder."""

    run: tyro.conf.Positional[Path]
    """The folder of a run, finished or not."""

    def __call__(self) -> None:
        print(write_report(load_run(self.run), self.run))
