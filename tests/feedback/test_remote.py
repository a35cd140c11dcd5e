"""Labelling over HTTP, with a real server on a port of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from heed.errors import UserError
from heed.feedback import FeedbackStore, SimulatedAnnotator
from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Conflict, NotFound, Projects, ProjectSettings
from heed.feedback.remote import RemoteProject, work
from heed.feedback.schema import AccountRow
from heed.feedback.tasks import Answer
from heed.records import Message, Prompt, Response
from heed.web.app import create_app

UTILITY = {"good": 2.0, "fair": 1.0, "bad": 0.0}


def utility(prompt: Prompt, response: str) -> float:
    return UTILITY[response.split()[0]]


def annotator(name: str, *, position_bias: float = 0.0, tie_threshold: float = 0.0) -> SimulatedAnnotator:
    return SimulatedAnnotator(name, utility, position_bias=position_bias, tie_threshold=tie_threshold, temperature=0.0)


@pytest.fixture
def server(database: Database) -> Iterator[str]:
    """The address of the app, which runs in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        running = uvicorn.Server(uvicorn.Config(create_app(database), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join()


def key_of(database: Database, name: str, role: str = "annotator") -> str:
    with database.write() as session:
        row = AccountRow(name=name, password="none", role=role, avoid=[])
        session.add(row)
        session.flush()
        number = row.id
    return Accounts(database).new_token(number, "test")


def make_project(database: Database, num_items: int = 6, **settings: int) -> int:
    projects = Projects(database)
    project = projects.create("Ranked", ProjectSettings(**{"num_responses": 3, **settings}), None)  # pyright: ignore[reportArgumentType]
    prompts = [Prompt((Message("user", f"Question {i}?"),)) for i in range(num_items)]
    projects.add_items(project.id, [(prompt, [Response(f"{word} {prompt.id}") for word in UTILITY]) for prompt in prompts], None)
    return project.id


def test_simulated_annotators_label_a_whole_project_and_every_order_is_respected(database: Database, server: str):
    project = make_project(database, num_items=12, overlap=2)
    annotators = [annotator("Ann"), annotator("Bob", position_bias=100.0)]
    counts = {a.name: work(RemoteProject(server, key_of(database, a.name), project), a) for a in annotators}
    assert counts == {"Ann": 12, "Bob": 12}
    judgements = FeedbackStore(database).judgements()
    assert len(judgements) == 24
    best_first = {"Ann": 0, "Bob": 0}
    for judgement in judgements:
        by_utility = sorted(range(3), key=lambda i: -utility(judgement.prompt, judgement.responses[i]))
        first = judgement.order_shown[0]
        if judgement.annotator == "Bob":  # the one shown first, then the others by what they are worth
            by_utility = [first, *(i for i in by_utility if i != first)]
        assert [judgement.ranks[i] for i in by_utility] == [1, 2, 3]
        best_first[judgement.annotator] += judgement.ranks[first] == 1
    assert best_first["Bob"] == 12
    assert best_first["Ann"] < 12, "what is shown first changes"


def test_annotators_at_work_at_once_share_a_project_without_a_loss(database: Database, server: str):
    project = make_project(database, num_items=12)
    names = ["Ann", "Bob", "Cat"]
    remotes = [RemoteProject(server, key_of(database, name), project) for name in names]
    threads = [threading.Thread(target=work, args=(remote, annotator(name))) for remote, name in zip(remotes, names, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    prompts = [judgement.prompt.id for judgement in FeedbackStore(database).judgements()]
    assert len(prompts) == len(set(prompts)) == 12


def test_a_task_is_skipped_undone_and_lost_as_on_the_pages(database: Database, server: str):
    project = make_project(database, num_items=2)
    ann = RemoteProject(server, key_of(database, "Ann"), project)
    bob = RemoteProject(server, key_of(database, "Bob"), project)
    first = ann.next()
    assert first is not None
    assert isinstance(first.prompt.text, tuple)
    ann.skip(first, "no idea")
    second = ann.next()
    assert second is not None
    assert second.item_id != first.item_id
    said = Answer(ranks=(2, 1, 2), flags={"toxic": (0,)}, note="hm")
    ann.answer(second, said)
    assert ann.next() is None
    again = ann.undo()
    assert again is not None
    assert (again.lease_id, again.responses, again.answer) == (second.lease_id, second.responses, said)
    with pytest.raises(NotFound, match="no task"):
        bob.answer(second, said)
    ann.answer(again, said)
    with pytest.raises(Conflict, match="answered already"):
        ann.skip(again, "too late")


def test_what_the_server_refuses_is_told_in_its_words(database: Database, server: str):
    project = make_project(database)
    key = key_of(database, "Ann")
    task = RemoteProject(server, key, project).next()
    assert task is not None
    with pytest.raises(UserError, match="expected a whole number from 1 for each of 3 responses"):
        RemoteProject(server, key, project).answer(task, Answer(ranks=(1, 2)))
    with pytest.raises(UserError, match="the key is wrong"):
        RemoteProject(server, "heed_wrong", project).next()
    with pytest.raises(NotFound):
        RemoteProject(server, key, 99).next()
    with pytest.raises(UserError, match="the role viewer may not"):
        RemoteProject(server, key_of(database, "Vic", "viewer"), project).next()


def test_no_server_or_another_one_is_told_in_a_line(server: str):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match="does not answer"):
        RemoteProject(nobody, "heed_key", 1, timeout=5).next()
    with pytest.raises(UserError, match="no address"):
        RemoteProject("localhost:8000", "heed_key", 1)
    with pytest.raises(UserError, match="404"):
        RemoteProject(f"{server}/elsewhere", "heed_key", 1).next()


def test_a_redirect_does_not_carry_the_key_away():
    with socket.socket() as listening, socket.socket() as elsewhere:
        for each in (listening, elsewhere):
            each.bind(("127.0.0.1", 0))
            each.listen()
        elsewhere.settimeout(0.2)
        location = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"

        def redirect() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

        thread = threading.Thread(target=redirect)
        thread.start()
        with pytest.raises(UserError, match="302"):
            RemoteProject(f"http://127.0.0.1:{listening.getsockname()[1]}", "heed_key", 1).next()
        thread.join()
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def test_with_an_order_given_the_bias_is_to_the_first_shown():
    prompt = Prompt("?")
    assert annotator("Ann").rank_shown(prompt, ["bad", "good", "fair"]) == (3, 1, 2)
    assert annotator("Ann", position_bias=1.5).rank_shown(prompt, ["bad", "good", "fair"]) == (2, 1, 3)
    assert annotator("Ann", tie_threshold=1.0).rank_shown(prompt, ["bad", "good", "fair"]) == (2, 1, 1)
