"""Labelling over the network: a project on a server, for programs and simulated annotators that hold a key."""

from __future__ import annotations

import json
from dataclasses import asdict
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from heed.errors import UserError
from heed.feedback.projects import Conflict, NotFound
from heed.feedback.simulated import SimulatedAnnotator
from heed.feedback.tasks import Answer, Task
from heed.records import Message, Prompt

ERRORS: dict[int, type[UserError]] = {HTTPStatus.NOT_FOUND: NotFound, HTTPStatus.CONFLICT: Conflict}


class RemoteProject:
    """A project of a server as whoever holds the key works on it: take a task, answer or skip it.

    `url` is the server's, such as `http://127.0.0.1:8000`. Every call raises UserError where the server cannot be reached or
    refuses: NotFound for a task of someone else, Conflict for one that was lost meanwhile.
    """

    def __init__(self, url: str, token: str, project: int, *, timeout: float = 60.0) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"{url!r} is no address of a server", expected="one such as http://127.0.0.1:8000")
        self.url, self.project, self.timeout = url.rstrip("/"), project, timeout
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._opener = build_opener(_Stay)

    def next(self) -> Task | None:
        """The task that is open, or a new one; None where nothing is left."""
        return _task(self._post(f"projects/{self.project}/tasks/next"))

    def answer(self, task: Task, answer: Answer) -> int:
        """Answer a task, responses in the order of the task; returns the answer's id once it is on the server's disk."""
        return self._post(f"tasks/{task.lease_id}/answer", asdict(answer))["id"]

    def skip(self, task: Task, reason: str, note: str = "") -> None:
        """Give a task back unanswered; it goes to someone else."""
        self._post(f"tasks/{task.lease_id}/skip", {"reason": reason, "note": note})

    def undo(self) -> Task | None:
        """Take back the last answer and have its task again; None where there is none."""
        return _task(self._post(f"projects/{self.project}/undo"))

    def _post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the server answers; None where it says nothing."""
        data = b"" if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}/api/v1/{path}", data, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return json.loads(text) if (text := response.read()) else None
        except HTTPError as error:
            raise ERRORS.get(error.code, UserError)(f"{self.url}: {_reason(error)}") from None
        except (OSError, HTTPException) as error:
            raise UserError(f"{self.url} does not answer: {error}", fix="check that the server runs there") from None
        except ValueError:
            raise UserError(f"{self.url} does not answer in JSON", fix="check that heed runs there") from None


def work(project: RemoteProject, annotator: SimulatedAnnotator) -> int:
    """Have a simulated annotator rank what the server shows until nothing is left; returns the number of answers."""
    count = 0
    while (task := project.next()) is not None:
        project.answer(task, Answer(ranks=annotator.rank_shown(task.prompt, task.responses)))
        count += 1
    return count


class _Stay(HTTPRedirectHandler):
    """Follows no redirect: the key is for this server alone."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _task(found: Any) -> Task | None:
    if found is None:
        return None
    content, answer = found["prompt"], found["answer"]
    prompt = Prompt(
        content if isinstance(content, str) else tuple(Message(**message) for message in content),
        {"categories": ", ".join(found["categories"])} if found["categories"] else {},
    )
    return Task(found["lease_id"], found["item_id"], prompt, tuple(found["responses"]), None if answer is None else _answer(answer))


def _answer(fields: dict[str, Any]) -> Answer:
    """As it was before it went through JSON, which has lists alone."""
    ranks = fields["ranks"]
    said = {name: {key: tuple(values) for key, values in fields[name].items()} for name in ("ratings", "flags")}
    return Answer(**{**fields, **said, "ranks": None if ranks is None else tuple(ranks)})


def _reason(error: HTTPError) -> str:
    """Why the server refuses, in its own words where it has some."""
    try:
        return json.loads(error.read())["error"]
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
