"""Fixtures for tests that start ingests."""

from tests.support.ingests import _time, between_polls, context, context_before_3_3, slow, store  # noqa: F401
