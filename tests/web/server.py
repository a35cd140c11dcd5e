"""The app in a process of its own: `python -m uvicorn --factory tests.web.server:app`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from fastapi import FastAPI

from heed.feedback.database import Database
from heed.web.app import create_app

DATABASE = "HEED_TEST_DATABASE"


def app() -> FastAPI:
    return create_app(Database(os.environ[DATABASE]))


@contextmanager
def serving(location: str, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A running server over a database, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "tests.web.server:app", "--port", str(port), "--log-level", "warning"]
    root = Path(__file__).resolve().parents[2]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=root, env=os.environ | {DATABASE: location}, stdout=file, stderr=file)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                httpx.get(f"{address}/sign-in", timeout=10)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            raise AssertionError(f"no answer from the server: {log.read_text()}")
        yield process, address
    finally:
        process.kill()
        process.wait()
