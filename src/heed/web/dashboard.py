"""The dashboard: a project's state at a glance, kept up to date while it is looked at."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
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
from heed.feedback.reward_agreement import ModelAgreement, agreements
from heed.feedback.schema import AccountRow, AnswerRow, ItemRow, RewardModelRow, RewardScoreRow, utc_now
from heed.feedback.waiting import WaitingPrompts
from heed.web.charts import interval, over_time
from heed.web.curve import section
from heed.web.reward import reward_section
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
    reward_models: tuple[ModelAgreement, ...]
    """The newest first."""
    times: np.ndarray
    """When answers were given; without those that a file brought, which say nothing of how fast people work."""
    last: datetime | None
    """When the last of them was; where files brought all answers, when the last came."""
    at: float
    seconds: float
    """It took."""


class Watch:
    """The views of a database's projects, worked out again when something has changed."""

    def __init__(self) -> None:
        self._views: dict[int, View] = {}
        self._works: dict[int, Future[None]] = {}
        self._turn = Lock()
        self._pool = ThreadPoolExecutor(thread_name_prefix="dashboard")

    def glance(self, database: Database, project: Project) -> View | None:
        """The project as it is; where that takes long, as it was a moment ago, or None where it was never worked out."""
        state, until = _state(database, project), time.monotonic() + QUICK
        while True:
            seen = self._views.get(project.id)
            if seen is not None and seen.state == state:
                return seen
            work = self._work(database, project, state, seen)
            if work is None or _is_slow(seen):
                return seen
            try:
                work.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                return seen

    def view(self, database: Database, project: Project) -> View:
        """The same, but the first time it waits for as long as it takes."""
        while (seen := self.glance(database, project)) is None:
            self._works[project.id].result()
        return seen

    def _work(self, database: Database, project: Project, state: tuple[int, ...], seen: View | None) -> Future[None] | None:
        """What is being worked out of a project, begun where nothing is; None where it rests."""
        with self._turn:
            work = self._works.get(project.id)
            if work is not None and not work.done():
                return work
            if seen is not None and _is_slow(seen) and time.monotonic() - seen.at <= REST * seen.seconds:
                return None
            self._works[project.id] = self._pool.submit(self._look, database, project, state)
            return self._works[project.id]

    def _look(self, database: Database, project: Project, state: tuple[int, ...]) -> None:
        started = time.monotonic()
        standing = standing_answers(database, project.id)
        found = quality(standing, project.settings.overlap)
        scored = agreements(database, project.id, standing)
        given = [answer.created_at for answer in standing.answers if answer.reason != "imported"]
        last = max(given or (answer.created_at for answer in standing.answers), default=None)
        ended = time.monotonic()
        self._views[project.id] = View(state, found, scored, np.array(given, dtype="datetime64[us]"), last, ended, ended - started)


def _is_slow(seen: View | None) -> bool:
    return seen is not None and seen.seconds >= QUICK


_watches: WeakKeyDictionary[Database, Watch] = WeakKeyDictionary()


def look(database: Database, project: Project) -> View:
    """What was worked out of a project's answers, as all pages and the API share it (see `Watch.view`)."""
    return _watch(database).view(database, project)


def _watch(database: Database) -> Watch:
    return _watches.setdefault(database, Watch())


@router.get("/projects/{project_id}")
def dashboard(request: Request, site: AnySite, me: Watcher, project_id: Id, weights: bool = False) -> HTMLResponse:
    project = site.projects.get(project_id)
    view = _watch(site.database).glance(site.database, project)
    if view is None:
        return render(request, "working.html.j2", project=project)
    found: dict[str, float] = {}
    error = None
    if weights:
        try:
            found = reliabilities(standing_answers(site.database, project_id))
        except UserError as caught:
            error = caught
    beside = {"asked": weights, "weights": found, "error": error, "curve": section(site.database, project_id)}
    return render(request, "dashboard.html.j2", **_context(site.database, project, view), **beside)


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
        raise Forbidden(f"the role {signed.account.role} may not do this", fix="ask an owner for another role")
    project = site.projects.get(project_id)
    view = _watch(site.database).glance(site.database, project)
    if view is None:
        return Response(status_code=204)
    context = _context(site.database, project, view)
    return Response(status_code=204) if context["version"] == shown else render(request, "live.html.j2", **context)


def _context(database: Database, project: Project, view: View) -> dict[str, Any]:
    """What the templates see."""
    now = utc_now()
    speed = pace(view.times, view.quality.progress, now)
    waiting = WaitingPrompts(database).count(project.id)
    return {
        "project": project,
        "settings": project.settings,
        "quality": view.quality,
        "progress": view.quality.progress,
        "pace": speed,
        "end": _end(speed, now),
        "chart": over_time(view.times),
        "reward": reward_section(view.reward_models, view.quality.ceiling),
        "last": view.last,
        "waiting": waiting,
        "interval": interval,
        "version": "-".join(map(str, (*view.state, waiting, speed.last_hour, speed.last_day))),
    }


def _state(database: Database, project: Project) -> tuple[int, ...]:
    """What changes whenever the numbers may: answers and those taken back, items, settings, names that were forgotten, and scores."""
    own = ItemRow.project_id == project.id
    answers = (
        select(func.max(AnswerRow.id), func.count())
        .join(ItemRow, ItemRow.id == AnswerRow.item_id)
        .where(own, AnswerRow.undone_at.is_(None))
    )
    items = select(func.count(), func.count(ItemRow.gold)).where(own)
    newest = select(func.max(RewardModelRow.id)).where(RewardModelRow.project_id == project.id)
    scores = select(func.max(RewardScoreRow.reward_model_id), func.count()).where(
        RewardScoreRow.reward_model_id == newest.scalar_subquery()
    )
    with database.read() as session:
        forgotten = session.scalar(select(func.count()).where(AccountRow.deleted_at.is_not(None))) or 0
        found = (*session.execute(answers).one(), *session.execute(items).one(), *session.execute(scores).one())
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
