"""Fixtures for tests that start or sweep ingests."""

from tests.support.ingests import _time, between_polls, context, context_before_3_3, slow, store  # noqa: F401
from tests.support.owners import airflow, owned, write  # noqa: F401
from tests.support.strays import strays, sweep, sweep_time  # noqa: F401
