"""What people said, to be downloaded: training data of each kind, its data card, and the whole project."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.datastructures import QueryParams

from heed.errors import UserError
from heed.feedback.accounts import Account
from heed.feedback.export import KINDS, Export, Filters, Kind, annotators_of, label_weights, read_time
from heed.feedback.projects import Project, audit
from heed.feedback.transfer import project_rows
from heed.web.site import AnySite, Id, Lead, Site, render
from heed.web.text import markdown

router = APIRouter()


@router.get("/projects/{project_id}/export")
def page(request: Request, site: AnySite, me: Lead, project_id: Id) -> HTMLResponse:
    project = site.projects.get(project_id)
    return render(
        request,
        "export.html.j2",
        project=project,
        kinds={kind: markdown(what) for kind, what in KINDS.items()},
        names=annotators_of(site.database, project_id),
    )


@router.get("/projects/{project_id}/export/full")
def whole(site: AnySite, me: Lead, project_id: Id) -> Response:
    project = site.projects.get(project_id)
    _note(site, me, project, "full")
    return _download(project_rows(site.database, project_id), project, "full")


@router.get("/projects/{project_id}/export/{kind}")
def rows(request: Request, site: AnySite, me: Lead, project_id: Id, kind: Kind) -> Response:
    export = _export(request, site, project_id, kind)
    found = export.rows()
    first = list(islice(found, 1))
    if not first:
        raise UserError(
            f"there are no rows of kind {kind!r} yet",
            expected="answers that give some",
            fix="choose fewer filters; the data card tells what they leave out",
        )
    _note(site, me, export.found, kind)
    return _download(chain(first, found), export.found, kind)


@router.get("/projects/{project_id}/export/{kind}/card")
def card(request: Request, site: AnySite, me: Lead, project_id: Id, kind: Kind) -> Response:
    export = _export(request, site, project_id, kind)
    for _ in export.rows():
        pass
    return Response(export.card(), media_type="text/markdown; charset=utf-8", headers=_attached(export.found, kind, "md"))


def read_filters(query: QueryParams) -> Filters:
    """The filters that the page's form names; raises UserError for what is none."""

    def given(name: str) -> list[str]:
        return [value for value in query.getlist(name) if value.strip()]

    times = {name: read_time(value) for name in ("since", "until") for value in given(name)[:1]}
    least = (given("min_agreement") or ["0"])[0]
    try:
        agreement = float(least)
    except ValueError:
        raise UserError(f"min_agreement is {least[:60]!r}", expected="a share from 0 to 1") from None
    annotators, flags = tuple(given("annotator")), tuple(given("without_flag"))
    return Filters(annotators=annotators, without_flags=flags, min_agreement=agreement, checks=bool(given("checks")), **times)


def _export(request: Request, site: Site, project_id: int, kind: Kind) -> Export:
    """What the page's form asks for."""
    weighed = bool(request.query_params.get("weights"))
    return Export(site.database, project_id, kind, read_filters(request.query_params), label_weights if weighed else None)


def _note(site: Site, me: Account, project: Project, kind: str) -> None:
    """Data that leaves is a thing to remember; not the filters, which may name a person."""
    with site.database.write() as session:
        audit(session, me.id, "project.export", project=project.id, kind=kind)


def _download(found: Iterable[Mapping[str, Any]], project: Project, kind: str) -> StreamingResponse:
    return StreamingResponse(_pieces(found), media_type="application/jsonl", headers=_attached(project, kind, "jsonl"))


def _pieces(found: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """JSON lines, many at a time."""
    rows = iter(found)
    while piece := list(islice(rows, 200)):
        yield b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in piece)


def _attached(project: Project, kind: str, suffix: Literal["jsonl", "md"]) -> dict[str, str]:
    name = re.sub(r"[^a-z0-9]+", "-", project.name.lower()).strip("-") or "project"
    return {"Content-Disposition": f'attachment; filename="{name}-{kind}.{suffix}"'}
