"""The JSON API: all that the pages do, for programs that hold a key. The schema is at /api/openapi.json."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from itertools import chain, islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import JsonValue
from sqlalchemy import select

from heed.feedback.accounts import LOG_PAGE, Account, OpenInvitation, invitable
from heed.feedback.disputes import decided_items, disputes, standing_judgements
from heed.feedback.export import Export, Filters, Kind, label_weights, read_time
from heed.feedback.projects import IDS, audit, find_project
from heed.feedback.quality import Quality
from heed.feedback.schema import AccountRow, AnswerRow, ItemRow, LeaseRow
from heed.feedback.tasks import Task
from heed.feedback.transfer import project_rows
from heed.feedback.waiting import WaitingPrompts
from heed.web.api_models import (
    AddedItems,
    AddedPrompts,
    AnswerToTask,
    ChangedSettings,
    ClearedPrompts,
    DailyCap,
    DisputedItem,
    Event,
    GivenAnswer,
    GivenTask,
    Id,
    Invitation,
    Item,
    LearningCurve,
    Limits,
    NewDecision,
    NewInvitation,
    NewItems,
    NewProject,
    NewPrompts,
    NewRole,
    Page,
    Person,
    Problem,
    ProjectState,
    Pseudonym,
    ScoredBy,
    Skip,
    unkeepable,
)
from heed.web.api_reads import counts, learning_curves, read_answers, read_items
from heed.web.dashboard import look
from heed.web.limits import visitor
from heed.web.site import AnySite, Forbidden

MAX_BODY = 16 * 2**20
"""Bytes of the largest request."""
JSON_LINES = "application/jsonl"
PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"description": "There is no key, or a wrong one."},
    403: {"description": "The role of the key's owner does not allow it."},
    404: {"description": "There is no such thing, or it is someone else's."},
    409: {"description": "Someone else, or the clock, was there before."},
    413: {"description": f"The request is larger than {MAX_BODY // 2**20} MB."},
    422: {"description": "What was sent does not fit."},
    429: {"description": "Too many wrong keys came from this address."},
}


class CheckedRequest(Request):
    """A request that is not too large, and whose JSON every database can keep."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        seen = 0
        async for chunk in super().stream():
            seen += len(chunk)
            if seen > MAX_BODY:
                raise HTTPException(413, f"the request is larger than {MAX_BODY // 2**20} MB; send less at a time")
            yield chunk

    async def json(self) -> JsonValue:
        try:
            value = await super().json()
        except (ValueError, RecursionError) as error:
            raise HTTPException(422, f"the body is not JSON: {error}") from None
        problem = unkeepable(value)
        if problem:
            raise HTTPException(422, f"the body holds {problem}")
        return value


class CheckedRoute(APIRoute):
    """A route that is given checked requests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            return await handler(CheckedRequest(request.scope, request.receive))

        return checked


router = APIRouter(
    prefix="/api/v1",
    route_class=CheckedRoute,
    responses={status: {"model": Problem, **problem} for status, problem in PROBLEMS.items()},
)
_bearer = HTTPBearer(auto_error=False, scheme_name="key", description="A key that was made on the account page.")


def caller(request: Request, site: AnySite, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Account:
    """Whose key was sent; 401 for none or a wrong one, and 429 after many wrong ones from one address, from where right ones still work."""
    account = None if given is None else site.accounts.of_token(given.credentials)
    if account is not None:
        return account
    wait = 0.0 if given is None else site.wrong_keys.begin(visitor(request))
    if wait:
        raise HTTPException(429, "too many wrong keys; wait a while", headers={"Retry-After": str(math.ceil(wait))})
    found = "there is no key" if given is None else "the key is wrong or was revoked"
    raise HTTPException(401, f"{found}; send `Authorization: Bearer heed_...`", headers={"WWW-Authenticate": "Bearer"})


Caller = Annotated[Account, Depends(caller)]


def having(right: str) -> Any:
    """A dependency: the key's owner has this right (see `accounts.RIGHTS`)."""

    async def check(account: Caller) -> Account:
        if not account.may(right):
            raise Forbidden(f"the role {account.role} may not do this", fix="ask an owner for another role")
        return account

    return Depends(check)


Labeller = Annotated[Account, having("label")]
Watcher = Annotated[Account, having("see")]
Lead = Annotated[Account, having("lead")]
Owner = Annotated[Account, having("own")]
IdInPath = Annotated[int, Path(ge=1, le=IDS.stop - 1)]
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="Of an open invitation.")]
After = Annotated[int, Query(ge=0, le=IDS.stop - 1, description="The `next` of the page before.")]
Before = Annotated[int | None, Query(ge=1, le=IDS.stop - 1, description="The `next` of the page before.")]
Action = Annotated[str, Query(pattern="^[a-z_.]*$", max_length=40, description="How the action begins, such as `account.`")]
Limit = Annotated[int, Query(ge=1, le=500, description="Entries on a page.")]


@router.get("/me", tags=["people"])
def me(account: Caller) -> Person:
    """Whose key this is."""
    return Person.of(account)


@router.get("/me/data", tags=["people"])
def my_data(account: Caller, site: AnySite) -> dict[str, JsonValue]:
    """All that is kept about you."""
    return site.accounts.personal_data(account.id)


@router.put("/me/limits", tags=["people"])
def limit_me(limits: Limits, account: Caller, site: AnySite) -> Person:
    """Limit what you are asked to see."""
    return Person.of(site.accounts.change(account.id, account.id, daily_cap=limits.daily_cap, avoid=limits.avoid))


@router.get("/projects", tags=["projects"])
def projects(_: Caller, site: AnySite) -> list[ProjectState]:
    """All projects, in the order they were made."""
    return [ProjectState.of(project) for project in site.projects.all()]


@router.post("/projects", status_code=201, tags=["projects"])
def create_project(new: NewProject, account: Lead, site: AnySite) -> ProjectState:
    """Make a project; what the settings leave out is as by default."""
    return ProjectState.of(site.projects.create(new.name, new.settings, account.id))


@router.get("/projects/{project_id}", tags=["projects"])
def project(project_id: IdInPath, account: Caller, site: AnySite) -> ProjectState:
    """A project as it stands; with counts for those who may see it all."""
    found = site.projects.get(project_id)
    return ProjectState.of(found, counts(site.database, project_id) if account.may("see") else None)


@router.put("/projects/{project_id}", tags=["projects"])
def change_project(project_id: IdInPath, changed: ChangedSettings, account: Lead, site: AnySite) -> ProjectState:
    """Replace a project's settings, which were read at the revision that is named."""
    return ProjectState.of(site.projects.change(project_id, changed.settings, changed.revision, account.id))


@router.post("/projects/{project_id}/archive", tags=["projects"])
def archive_project(project_id: IdInPath, account: Lead, site: AnySite) -> ProjectState:
    """Give out no more tasks of a project."""
    site.projects.archive(project_id, account.id)
    return ProjectState.of(site.projects.get(project_id))


@router.post("/projects/{project_id}/reopen", tags=["projects"])
def reopen_project(project_id: IdInPath, account: Lead, site: AnySite) -> ProjectState:
    """Give out tasks of an archived project again."""
    site.projects.archive(project_id, account.id, archived=False)
    return ProjectState.of(site.projects.get(project_id))


@router.post("/projects/{project_id}/items", tags=["items"])
def add_items(project_id: IdInPath, new: NewItems, account: Lead, site: AnySite) -> AddedItems:
    """Add prompts with their responses; those that the project has are left as they are."""
    items = [(item.tagged_prompt(), item.responses) for item in new.items]
    added = site.projects.add_items(project_id, items, account.id, gold=[item.gold for item in new.items])
    return AddedItems(**added._asdict())


@router.post("/projects/{project_id}/prompts", tags=["items"])
def add_prompts(project_id: IdInPath, new: NewPrompts, account: Lead, site: AnySite) -> AddedPrompts:
    """Let prompts wait for a policy, whose responses become items as annotators need them."""
    waiting = WaitingPrompts(site.database)
    added = waiting.add(project_id, [prompt.tagged_prompt() for prompt in new.prompts], account.id)
    return AddedPrompts(**added._asdict(), waiting=waiting.count(project_id))


@router.delete("/projects/{project_id}/prompts", tags=["items"])
def clear_prompts(project_id: IdInPath, account: Lead, site: AnySite) -> ClearedPrompts:
    """Let no prompt wait any more. Items stay, and what is added again waits again; what a policy is answering just now becomes no item."""
    return ClearedPrompts(cleared=WaitingPrompts(site.database).clear(project_id, account.id))


@router.get("/projects/{project_id}/items", tags=["items"])
def items(project_id: IdInPath, _: Lead, site: AnySite, after: After = 0, limit: Limit = 100) -> Page[Item]:
    """A project's items with all that is known of them, in the order they were added."""
    with site.database.read() as session:
        find_project(session, project_id)
        query = select(ItemRow).where(ItemRow.project_id == project_id, ItemRow.id > after).order_by(ItemRow.id).limit(limit + 1)
        rows = session.scalars(query).all()
        return _page(read_items(session, rows[:limit]), len(rows) > limit)


@router.get("/projects/{project_id}/disputes", tags=["items"])
def disputed(project_id: IdInPath, _: Lead, site: AnySite, limit: Limit = 100) -> list[DisputedItem]:
    """Items that several annotators judged, the most disputed first."""
    site.projects.get(project_id)
    found = disputes(standing_judgements(site.database, project_id))[:limit]
    decided = decided_items(site.database, project_id)
    return [DisputedItem(**dispute._asdict(), decided=dispute.item_id in decided) for dispute in found]


@router.post("/items/{item_id}/decisions", status_code=201, tags=["items"])
def decide(item_id: IdInPath, decision: NewDecision, account: Lead, site: AnySite) -> Id:
    """Rank an item yourself, beside what the annotators said and never over it."""
    return Id(id=site.tasks.decide(item_id, account.id, decision.ranks, decision.note))


@router.post("/projects/{project_id}/tasks/next", responses={204: {"description": "Nothing is left for you today."}}, tags=["tasks"])
def next_task(project_id: IdInPath, account: Labeller, site: AnySite) -> GivenTask:
    """The task that you have open, or a new one, which is yours for a while."""
    return _task_or_nothing(site.tasks.next(project_id, account.id))


@router.post("/projects/{project_id}/undo", responses={204: {"description": "You have answered nothing."}}, tags=["tasks"])
def undo(project_id: IdInPath, account: Labeller, site: AnySite) -> GivenTask:
    """Take back your last answer, which is kept as undone, and have its task again."""
    return _task_or_nothing(site.tasks.undo(project_id, account.id))


@router.post("/tasks/{lease_id}/answer", status_code=201, tags=["tasks"])
def answer(lease_id: IdInPath, said: AnswerToTask, account: Labeller, site: AnySite) -> Id:
    """Answer a task of yours; the answer is on disk when this returns. Sent twice, it is kept once."""
    return Id(id=site.tasks.answer(lease_id, account.id, said))


@router.post("/tasks/{lease_id}/skip", status_code=204, tags=["tasks"])
def skip(lease_id: IdInPath, skipped: Skip, account: Labeller, site: AnySite) -> None:
    """Give a task of yours back unanswered; it goes to someone else."""
    site.tasks.skip(lease_id, account.id, skipped.reason, skipped.note)


@router.get("/projects/{project_id}/answers", tags=["answers"])
def answers(project_id: IdInPath, account: Caller, site: AnySite, after: After = 0, limit: Limit = 100) -> Page[GivenAnswer]:
    """What was said in a project, in the order it was said: everything to leads, to anyone else their own."""
    everything = account.may("lead")
    with site.database.read() as session:
        find_project(session, project_id)
        query = (
            select(AnswerRow, LeaseRow, AccountRow.name)
            .join(LeaseRow, LeaseRow.id == AnswerRow.lease_id)
            .join(ItemRow, ItemRow.id == AnswerRow.item_id)
            .join(AccountRow, AccountRow.id == AnswerRow.account_id)
            .where(ItemRow.project_id == project_id, AnswerRow.id > after)
            .order_by(AnswerRow.id)
            .limit(limit + 1)
        )
        rows = session.execute(query if everything else query.where(AnswerRow.account_id == account.id)).tuples().all()
        return _page(read_answers(session, rows[:limit], everything), len(rows) > limit)


@router.get("/projects/{project_id}/quality", tags=["answers"])
def project_quality(project_id: IdInPath, _: Watcher, site: AnySite) -> Quality:
    """What the answers show: progress, agreement, biases, and each annotator's numbers."""
    return look(site.database, site.projects.get(project_id)).quality


@router.get("/projects/{project_id}/reward-models", tags=["answers"])
def scored_by(project_id: IdInPath, _: Watcher, site: AnySite) -> list[ScoredBy]:
    """The latest reward models that scored the project's responses, the newest first, and how far each agrees with people."""
    return [ScoredBy.of(found) for found in look(site.database, site.projects.get(project_id)).reward_models]


def filters(
    annotator: Annotated[list[str], Query(description="Only what these say.")] = [],  # noqa: B006
    since: Annotated[str, Query(description="Only answers from this date or time on, in ISO 8601.")] = "",
    until: Annotated[str, Query(description="Only answers before this date or time.")] = "",
    without_flag: Annotated[list[str], Query(description="Leave out responses with one of these flags.")] = [],  # noqa: B006
    min_agreement: Annotated[float, Query(ge=0, le=1, description="Leave out what annotators agree on less.")] = 0.0,
    checks: Annotated[bool, Query(description="Also answers to gold items and repetitions.")] = False,
) -> Filters:
    """The filters that a query names."""
    return Filters(
        annotators=tuple(annotator),
        since=read_time(since) if since else None,
        until=read_time(until) if until else None,
        without_flags=tuple(without_flag),
        min_agreement=min_agreement,
        checks=checks,
    )


Chosen = Annotated[Filters, Depends(filters)]
Weights = Annotated[bool, Query(description="Weigh labels by their annotator's reliability; not for demonstrations.")]


@router.get(
    "/projects/{project_id}/export/{kind}",
    tags=["answers"],
    response_class=StreamingResponse,
    responses={200: {"description": "A row in each line, as JSON.", "content": {JSON_LINES: {"schema": {"type": "string"}}}}},
)
def export(
    project_id: IdInPath, kind: Kind | Literal["full"], account: Lead, site: AnySite, chosen: Chosen, weights: Weights = False
) -> StreamingResponse:
    """The answers as training data; `full` is all of the project, whatever the filters, for another database to read."""
    weigh = label_weights if weights else None
    rows = project_rows(site.database, project_id) if kind == "full" else Export(site.database, project_id, kind, chosen, weigh).rows()
    first = list(islice(rows, 1))  # what is wrong with the request shows now, before anything is sent
    with site.database.write() as session:
        audit(session, account.id, "project.export", project=project_id, kind=kind)
    return StreamingResponse((json.dumps(row, ensure_ascii=False) + "\n" for row in chain(first, rows)), media_type=JSON_LINES)


@router.get(
    "/projects/{project_id}/export/{kind}/card",
    tags=["answers"],
    response_class=Response,
    responses={200: {"description": "Counts and agreement.", "content": {"text/markdown": {"schema": {"type": "string"}}}}},
)
def data_card(project_id: IdInPath, kind: Kind, _: Lead, site: AnySite, chosen: Chosen, weights: Weights = False) -> Response:
    """What the rows of an export are, and what they leave out."""
    found = Export(site.database, project_id, kind, chosen, label_weights if weights else None)
    for _row in found.rows():
        pass
    return Response(found.card(), media_type="text/markdown")


@router.get("/projects/{project_id}/learning-curves", tags=["projects"])
def project_curves(project_id: IdInPath, _: Watcher, site: AnySite) -> list[LearningCurve]:
    """How accurate reward models became from parts of the labels, as `heed feedback curve` measured it, and what more would buy."""
    site.projects.get(project_id)
    return learning_curves(site.database, project_id)


@router.get("/people", tags=["people"])
def people(_: Lead, site: AnySite) -> list[Person]:
    """Everyone who has an account."""
    return [Person.of(account) for account in site.accounts.all()]


@router.post("/invitations", status_code=201, tags=["people"])
def invite(new: NewInvitation, account: Lead, site: AnySite) -> Invitation:
    """Make a link that makes one account; owners alone invite owners."""
    if new.role not in invitable(account):
        raise Forbidden(f"a {account.role} may not invite an owner", fix="ask an owner to")
    return Invitation(path=f"/join/{site.accounts.invite(new.role, account.id, days=new.days)}", role=new.role)


@router.get("/invitations", tags=["people"])
def open_invitations(_: Lead, site: AnySite) -> list[OpenInvitation]:
    """Those that can still be accepted, the oldest first; `digest` names one, and is not its link."""
    return site.accounts.invitations()


@router.delete("/invitations/{digest}", status_code=204, tags=["people"])
def withdraw_invitation(digest: Digest, account: Lead, site: AnySite) -> None:
    """Make a link good for nothing; owners alone withdraw an owner's."""
    site.accounts.withdraw(digest, account)


@router.put("/people/{account_id}/role", tags=["people"])
def change_role(account_id: IdInPath, new: NewRole, account: Owner, site: AnySite) -> Person:
    """Change what a person may do; one owner always stays."""
    return Person.of(site.accounts.change_role(account_id, new.role, account.id))


@router.put("/people/{account_id}/daily-cap", tags=["people"])
def change_daily_cap(account_id: IdInPath, new: DailyCap, account: Lead, site: AnySite) -> Person:
    """Change how many answers a day a person may give."""
    return Person.of(site.accounts.change(account_id, account.id, daily_cap=new.daily_cap))


@router.delete("/people/{account_id}", tags=["people"])
def delete_person(account_id: IdInPath, account: Owner, site: AnySite) -> Pseudonym:
    """Forget a person; what they judged stays, under a pseudonym. One owner always stays."""
    return Pseudonym(pseudonym=site.accounts.delete(account_id, account.id))


@router.get("/audit", tags=["people"])
def audit_log(_: Owner, site: AnySite, action: Action = "", before: Before = None) -> Page[Event]:
    """Who changed what, newest first."""
    entries = site.accounts.log(action, before)
    return Page(
        entries=[Event(id=e.id, at=e.at, by=e.who, action=e.action, detail=e.detail) for e in entries],
        next=entries[-1].id if len(entries) == LOG_PAGE else None,
    )


def _task_or_nothing(task: Task | None) -> Any:
    return Response(status_code=204) if task is None else GivenTask.of(task)


def _page(entries: list[Any], more: bool) -> Page[Any]:
    return Page(entries=entries, next=entries[-1].id if more else None)
