"""Pages about people: signing in and out, invitations, who is in the team, one's own account, and the audit log."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import FormData, Headers

from heed.errors import UserError
from heed.feedback.accounts import INVITATION_DAYS, LOG_PAGE, ROLES, SESSION_DAYS, SHORTEST_PASSWORD, Account, LogEntry, invitable, name_key
from heed.web.limits import visitor
from heed.web.site import COOKIE, AnySite, Forbidden, Form, Id, Lead, Owner, Site, Visitor, go, number_field, render, signed_in, text_field

router = APIRouter()

ACTIONS = ("sign_in", "invite", "account", "token", "project", "items", "answer", "skip", "undo", "decide")
"""What entries of the audit log begin with, for choosing among them."""

TOO_OFTEN = "Too many tries. Wait a few minutes, then try again."


async def strangers_form(request: Request) -> FormData:
    """The few short fields that someone sends who is not signed in; Forbidden where another site's page made them send it."""
    # Without a session there is no token to check, but browsers say where a form comes from.
    if not _same_origin(request.headers):
        raise Forbidden("this form comes from another site", fix="open the page here and send it again")
    return await request.form(max_files=0, max_fields=10, max_part_size=2**14)


StrangersForm = Annotated[FormData, Depends(strangers_form)]


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    if signed_in(request) is not None:
        return go("/")
    return render(request, "sign_in.html.j2", name="", problem=None)


@router.post("/sign-in")
def sign_in(request: Request, site: AnySite, form: StrangersForm) -> Response:
    name, password = text_field(form, "name"), text_field(form, "password")
    key, address = name_key(name[:100]), visitor(request)
    if wait := site.by_address.begin(address) or site.by_name.begin(key):
        return _later(render(request, "sign_in.html.j2", status=429, name=name[:100], problem=TOO_OFTEN), wait)
    token = site.accounts.sign_in(name, password)
    if token is None:
        return render(request, "sign_in.html.j2", status=403, name=name[:100], problem="The name or the password is wrong.")
    site.by_address.succeeded(address)
    site.by_name.succeeded(key)
    return _enter(request, site, token)


@router.post("/sign-out")
def sign_out(request: Request, site: AnySite, form: Form) -> Response:
    site.accounts.sign_out(request.cookies[COOKIE])
    return _leave(site)


@router.get("/join/{token}")
def join_page(request: Request, token: str, site: AnySite) -> Response:
    return render(request, "join.html.j2", role=site.accounts.invited_role(token), name="", problem=None, shortest=SHORTEST_PASSWORD)


@router.post("/join/{token}")
def join(request: Request, token: str, site: AnySite, form: StrangersForm) -> Response:
    role = site.accounts.invited_role(token)
    name, password = text_field(form, "name"), text_field(form, "password")
    try:
        account = site.accounts.accept(token, name, password)
    except UserError as error:
        return render(request, "join.html.j2", status=422, role=role, name=name[:100], problem=_sentence(error), shortest=SHORTEST_PASSWORD)
    return _enter(request, site, site.accounts.start_session(account.id))


@router.get("/people")
def people_page(request: Request, site: AnySite, me: Lead) -> Response:
    return _people(request, site, me)


@router.post("/people/invite")
def invite(request: Request, site: AnySite, me: Lead, form: Form) -> Response:
    role = text_field(form, "role")
    if role not in invitable(me):
        raise Forbidden(f"the role {me.role} may not invite {role[:20]!r}", fix=f"choose {', '.join(invitable(me))}")
    token = site.accounts.invite(role, me.id)  # pyright: ignore[reportArgumentType]
    # Behind a proxy that speaks https the request itself came over http.
    address = request.base_url.replace(scheme="https") if site.secure_cookies else request.base_url
    return _people(request, site, me, link=f"{str(address).rstrip('/')}/join/{token}", role=role)


@router.post("/people/invitations/{digest}/withdraw")
def withdraw(digest: str, site: AnySite, me: Lead, form: Form) -> Response:
    site.accounts.withdraw(digest, me)
    return go("/people")


@router.post("/people/{account_id}/role")
def change_role(account_id: Id, site: AnySite, me: Owner, form: Form) -> Response:
    site.accounts.change_role(account_id, text_field(form, "role"), me.id)  # pyright: ignore[reportArgumentType]
    return go("/people" if account_id != me.id else "/")


@router.post("/people/{account_id}/limits")
def change_limits(account_id: Id, site: AnySite, me: Lead, form: Form) -> Response:
    """The daily cap alone: what people avoid is theirs to say."""
    site.accounts.change(account_id, me.id, daily_cap=_daily_cap(form))
    return go("/people")


@router.post("/people/{account_id}/delete")
def delete_person(account_id: Id, site: AnySite, me: Owner, form: Form) -> Response:
    _confirm(form, site.accounts.get(account_id))
    site.accounts.delete(account_id, me.id)
    return _leave(site) if account_id == me.id else go("/people")


@router.get("/account")
def account_page(request: Request, site: AnySite, signed: Visitor) -> Response:
    return _account(request, site, signed.account)


@router.post("/account/password")
def change_password(request: Request, site: AnySite, signed: Visitor, form: Form) -> Response:
    """Under the same limit as signing in: whoever finds a browser open must not guess on."""
    me = signed.account
    if wait := site.by_name.begin(name_key(me.name)):
        return _later(_account(request, site, me, status=429, problem=TOO_OFTEN), wait)
    try:
        site.accounts.change_password(me.id, text_field(form, "old"), text_field(form, "new"))
    except UserError as error:
        return _account(request, site, me, status=422, problem=_sentence(error))
    site.by_name.succeeded(name_key(me.name))
    return _enter(request, site, site.accounts.start_session(me.id), "/account")


@router.post("/account/limits")
def change_own_limits(site: AnySite, signed: Visitor, form: Form) -> Response:
    chosen = [name for name in form.getlist("avoid") if isinstance(name, str)] + text_field(form, "avoid_also", "").split(",")
    site.accounts.change(signed.account.id, signed.account.id, daily_cap=_daily_cap(form), avoid=chosen)
    return go("/account")


@router.post("/account/tokens")
def new_token(request: Request, site: AnySite, signed: Visitor, form: Form) -> Response:
    return _account(request, site, signed.account, token=site.accounts.new_token(signed.account.id, text_field(form, "label")))


@router.post("/account/tokens/{digest}/revoke")
def revoke_token(digest: str, site: AnySite, signed: Visitor, form: Form) -> Response:
    site.accounts.revoke_token(signed.account.id, digest)
    return go("/account")


@router.get("/account/export")
def export_account(site: AnySite, signed: Visitor) -> Response:
    headers = {"Content-Disposition": 'attachment; filename="heed-account.json"'}
    return JSONResponse(site.accounts.personal_data(signed.account.id), headers=headers)


@router.post("/account/delete")
def delete_account(site: AnySite, signed: Visitor, form: Form) -> Response:
    _confirm(form, signed.account)
    site.accounts.delete(signed.account.id, signed.account.id)
    return _leave(site)


@router.get("/audit")
def audit_page(request: Request, site: AnySite, me: Owner, action: str = "", before: Id | None = None) -> Response:
    entries = site.accounts.log(action.strip()[:40], before)
    older = entries[-1].id if len(entries) == LOG_PAGE else None
    names = {person.id: person.name for person in (*site.accounts.all(), *site.accounts.imported())}

    def told(entry: LogEntry) -> list[tuple[str, str]]:
        detail = entry.detail | ({"account": names.get(entry.detail["account"])} if entry.detail.get("account") in names else {})
        return [
            (key, value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)) for key, value in detail.items()
        ]

    return render(request, "audit.html.j2", entries=entries, told=told, action=action, before=before, older=older, actions=ACTIONS)


def _people(request: Request, site: Site, me: Account, link: str | None = None, role: str | None = None) -> Response:
    people, today = site.accounts.all(), site.accounts.answers_today()
    roles = {"all": ROLES, "invitable": invitable(me), "invited": role}
    told = {"link": link, "days": INVITATION_DAYS, "invitations": site.accounts.invitations(), "imported": site.accounts.imported()}
    return render(request, "people.html.j2", people=people, today=today, roles=roles, **told)


def _account(
    request: Request, site: Site, me: Account, *, status: int = 200, problem: str | None = None, token: str | None = None
) -> Response:
    context: dict[str, Any] = {
        "categories": sorted({name.casefold(): name for name in (*site.accounts.categories(), *me.avoid)}.values()),
        "tokens": site.accounts.tokens(me.id),
        "today": site.accounts.answers_today().get(me.id, 0),
        "shortest": SHORTEST_PASSWORD,
    }
    return render(request, "account.html.j2", status=status, problem=problem, new_token=token, **context)


def _enter(request: Request, site: Site, token: str, path: str = "/") -> Response:
    """Begin this session in the browser, and end the one that it had."""
    if COOKIE in request.cookies:
        site.accounts.sign_out(request.cookies[COOKIE])
    response = go(path)
    response.set_cookie(
        COOKIE, token, max_age=SESSION_DAYS * 24 * 3600, path="/", secure=site.secure_cookies, httponly=True, samesite="lax"
    )
    return response


def _later(response: Response, wait: float) -> Response:
    response.headers["Retry-After"] = str(math.ceil(wait))
    return response


def _leave(site: Site) -> Response:
    response = go("/sign-in")
    response.delete_cookie(COOKIE, path="/", secure=site.secure_cookies, httponly=True, samesite="lax")
    return response


def _same_origin(headers: Headers) -> bool:
    """Whether a form was sent by a page of this app, as far as the browser tells; programs that are no browsers tell nothing."""
    # Sent to https and to this machine, and true behind a proxy that gives the app another name.
    if site := headers.get("sec-fetch-site"):
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _daily_cap(form: FormData) -> int | None:
    return number_field(form, "daily_cap") if text_field(form, "daily_cap").strip() else None


def _confirm(form: FormData, account: Account) -> None:
    if name_key(text_field(form, "name")) != name_key(account.name):
        raise UserError(
            "the name that was typed is another", expected=account.name, fix="go back and type it to confirm; nothing was deleted"
        )


def _sentence(error: UserError) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
