"""The pages of projects: the list, settings, guidelines, and the import of data."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from starlette.datastructures import FormData, UploadFile

from heed.errors import UserError
from heed.feedback.accounts import Account
from heed.feedback.projects import Conflict, Project, ProjectSettings
from heed.feedback.waiting import WaitingPrompts
from heed.web.site import AnySite, Form, Id, Labeller, Lead, Site, Visitor, go, number_field, render, text_field
from heed.web.text import markdown
from heed.web.uploads import MAX_ROWS, MAX_UNPACKED, add_data, read_data, received, shown_name

router = APIRouter()

LABELS = {
    "name": "Name",
    "criterion": "Criterion",
    "guidelines": "Guidelines",
    "compare": "Comparison",
    "num_responses": "Responses shown together",
    "ratings": "Ratings",
    "flags": "Flags",
    "ideal": "Ask for the ideal response",
    "overlap": "Annotators for each item",
    "gold_rate": "Share of gold items",
    "again_rate": "Share of repetitions",
    "strategy": "What comes next",
    "control_share": "Share that comes at random",
    "lease_minutes": "Minutes for a task",
}
"""What the form calls the fields of `ProjectSettings`."""
NAME = re.compile(r'\s*"((?:[^"]|"")*)"\s*(?=,|$)|[^,]+')
"""Of a flag or an attribute among others, with commas between; one that holds a comma itself stands in quotes."""
CHOICES = {name: get_args(get_type_hints(ProjectSettings)[name]) for name in ("compare", "strategy")}


@router.get("/")
def index(request: Request, site: AnySite, signed: Visitor) -> HTMLResponse:
    projects = site.projects.all()
    if not signed.account.may("see"):
        return render(request, "projects.html.j2", projects=[p for p in projects if not p.archived], progress={})
    shown = sorted(projects, key=lambda project: project.archived)
    return render(request, "projects.html.j2", projects=shown, progress=site.projects.progress())


@router.get("/projects/new")
def new(request: Request, me: Lead) -> HTMLResponse:
    return _form_page(request, {"name": "", **_as_typed(ProjectSettings())})


@router.post("/projects/new")
def create(request: Request, site: AnySite, me: Lead, form: Form) -> Response:
    try:
        project = site.projects.create(text_field(form, "name"), _settings(form), me.id)
    except UserError as error:
        return _form_page(request, _typed(form), error=error)
    return go(f"/projects/{project.id}/import")


@router.post("/projects/preview")
def preview(request: Request, me: Lead, form: Form) -> HTMLResponse:
    return render(request, "guidelines.html.j2", project=None, guidelines=markdown(text_field(form, "guidelines")))


@router.get("/projects/{project_id}/guidelines")
def guidelines(request: Request, site: AnySite, signed: Visitor, project_id: Id) -> HTMLResponse:
    project = site.projects.get(project_id)
    return render(request, "guidelines.html.j2", project=project, guidelines=markdown(project.settings.guidelines))


@router.get("/projects/{project_id}/settings")
def settings(request: Request, site: AnySite, me: Lead, project_id: Id) -> HTMLResponse:
    project = site.projects.get(project_id)
    return _form_page(request, _as_typed(project.settings), project)


@router.post("/projects/{project_id}/settings")
def change(request: Request, site: AnySite, me: Lead, project_id: Id, form: Form) -> Response:
    try:
        site.projects.change(project_id, _settings(form), number_field(form, "revision"), me.id)
    except UserError as error:
        return _form_page(request, _typed(form), site.projects.get(project_id), error=error)
    return go(f"/projects/{project_id}")


@router.post("/projects/{project_id}/archive")
def archive(site: AnySite, me: Lead, project_id: Id, form: Form) -> Response:
    site.projects.archive(project_id, me.id, archived=text_field(form, "archived") == "yes")
    return go("/")


@router.get("/projects/{project_id}/import")
def import_page(request: Request, site: AnySite, me: Lead, project_id: Id) -> HTMLResponse:
    return _import_page(request, site, site.projects.get(project_id))


@router.post("/projects/{project_id}/import")
def import_data(request: Request, site: AnySite, me: Lead, project_id: Id, form: Form) -> HTMLResponse:
    project = site.projects.get(project_id)
    pasted = text_field(form, "pasted", "")
    try:
        told = _import(site, project, form, pasted, me)
    except UserError as error:
        return _import_page(request, site, project, error=error, pasted=pasted)
    return _import_page(request, site, project, told=told)


@router.post("/projects/{project_id}/prompts/clear")
def clear_prompts(site: AnySite, me: Lead, project_id: Id, form: Form) -> Response:
    WaitingPrompts(site.database).clear(project_id, me.id)
    return go(f"/projects/{project_id}/import")


@router.get("/projects/{project_id}/more")
def more(site: AnySite, me: Labeller, project_id: Id) -> Response:
    """Asked by the page of an annotator who has nothing left: loads it again once there is something, or no prompt waits any more."""
    stays = not site.tasks.progress(project_id, me.id).left and WaitingPrompts(site.database).count(project_id)
    return Response(status_code=204, headers={} if stays else {"HX-Refresh": "true"})


def _import(site: Site, project: Project, form: FormData, pasted: str, me: Account) -> list[str]:
    """Add what was uploaded or pasted, and say in a few lines what came of it."""
    upload = form.get("file")
    if isinstance(upload, UploadFile) and upload.filename:
        source, name = upload.file, shown_name(upload.filename)
        if pasted.strip():
            raise UserError("both a file and pasted rows", expected="one of them")
    elif pasted.strip():
        source, name = io.BytesIO(pasted.encode()), "pasted.jsonl"
    else:
        raise UserError("neither a file nor pasted rows", expected="one of them")
    with received(source, name) as path:
        data = read_data(path, name)
        added, waiting = add_data(site.database, project.id, data, me.id, gold="gold" in form)
    prompts = {
        f"New prompts, from rows of {data.format}, which wait for a policy to answer them": waiting.new,
        "Prompts that waited already, were answered by a policy, or came twice": waiting.known,
    }
    items = {
        f"New items, from rows of {data.format}": added.new,
        "Items that the project had already, or that came twice": added.known,
        "Prompts left out, with too few different responses to judge": added.too_few,
        "Responses left out, alone after the others of their prompt were put together": added.left_over,
    }
    counts = items | prompts if data.most_responses else prompts
    counts |= {f"Rows skipped, for {why}": count for why, count in data.skipped.most_common()}
    return [f"{what}: {count:,}" for index, (what, count) in enumerate(counts.items()) if count or index == 0]


def _import_page(
    request: Request, site: Site, project: Project, *, error: UserError | None = None, told: list[str] | None = None, pasted: str = ""
) -> HTMLResponse:
    dashes = "-- " if project.name.startswith("-") else ""
    context = {
        "project": project,
        "error": error,
        "told": told,
        "pasted": pasted,
        "most": MAX_UNPACKED // 2**20,
        "rows": f"{MAX_ROWS:,}",
        "waiting": WaitingPrompts(site.database).count(project.id),
        "command": f"heed feedback sample --policy FOLDER {dashes}DATABASE {shlex.quote(project.name)}",
    }
    return render(request, "import.html.j2", status=_status(error), **context)


def _form_page(
    request: Request, typed: Mapping[str, str], project: Project | None = None, *, error: UserError | None = None
) -> HTMLResponse:
    """The form with what was typed; where someone else has changed the project meanwhile, with what they put there."""
    stands = _as_typed(project.settings) if project is not None and isinstance(error, Conflict) else None
    theirs = None if stands is None else {name: value for name, value in stands.items() if value != typed[name]}
    message = str(error or "")
    wrong = next((name for name in LABELS if message.startswith(f"{name} is ")), None)
    for name, label in LABELS.items():
        if name == wrong or "_" in name:
            message = message.replace(name, label, 1)
    context: dict[str, Any] = {
        "typed": typed,
        "project": project,
        "labels": LABELS,
        "choices": CHOICES,
        "theirs": theirs,
        "wrong": wrong,
        "message": message,
    }
    return render(request, "project_form.html.j2", status=_status(error), **context)


def _status(error: UserError | None) -> int:
    return 200 if error is None else 409 if isinstance(error, Conflict) else 422


def _as_typed(settings: ProjectSettings) -> dict[str, str]:
    """The settings as the form's fields hold them."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else ""
        if isinstance(value, tuple):
            return ", ".join(map(_quoted, value))
        return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)

    return {f.name: text(getattr(settings, f.name)) for f in fields(settings)}


def _quoted(name: str) -> str:
    """A name as the form shows it among others."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"' if "," in name or name.startswith('"') else name


def _names(typed: str) -> tuple[str, ...]:
    """Names as `_quoted` shows them."""
    found = (match[0] if match[1] is None else match[1].replace('""', '"') for match in NAME.finditer(typed))
    return tuple(name.strip() for name in found if name.strip())


def _typed(form: FormData) -> dict[str, str]:
    return {name: text_field(form, name, "") for name in LABELS}


def _settings(form: FormData) -> ProjectSettings:
    """What the form says; raises UserError where that makes no project."""
    typed = _typed(form)
    for name, allowed in CHOICES.items():
        if typed[name] not in allowed:
            raise UserError(f"{name} is {typed[name][:80]!r}", expected=f"one of {', '.join(allowed)}")
    values: dict[str, Any] = {name: typed[name] for name in ("criterion", "guidelines", *CHOICES)}
    values |= {name: _names(typed[name]) for name in ("ratings", "flags")}
    values |= {name: number_field(form, name) for name in ("num_responses", "overlap", "lease_minutes")}
    values |= {name: number_field(form, name, float) for name in ("gold_rate", "again_rate", "control_share")}
    if values["compare"] == "pairwise":
        values["num_responses"] = 2
    return ProjectSettings(**values, ideal=bool(typed["ideal"]))
