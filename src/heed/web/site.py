"""What every page stands on: the database's services, templates, and who is asking."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from pydantic import Field
from starlette.datastructures import FormData

import heed
from heed.errors import UserError
from heed.feedback.accounts import Account, Accounts, SignedIn
from heed.feedback.database import Database
from heed.feedback.projects import Forbidden, Projects
from heed.feedback.store import FeedbackStore
from heed.feedback.tasks import Tasks
from heed.web.limits import MAX_BODY, Attempts

HERE = Path(__file__).parent
COOKIE = "heed_session"


class SignInFirst(Exception):
    """The page is for people who are signed in."""


@dataclass(frozen=True)
class Site:
    """The services behind the pages, made once for an app."""

    database: Database
    secure_cookies: bool = False
    """Whether browsers may send the cookie over https alone."""
    by_name: Attempts = field(default_factory=Attempts)
    """Tries to sign in, by the name that was given."""
    by_address: Attempts = field(default_factory=lambda: Attempts(most=50))
    """The same by where they came from, which a whole office may share."""
    wrong_keys: Attempts = field(default_factory=Attempts)
    """Keys to the API that are none, by where they came from."""
    templates: Environment = field(init=False)

    def __post_init__(self) -> None:
        environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            undefined=StrictUndefined,
            autoescape=select_autoescape(["html.j2"], default=True),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.globals["version"] = heed.__version__
        object.__setattr__(self, "templates", environment)

    @property
    def accounts(self) -> Accounts:
        return Accounts(self.database)

    @property
    def projects(self) -> Projects:
        return Projects(self.database)

    @property
    def tasks(self) -> Tasks:
        return Tasks(self.database)

    @property
    def store(self) -> FeedbackStore:
        return FeedbackStore(self.database)


def site_of(request: Request) -> Site:
    return request.app.state.site


def signed_in(request: Request) -> SignedIn | None:
    """Whose browser asks, if anyone is signed in there; looked up once for a request."""
    if not hasattr(request.state, "signed"):
        token = request.cookies.get(COOKIE)
        request.state.signed = site_of(request).accounts.signed_in(token) if token else None
    return request.state.signed


# What waits for nothing is `async` below: else each would take a thread, one after the other, for every request.
async def any_site(request: Request) -> Site:
    return site_of(request)


async def visitor(signed: Annotated[SignedIn | None, Depends(signed_in)]) -> SignedIn:
    """Who is asking; sends everyone else to the sign-in page."""
    if signed is None:
        raise SignInFirst
    return signed


Id = Annotated[int, Field(ge=0, lt=2**31)]
"""A number that databases take as a key."""
AnySite = Annotated[Site, Depends(any_site)]
Visitor = Annotated[SignedIn, Depends(visitor)]


def having(right: str) -> Any:
    """A dependency: whoever asks is signed in and has this right (see `accounts.RIGHTS`)."""

    async def check(signed: Visitor) -> Account:
        if not signed.account.may(right):
            raise Forbidden(f"the role {signed.account.role} may not do this", fix="ask an owner for another role")
        return signed.account

    return Depends(check)


Labeller = Annotated[Account, having("label")]
Watcher = Annotated[Account, having("see")]
Lead = Annotated[Account, having("lead")]
Owner = Annotated[Account, having("own")]


async def checked_form(request: Request, signed: Visitor) -> FormData:
    """The fields of a form that a page of this very session sent; Forbidden for any other."""
    form = await request.form(max_files=1, max_fields=1000, max_part_size=MAX_BODY)
    given = form.get("csrf") or request.headers.get("x-csrf-token") or ""
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(errors="replace"), signed.csrf.encode()):
        raise Forbidden("this form does not come from your session", fix="go back, reload the page and send it again")
    return form


Form = Annotated[FormData, Depends(checked_form)]


def text_field(form: FormData, name: str, default: str | None = None) -> str:
    """A field of a form as text; UserError where it is missing, a file, or holds what is no character."""
    value = form.get(name, default)
    if not isinstance(value, str):
        raise UserError(f"the form has no field {name!r}", fix="reload the page and send it again")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{name} holds bytes that are no text", fix="remove them")
    return value.replace("\r\n", "\n")


def number_field(form: FormData, name: str, kind: type[int] | type[float] = int) -> Any:
    """A field of a form as a number; UserError where it is none."""
    text = text_field(form, name).strip()
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name} is {text[:80]!r}", expected="a whole number" if kind is int else "a number") from None


def render(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A page; templates also see `me` (the account, or none), `csrf`, and `path`."""
    signed = signed_in(request)
    context = {"me": signed.account if signed else None, "csrf": signed.csrf if signed else "", "path": request.url.path, **context}
    return HTMLResponse(site_of(request).templates.get_template(template).render(context), status)


def go(path: str) -> RedirectResponse:
    """To another page, by GET."""
    return RedirectResponse(path, status_code=303)
