"""Fixtures for tests that make hooks and talk real HTTP."""

from tests.support.hook_fixtures import *  # noqa: F403
from tests.support.hook_fixtures import _isolation  # noqa: F401
