"""Hypothesis without deadlines: the time of one example says more about a busy machine than about the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("busy machine", deadline=None)
settings.register_profile("few examples", deadline=None, max_examples=10, database=None)
settings.load_profile("busy machine")
