"""Limits on what strangers may send: the size of a request, and how often a sign-in may fail."""

from __future__ import annotations

import ipaddress
import time
from collections import deque
from threading import Lock

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 * 2**20
"""Bytes of the largest request: an upload of data, or as much of it pasted."""
MOST_KEYS = 10_000
"""Names and addresses that are remembered before the old ones are looked through."""


def visitor(request: Request) -> str:
    """Where a request comes from; of IPv6 the network, as one machine has all its addresses."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host  # a socket in the file system, or a test
    if address.version == 6 and address.ipv4_mapped is not None:  # as a socket for both calls a visitor by IPv4
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


class BodyLimit:
    """Refuses requests with more bytes than allowed, whatever they claim, before anything reads them whole."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.message = f"the request is larger than {max_bytes // 2**20} MB; split the file"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        claimed = Headers(scope=scope).get("content-length", "0")
        allowed = claimed.isdecimal() and len(claimed) < 18 and int(claimed) <= self.max_bytes
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message: Message = await receive() if allowed else {}
            seen += len(message.get("body", b""))
            if not allowed or seen > self.max_bytes:
                raise HTTPException(413, self.message, {"connection": "close"})
            return message

        await self.app(scope, limited, send)


class Attempts:
    """Lets a key try a few times within a window of seconds, and then not for the rest of it; successes do not count."""

    def __init__(self, most: int = 10, window: float = 300.0) -> None:
        self.most, self.window = most, window
        self._failures: dict[str, deque[float]] = {}
        self._lock = Lock()

    def begin(self, key: str) -> float:
        """Seconds until the key may try again; 0 where it may now.

        A try counts as a failure from here on, so that of many at once no more pass than of one after another.
        """
        with self._lock:
            recent = self._recent(key)
            wait = recent[0] + self.window - time.monotonic() if len(recent) >= self.most else 0.0
            if not wait:
                if len(self._failures) >= MOST_KEYS:  # a flood of names must not fill the memory
                    self._failures = {k: times for k in list(self._failures) if (times := self._recent(k))}
                self._failures.setdefault(key, deque()).append(time.monotonic())
            return wait

    def succeeded(self, key: str) -> None:
        """What was begun was no failure."""
        with self._lock:
            if recent := self._recent(key):
                recent.pop()

    def _recent(self, key: str) -> deque[float]:
        times = self._failures.get(key, deque())
        while times and times[0] <= time.monotonic() - self.window:
            times.popleft()
        return times
