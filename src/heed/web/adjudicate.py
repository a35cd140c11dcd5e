"""The adjudication queue: what annotators disagree on most, and a lead's decision beside theirs."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from heed.errors import UserError
from heed.feedback.categories import as_spelt
from heed.feedback.disputes import Case, case, decided_items, disputes, prompts_of, standing_judgements
from heed.feedback.projects import NotFound
from heed.web.label import fields_in, letter, read_ranks
from heed.web.site import AnySite, Form, Id, Lead, Site, go, render
from heed.web.text import markdown, turns

LISTED = 50
"""Items on a page; the next ones come up as these are decided."""

router = APIRouter()


@router.get("/projects/{project_id}/adjudicate")
def adjudicate(request: Request, site: AnySite, lead: Lead, project_id: Id) -> HTMLResponse:
    project = site.projects.get(project_id)
    disputed = [dispute for dispute in disputes(standing_judgements(site.database, project_id)) if dispute.disagreement > 0]
    decided = decided_items(site.database, project_id)
    listed = sorted(disputed, key=lambda dispute: dispute.item_id in decided)[:LISTED]
    prompts = prompts_of(site.database, [dispute.item_id for dispute in listed])
    return render(
        request,
        "adjudicate.html.j2",
        project=project,
        listed=[(dispute, prompts[dispute.item_id], dispute.item_id in decided) for dispute in listed],
        waiting=sum(dispute.item_id not in decided for dispute in disputed),
    )


@router.get("/items/{item_id}/decide")
def show(request: Request, site: AnySite, lead: Lead, item_id: Id) -> HTMLResponse:
    return _page(request, site, item_id, case(site.database, item_id), {})


@router.post("/items/{item_id}/decide")
def decide(request: Request, site: AnySite, lead: Lead, item_id: Id, form: Form) -> Response:
    found, fields = case(site.database, item_id), fields_in(form)
    try:
        site.tasks.decide(item_id, lead.id, read_ranks(fields, len(found.responses)), fields.get("note", ""))
    except NotFound:
        raise
    except UserError as error:
        return _page(request, site, item_id, found, fields, error=str(error))
    return go(f"/projects/{found.project_id}/adjudicate")


def _page(request: Request, site: Site, item_id: int, found: Case, fields: Mapping[str, str], *, error: str = "") -> HTMLResponse:
    return render(
        request,
        "decide.html.j2",
        status=422 if error else 200,
        item_id=item_id,
        project=site.projects.get(found.project_id),
        turns=turns(found.prompt),
        responses=[(letter(place), text, markdown(text)) for place, text in enumerate(found.responses)],
        categories=as_spelt(found.prompt.tags),
        case=found,
        fields=fields,
        error=error,
    )
