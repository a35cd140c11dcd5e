"""Property tests have no deadline here: a slow machine is not a wrong answer."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
