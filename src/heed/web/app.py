"""The app: its pages put together, and what holds for all of them: headers, limits, and how errors look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import heed
from heed.errors import UserError
from heed.feedback.database import Database
from heed.feedback.projects import Conflict, NotFound
from heed.web import adjudicate, api, dashboard, export, label, people, projects
from heed.web.limits import MAX_BODY, BodyLimit
from heed.web.site import HERE, Forbidden, SignInFirst, Site, go, render

PARTS = (people, projects, label, adjudicate, dashboard, export, api)
THREADS = 4
"""Requests that are worked on at once. More would wait for each other all the same, and longer: whoever holds a project's lock
gives up the interpreter at every statement, and gets it back when the others let it."""
HEADERS = {
    # Nothing runs or loads but what the app itself serves: no script of a prompt or a response can.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
STATUS: dict[type[UserError], HTTPStatus] = {
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    Forbidden: HTTPStatus.FORBIDDEN,
}


class Headers:
    """Sends the headers above with every answer."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]) -> None:
        self.app, self.headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                # Pages hold what only this person may see; files are asked for anew after an update.
                headers["Cache-Control"] = "no-cache" if scope["path"].startswith("/static/") else "no-store"
            await send(message)

        await self.app(scope, receive, sent)


@asynccontextmanager
async def _few_at_once(_: FastAPI) -> AsyncIterator[None]:
    current_default_thread_limiter().total_tokens = THREADS
    yield


def create_app(database: Database, *, secure_cookies: bool = False) -> FastAPI:
    """The app over an open database; `secure_cookies` where it is served over https."""
    app = FastAPI(
        title="heed", version=heed.__version__, docs_url=None, redoc_url=None, openapi_url="/api/openapi.json", lifespan=_few_at_once
    )
    app.state.site = Site(database, secure_cookies)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for part in PARTS:
        app.include_router(part.router, include_in_schema=part is api)
    headers = HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if secure_cookies else {})
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY)
    app.add_middleware(Headers, headers=headers)

    # Not async: they read the database to know for whom the page is.
    @app.exception_handler(SignInFirst)
    def to_sign_in(request: Request, _: Exception) -> Response:
        if "hx-request" in request.headers:  # the whole page must go there, not the part that asked
            return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": "/sign-in"})
        return go("/sign-in")

    @app.exception_handler(UserError)
    def told(request: Request, error: UserError) -> Response:
        return tell(request, STATUS.get(type(error), HTTPStatus.UNPROCESSABLE_ENTITY), str(error))

    @app.exception_handler(RequestValidationError)
    def misread(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return tell(request, HTTPStatus.UNPROCESSABLE_ENTITY, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: HTTPException) -> Response:
        response = tell(request, HTTPStatus(error.status_code), str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> Response:
        # Beyond the middlewares, and without the database, which may be what broke.
        return PlainTextResponse("heed made a mistake; its log says more. What was acknowledged before is kept.", 500, headers)

    return app


def tell(request: Request, status: HTTPStatus, message: str) -> Response:
    """An error, as JSON to programs and as a page to people."""
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message}, status)
    return render(request, "error.html.j2", status=status, title=status.phrase, message=message)
