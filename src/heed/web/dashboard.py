"""The dashboard: a project's state at a glance, kept up to date while it is looked at."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock, Thread
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse
from sqlalchemy import func, select

from heed.errors import UserError
from heed.feedback.accounts import SignedIn
from heed.feedback.answers import standing_answers
from heed.feedback.database import Database
from heed.feedback.projects import Project
from heed.feedback.quality import Pace, Quality, pace, quality, reliabilities
from heed.feedback.schema import AccountRow, AnswerRow, ItemRow, utc_now
from heed.web.charts import interval, over_time
from heed.web.site import AnySite, Forbidden, Id, SignInFirst, Watcher, render, signed_in

QUICK = 0.5
"""Seconds of work that a page may wait for; what takes longer is done beside it, and the page shows the numbers before."""
REST = 20.0
"""How many times as long as its work such a project rests before it is worked out again."""

router = APIRouter()


@dataclass(frozen=True, slots=True)
class View:
    """What was worked out of a project's answers."""

    state: tuple[int, ...]
    """Of the project at that time; see `_state`."""
    quality: Quality
    times: np.ndarray
    """When answers were given."""
    at: float
    seconds: float
    """It took."""


class Watch:
    """The views of a database's projects, worked out again when something has changed."""

    def __init__(self) -> None:
        self._views: dict[int, View] = {}
        self._locks: defaultdict[int, Lock] = defaultdict(Lock)

    def view(self, database: Database, project: Project) -> View:
        """The project as it is; where that takes long and there is a view already, as it was a moment ago."""
        state, seen, lock = _state(database, project), self._views.get(project.id), self._locks[project.id]
        if seen is not None and seen.state == state:
            return seen
        if seen is None or seen.seconds < QUICK:
            with lock:
                return self._look(database, project, state)
        if time.monotonic() - seen.at > REST * seen.seconds and lock.acquire(blocking=False):
            Thread(target=self._look_and_release, args=(database, project, state, lock), daemon=True).start()
        return seen

    def _look(self, database: Database, project: Project, state: tuple[int, ...]) -> View:
        seen = self._views.get(project.id)
        if seen is not None and seen.state == state:  # another request was first
            return seen
        started = time.monotonic()
        standing = standing_answers(database, project.id)
        found = quality(standing, project.settings.overlap)
        times = np.array([answer.created_at for answer in standing.answers], dtype="datetime64[us]")
        ended = time.monotonic()
        self._views[project.id] = View(state, found, times, ended, ended - started)
        return self._views[project.id]

    def _look_and_release(self, database: Database, project: Project, state: tuple[int, ...], lock: Lock) -> None:
        try:
            self._look(database, project, state)
        finally:
            lock.release()


_watches: WeakKeyDictionary[Database, Watch] = WeakKeyDictionary()


@router.get("/projects/{project_id}")
def dashboard(request: Request, site: AnySite, me: Watcher, project_id: Id, weights: bool = False) -> HTMLResponse:
    project = site.projects.get(project_id)
    found: dict[str, float] = {}
    error = None
    if weights:
        try:
            found = reliabilities(standing_answers(site.database, project_id))
        except UserError as caught:
            error = caught
    return render(request, "dashboard.html.j2", **_context(site.database, project), asked=weights, weights=found, error=error)


@router.get("/projects/{project_id}/live")
def live(
    request: Request, site: AnySite, signed: Annotated[SignedIn | None, Depends(signed_in)], project_id: Id, shown: str = ""
) -> Response:
    """The part of the dashboard that changes; nothing where it is as `shown`."""
    if signed is None:
        if "HX-Request" not in request.headers:
            raise SignInFirst
        return Response(status_code=204, headers={"HX-Redirect": "/sign-in"})
    if not signed.account.may("see"):
        raise Forbidden(f"a {signed.account.role} may not do this", fix="ask an owner for another role")
    context = _context(site.database, site.projects.get(project_id))
    return Response(status_code=204) if context["version"] == shown else render(request, "live.html.j2", **context)


def _context(database: Database, project: Project) -> dict[str, Any]:
    """What the templates see."""
    view, now = _watches.setdefault(database, Watch()).view(database, project), utc_now()
    speed = pace(view.times, view.quality.progress, now)
    return {
        "project": project,
        "settings": project.settings,
        "quality": view.quality,
        "progress": view.quality.progress,
        "pace": speed,
        "end": _end(speed, now),
        "chart": over_time(view.times),
        "last": view.times.max().item() if len(view.times) else None,
        "interval": interval,
        "version": "-".join(map(str, (*view.state, speed.last_hour, speed.last_day))),
    }


def _state(database: Database, project: Project) -> tuple[int, ...]:
    """What changes whenever the numbers may: answers and those taken back, items, settings, and names that were forgotten."""
    own = ItemRow.project_id == project.id
    answers = (
        select(func.max(AnswerRow.id), func.count())
        .join(ItemRow, ItemRow.id == AnswerRow.item_id)
        .where(own, AnswerRow.undone_at.is_(None))
    )
    items = select(func.count(), func.count(ItemRow.gold)).where(own)
    with database.read() as session:
        forgotten = session.scalar(select(func.count()).where(AccountRow.deleted_at.is_not(None))) or 0
        found = (*session.execute(answers).one(), *session.execute(items).one())
    return project.revision, forgotten, *(number or 0 for number in found)


def _end(speed: Pace, now: datetime) -> str:
    """When all will be there, as precisely as such a guess can be."""
    if speed.end is None:
        return ""
    left = speed.end - now
    for unit, size in (("days", timedelta(days=1)), ("hours", timedelta(hours=1)), ("minutes", timedelta(minutes=1))):
        if left >= 2 * size:
            return f"in about {round(left / size)} {unit}, {speed.end:%a %d %b}" + (f" {speed.end:%H:%M} UTC" if unit != "days" else "")
    return "within minutes"
