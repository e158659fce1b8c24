"""The messages that the end-to-end tests wait for are messages of the provider, since waiting in vain takes minutes."""

from __future__ import annotations

import pytest

from tests.e2e import messages
from tests.support.source_strings import provider_strings

STRINGS = provider_strings()


@pytest.mark.parametrize("name", [name for name in vars(messages) if name.isupper()])
def test_the_message_is_in_the_source_of_the_provider(name: str) -> None:
    assert getattr(messages, name) in STRINGS
