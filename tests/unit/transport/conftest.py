"""Hooks, and sessions with credentials."""

from tests.support.credentials import drive, google, guarded, robot, shown, start, which  # noqa: F401
from tests.support.hooks import _isolation, emulator, hook, hook_to, make_hook, once  # noqa: F401
from tests.support.sessions import connect_key, keyed_hook, revoking_server  # noqa: F401
