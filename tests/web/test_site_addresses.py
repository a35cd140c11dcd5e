"""Whose failed sign-ins and wrong keys count together."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from heed.feedback.database import Database
from heed.web.app import create_app
from heed.web.limits import Attempts
from heed.web.site import Site


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("203.0.113.1", "203.0.113.2", False),
        ("::ffff:203.0.113.1", "::ffff:203.0.113.2", False),
        ("::ffff:203.0.113.1", "203.0.113.1", True),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
def test_a_visitor_is_an_address_or_a_network_of_ipv6(database: Database, one: str, other: str, together: bool) -> None:
    app = create_app(database)
    app.state.site = Site(database, by_address=Attempts(most=1), wrong_keys=Attempts(most=1))
    visitors = [TestClient(app, client=(host, 50000)) for host in (one, other)]
    answers = [visitor.post("/sign-in", data={"name": host, "password": "x"}) for visitor, host in zip(visitors, (one, other), strict=True)]
    assert [answer.status_code for answer in answers] == [403, 429 if together else 403]
    answers = [visitor.get("/api/v1/me", headers={"Authorization": "Bearer heed_x"}) for visitor in visitors]
    assert [answer.status_code for answer in answers] == [401, 429 if together else 401]
