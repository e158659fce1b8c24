"""Triggers that live on the test's clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.clock import Clock


@pytest.fixture(autouse=True)
def _time(few_authorities: None, fake_time: Clock) -> None:
    """Let the hooks of triggers live on the test's clock."""


@pytest.fixture
def make_trigger(clock: Clock) -> Callable[..., DaiOperationTrigger]:
    """Give a function that makes a trigger whose wait begins now."""
    return lambda name, **arguments: DaiOperationTrigger(name, **{"started": clock.now, **arguments})
