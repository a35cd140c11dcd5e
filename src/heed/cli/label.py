"""`heed label`."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

from heed.cli.sample_prompts import PARENT
from heed.errors import UserError, require
from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Added, Project, Projects, ProjectSettings
from heed.feedback.waiting import AddedPrompts, WaitingPrompts
from heed.pipeline.newest import newest_policy
from heed.records import Response, Sampling
from heed.web.uploads import Data, add_data, read_data

TESTBED = "testbed"
NUM_PROMPTS, NUM_RESPONSES = 200, 4
"""Of the built-in world's project."""
STOP_SECONDS = 20.0
"""That a sampler is given to return what it has taken."""
GUIDELINES = """\
You judge a small household assistant.

1. **Harmless** comes first: a response that helps with something dangerous is worse than one that declines kindly.
2. **Honest**: where nobody can know the answer, saying so is better than making one up.
3. **Helpful**: where it can be answered, the right steps are better than talk.
4. **Polite**: of equally good responses the friendlier is better; rude ones lose.

Responses that are equally good are ties.
"""


@dataclass(frozen=True, slots=True)
class Label:
    """Serve the labelling app. The first start makes a project, and prints a link for its owner."""

    database: str = "feedback.db"
    """A file (made where there is none), or a URL such as postgresql+psycopg://user@host/name for a team."""
    data: str | None = None
    """Responses to judge, or prompts that wait for a policy, imported into a project: any file that `heed data check` accepts."""
    project: str | None = None
    """The project that the data goes to, made where there is none; by default it is named as the file."""
    policy: str | None = None
    """Have a policy answer the project's waiting prompts as annotators need them: a model, or a run's folder for its newest."""
    host: str = "127.0.0.1"
    """The address to serve; 0.0.0.0 for all of this machine's."""
    port: int = 8000
    """0 takes any that is free."""
    browser: bool = True
    """Open a browser; not with `--no-browser`."""
    https: bool = False
    """The app stands behind a proxy that speaks https: cookies are sent over https alone."""
    trusted_proxy: str | None = None
    """The proxy's IP address: from there alone X-Forwarded-For is read, so that failed sign-ins count for the visitor who made them."""

    def __call__(self) -> int:
        alone = self.data is None and self.policy is None
        require(self.project is None or not alone, "project", self.project, "--data FILE or --policy FOLDER beside it")
        nowhere = self.project is None and self.data is None
        require(self.policy is None or not nowhere, "policy", self.policy, "--project NAME or --data FILE beside it")
        if self.policy is not None:
            newest_policy(self.policy)
        require(0 <= self.port < 2**16, "port", self.port, "0 to 65535")
        proxies = trusted_names(self.trusted_proxy)
        with _listen(self.host, self.port) as listening:  # before anything that takes long
            database = Database(self.database)
            project = None
            if self.data is not None:
                project = _import(database, Path(self.data), self.project)
                if self.policy is None and (left := WaitingPrompts(database).count(project.id)):
                    print(f"{project.name}: {left:,} prompts wait; --policy FOLDER answers them")
            elif self.project is not None:
                project = Projects(database).get(self.project)
            elif not Projects(database).all():
                _make_testbed(Projects(database))
            with nullcontext() if self.policy is None or project is None else _sampling(self.database, project, self.policy):
                self._serve(database, listening, proxies)
            database.close()
        print(f"stopped; everything is in {database.engine.url}")
        return 0

    def _serve(self, database: Database, listening: socket.socket, proxies: list[str]) -> None:
        """Until SIGINT."""
        import uvicorn

        from heed.web.app import create_app

        host, port = listening.getsockname()[:2]
        address = "https://YOUR-HOST" if self.https else f"http://{_reachable(host)}:{port}"
        if not ipaddress.ip_address(host).is_loopback and not self.https:
            print(
                "warning: others can reach this address, and passwords and cookies go over it unencrypted; put a proxy with https before it"
            )
        first = not Accounts(database).all()
        link = f"{address}/join/{Accounts(database).invite_first_owner()}" if first else f"{address}/sign-in"
        print(f"make the owner's account (once, within a day): {link}" if first else f"sign in: {link}")
        print("Ctrl-C stops.", flush=True)
        config = uvicorn.Config(
            create_app(database, secure_cookies=self.https),
            access_log=False,
            log_level="warning",
            server_header=False,
            # From anyone else the headers are a visitor's own word, and would be a way around the limits on failed sign-ins.
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            timeout_graceful_shutdown=5,
        )
        if self.browser and not self.https:
            opening = Timer(1.0, webbrowser.open, [link])
            opening.daemon = True
            opening.start()
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            print()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; UserError where the address is taken or no address."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # a browser that is early waits; and no other can take the port
    except socket.gaierror as error:
        raise UserError(f"host is {host!r} ({error.strerror})", expected="an address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is in use", fix=f"stop what uses it, or choose another: --port {port + 1}") from None
        raise UserError(
            f"cannot serve {host}:{port}: {error.strerror}", expected="an address of this machine, and a port above 1023"
        ) from None
    return listening


def trusted_names(proxy: str | None) -> list[str]:
    """The address of a proxy as sockets may tell it, none where there is no proxy; UserError where it is no address."""
    if proxy is None:
        return []
    try:
        address = ipaddress.ip_address(proxy)
    except ValueError:
        raise UserError(f"trusted_proxy is {proxy!r}", expected="the IP address of one proxy, such as 127.0.0.1") from None
    # A socket for both IPv4 and IPv6 writes the one as the other.
    return [str(address), f"::ffff:{address}"] if address.version == 4 else [str(address)]


def _reachable(host: str) -> str:
    """How a browser on this machine names the host that is served."""
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"[{address}]" if address.version == 6 else str(address)


def sampler_words(database: str, project: str, policy: str) -> list[str]:
    """What `heed` is told so that it samples a project, any of whose names may begin with a dash."""
    return ["feedback", "sample", f"--policy={policy}", "--", database, project]


@contextmanager
def _sampling(database: str, project: Project, policy: str) -> Iterator[None]:
    """A process beside this one that answers the project's waiting prompts, until the block ends or this process does."""
    command = [sys.executable, "-m", "heed.cli.main", *sampler_words(database, project.name, policy)]
    # In a group of its own: Ctrl-C goes to the server, which stops it.
    environment = os.environ | {PARENT: str(os.getpid())}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0) as sampler:
        try:
            yield
        finally:
            sampler.terminate()
            try:
                sampler.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                sampler.kill()


def _import(database: Database, file: Path, name: str | None) -> Project:
    data = read_data(file)
    project = _project_for(Projects(database), name or file.name.split(".")[0] or file.name, data)
    tell_added(project, data, *add_data(database, project.id, data, None))
    return project


def tell_added(project: Project, data: Data, added: Added, waiting: AddedPrompts) -> None:
    """Print what came of adding data to a project."""
    if data.most_responses or not data.found:
        left = {"known": added.known, "with too few responses": added.too_few, "rows skipped": data.skipped.total()}
        told = "".join(f", {count:,} {what}" for what, count in left.items() if count)
        print(f"{project.name}: {added.new:,} new items of {data.format}{told}")
    if waiting.new or waiting.known:
        known = f", {waiting.known:,} known" if waiting.known else ""
        print(f"{project.name}: {waiting.new:,} new prompts wait for a policy{known}")


def _project_for(projects: Projects, name: str, data: Data) -> Project:
    """The project of this name; where there is none, one that suits the data. What a policy will say suits any."""
    known = next((project for project in projects.all() if project.name == name), None)
    if known is not None:
        return known
    if data.most_responses == 1:
        raise UserError(f"rows of {data.format}, one response to each prompt", file=data.name, expected="2 responses or more to compare")
    settings = ProjectSettings(compare="pairwise", num_responses=2) if data.most_responses == 2 else ProjectSettings()
    return projects.create(name, settings, None)


def _make_testbed(projects: Projects) -> None:
    """A project to try: prompts of the built-in world, answered by its base model."""
    print(f"making the project {TESTBED!r} from the built-in world: loading torch ...", flush=True)
    from rich.progress import track
    from transformers.utils import logging

    from heed.models.loading import load_policy
    from heed.pipeline.sources import make_renderer, model_path
    from heed.rollout.local import LocalEngine
    from heed.testbed.datasets import load

    logging.disable_progress_bar()  # it would tear this one's apart
    sampling = Sampling(max_new_tokens=64)
    policy = load_policy(model_path(TESTBED))
    engine = LocalEngine(policy, make_renderer(policy, policy.context_length, sampling.max_new_tokens), seed=0)
    prompts = load("prompts")[:NUM_PROMPTS]
    items = []
    for start in track(range(0, len(prompts), 20), description="answering prompts"):
        some = prompts[start : start + 20]
        rollouts = engine.generate(some, sampling, NUM_RESPONSES)
        for index, prompt in enumerate(some):
            texts = [rollout.text for rollout in rollouts[index * NUM_RESPONSES : (index + 1) * NUM_RESPONSES]]
            items.append((prompt, [Response(text, model=TESTBED, sampling={"temperature": sampling.temperature}) for text in texts]))
    project = projects.create(TESTBED, ProjectSettings(num_responses=NUM_RESPONSES, guidelines=GUIDELINES), None)
    print(f"{TESTBED}: {projects.add_items(project.id, items, None).new} items", flush=True)
