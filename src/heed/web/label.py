"""The annotator's page: one task at a time, its answer on disk before the next one comes."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from starlette.datastructures import FormData

from heed.errors import UserError
from heed.feedback.accounts import Account
from heed.feedback.categories import as_spelt
from heed.feedback.projects import SCALE, STRENGTHS, Conflict, ProjectSettings
from heed.feedback.tasks import Answer, Screen, Task
from heed.feedback.waiting import WaitingPrompts
from heed.web.site import AnySite, Form, Labeller, Site, go, number_field, render, text_field
from heed.web.text import markdown, turns

REASONS = (
    "I do not understand the prompt",
    "I do not know enough to judge",
    "The prompt or the responses are broken",
    "I would rather not read this",
)
DEGREES = ("slightly better", "better", "much better", "far better")
"""Of a preference between two, as many as it has strengths."""
UNSAID = {"csrf", "revision"}
"""Fields of a form that say nothing of a task."""

router = APIRouter()


@router.get("/projects/{project_id}/label")
def label(request: Request, site: AnySite, me: Labeller, project_id: int) -> HTMLResponse:
    return _next(request, site, me, project_id)


@router.post("/tasks/{lease_id}/answer")
def answer(request: Request, site: AnySite, me: Labeller, lease_id: int, form: Form) -> Response:
    project, count = site.tasks.of_lease(lease_id, me.id)
    fields = fields_in(form)
    try:
        site.tasks.answer(lease_id, me.id, read_answer(fields, project.settings, count))
    except UserError as error:
        return _again(request, site, me, project.id, lease_id, fields, error, revision=text_field(form, "revision", ""))
    return go(f"/projects/{project.id}/label")


@router.post("/tasks/{lease_id}/skip")
def skip(request: Request, site: AnySite, me: Labeller, lease_id: int, form: Form) -> Response:
    project, _ = site.tasks.of_lease(lease_id, me.id)
    fields = fields_in(form)
    reason, words = fields.get("reason", "").strip(), fields.get("words", "").strip()
    try:
        site.tasks.skip(lease_id, me.id, reason or words, words if reason else "")
    except UserError as error:
        return _again(request, site, me, project.id, lease_id, fields, error)
    return go(f"/projects/{project.id}/label")


@router.post("/projects/{project_id}/undo")
def undo(request: Request, site: AnySite, me: Labeller, project_id: int, form: Form) -> Response:
    named = number_field(form, "answer")
    if site.tasks.undo(project_id, me.id, named) is None:
        last = site.tasks.last_answer(project_id, me.id) or 0
        if not last and not named:
            return _next(request, site, me, project_id, notice="There is no answer of yours to take back here.")
        if named < last:
            newer = "Nothing was taken back: you have given another answer since that page was shown."
            return _next(request, site, me, project_id, notice=newer)
    return go(f"/projects/{project_id}/label")


def letter(place: int) -> str:
    """What a response is called by its place on the screen: A, B, C and so on; past Z by its number."""
    return ascii_uppercase[place] if place < len(ascii_uppercase) else str(place + 1)


def fields_in(form: FormData) -> dict[str, str]:
    """What was said in a form, as text; UserError where a field is a file."""
    return {name: text_field(form, name) for name in form if name not in UNSAID}


def field_name(kind: str, name: str, place: int) -> str:
    """The field of a rating or flag of one response: by name, as a lead may put them in another order while someone reads."""
    return f"{kind}_{quote(name, safe='')}_{place}"


def read_answer(fields: Mapping[str, str], settings: ProjectSettings, count: int) -> Answer:
    """What a form says of `count` responses; UserError for whatever is missing or was not asked."""
    places = range(count)
    ratings = {name: [field_name("rating", name, place) for place in places] for name in settings.ratings}
    flags = {name: [field_name("flag", name, place) for place in places] for name in settings.flags}
    compared = {"rank": [f"rank_{place}" for place in places], "pairwise": ["strength"], "none": []}[settings.compare]
    asked = {"ideal", "note", *compared}.union(*ratings.values(), *flags.values())
    if odd := sorted(set(fields) - asked):
        raise UserError(f"the form has a field {odd[0][:40]!r} that nobody asked for", fix="reload the page and answer again")
    ranks, strength = None, None
    if settings.compare == "rank":
        ranks = read_ranks(fields, count)
    elif settings.compare == "pairwise":
        lean = choice(fields, "strength", "which of the two is better", range(-STRENGTHS, STRENGTHS + 1))
        ranks, strength = (1 if lean <= 0 else 2, 1 if lean >= 0 else 2), abs(lean)
    return Answer(
        ranks=ranks,
        strength=strength,
        ratings={
            name: tuple(choice(fields, field, f"how {name} {letter(place)} is", range(1, SCALE + 1)) for place, field in enumerate(row))
            for name, row in ratings.items()
        },
        flags={name: found for name, row in flags.items() if (found := tuple(place for place in places if row[place] in fields))},
        ideal=fields.get("ideal", ""),
        note=fields.get("note", ""),
    )


def read_ranks(fields: Mapping[str, str], count: int) -> tuple[int, ...]:
    """The ranks that a form gives to `count` responses; UserError where one has none."""
    return tuple(choice(fields, f"rank_{place}", f"the rank of {letter(place)}", range(1, count + 1)) for place in range(count))


def choice(fields: Mapping[str, str], name: str, meaning: str, allowed: range) -> int:
    """One of the numbers that a field may hold."""
    found = fields.get(name, "")
    if found not in map(str, allowed):
        said = f"{meaning} is {found[:40]!r}" if found else f"{meaning} is not said yet"
        raise UserError(said, expected=f"{allowed[0]} to {allowed[-1]}")
    return int(found)


def fields_of(answer: Answer, settings: ProjectSettings) -> dict[str, str]:
    """The form that an answer was given in."""
    fields = {"ideal": answer.ideal, "note": answer.note}
    if answer.ranks and answer.strength is not None:
        fields["strength"] = str(answer.strength if answer.ranks[0] > answer.ranks[1] else -answer.strength)
    elif answer.ranks:
        fields |= {f"rank_{place}": str(rank) for place, rank in enumerate(answer.ranks)}
    for name in settings.ratings:
        fields |= {field_name("rating", name, place): str(value) for place, value in enumerate(answer.ratings.get(name, ()))}
    for name in settings.flags:
        fields |= {field_name("flag", name, place): "on" for place in answer.flags.get(name, ())}
    return fields


def _next(
    request: Request, site: Site, me: Account, project_id: int, *, status: int = 200, notice: str = "", error: str = "", lost: str = ""
) -> HTMLResponse:
    """The next task, or what there is to say where none is left; `lost` is what was written and not kept."""
    screen, told = site.tasks.screen(project_id, me.id), {"notice": notice, "error": error, "lost": lost}
    last = site.tasks.last_answer(project_id, me.id) or 0
    if screen.task is not None:
        fields = fields_of(screen.task.answer, screen.project.settings) if screen.task.answer else {}
        return _page(request, screen, screen.task, fields, last, status=status, **told)
    capped = me.daily_cap is not None and screen.progress.today >= me.daily_cap
    waiting = WaitingPrompts(site.database).count(project_id)
    context = {"project": screen.project, "progress": screen.progress, "capped": capped, "waiting": waiting, "last": last}
    return render(request, "done.html.j2", status=status, **context, **told)


def _again(
    request: Request,
    site: Site,
    me: Account,
    project_id: int,
    lease_id: int,
    fields: Mapping[str, str],
    error: UserError,
    *,
    revision: str = "",
) -> Response:
    """The same task with what was typed, and what is wrong with it; the next one where that is no longer this person's to answer."""
    screen = site.tasks.screen(project_id, me.id)
    if screen.task is not None and screen.task.lease_id == lease_id:
        if revision not in ("", str(screen.project.revision)):
            error = Conflict("what is asked was changed while this page was open", fix="look through it again, then save")
        status, lost = 409 if isinstance(error, Conflict) else 422, "" if screen.project.settings.ideal else fields.get("ideal", "")
        last = site.tasks.last_answer(project_id, me.id) or 0
        return _page(request, screen, screen.task, fields, last, status=status, error=str(error), notice="", lost=lost)
    gone = error if isinstance(error, Conflict) else Conflict("this task is no longer yours", fix="go on with the next one")
    lost = "\n\n".join(text for name in ("ideal", "note", "words") if (text := fields.get(name, "").strip()))
    return _next(request, site, me, project_id, status=409, error=str(gone), lost=lost)


def _page(request: Request, screen: Screen, task: Task, fields: Mapping[str, str], last: int, *, status: int, **told: str) -> HTMLResponse:
    settings = screen.project.settings
    return render(
        request,
        "label.html.j2",
        status=status,
        project=screen.project,
        settings=settings,
        task=task,
        turns=turns(task.prompt),
        responses=[(letter(place), text, markdown(text)) for place, text in enumerate(task.responses)],
        categories=as_spelt(task.prompt.tags),
        fields=fields,
        field_name=field_name,
        last=last,
        guidelines=markdown(settings.guidelines),
        progress=screen.progress,
        scale=SCALE,
        strengths=_strengths(),
        reasons=REASONS,
        **told,
    )


def _strengths() -> list[tuple[int, str]]:
    first = [(-degree, f"A is {DEGREES[degree - 1]}") for degree in range(STRENGTHS, 0, -1)]
    second = [(degree, f"B is {DEGREES[degree - 1]}") for degree in range(1, STRENGTHS + 1)]
    return [*first, (0, "Both are equally good"), *second]
