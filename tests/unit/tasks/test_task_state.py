"""What a task keeps for its next try in the task state store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from airflow_dai_provider.api.storable import pack
from airflow_dai_provider.tasks.task_state import TaskState
from tests.support.log import Log
from tests.support.task_instance import Store, Ti

LOGGER = logging.getLogger("airflow_dai_provider.test_task_state")
VALUE = {"names": ["operations/a", "operations/\u65e5"], "number": 1.5, "none": None}
KEPT = {"max_tries": 0, "endpoint": "https://dai.example"}


def here() -> str:
    return "https://dai.example"


def state(store: Store, ti: Any = None, key: str = "a_key", endpoint: Callable[[], str] = here) -> TaskState:
    return TaskState({"ti": ti or Ti(), "task_state_store": store}, key, LOGGER, endpoint)  # type: ignore[typeddict-unknown-key,typeddict-item]


def test_the_next_try_loads_what_was_saved_last() -> None:
    store, first = Store(), Ti(try_number=1, max_tries=2)
    state(store, first).save(["old"])
    state(store, first).save(VALUE)
    assert state(store, replace(first, try_number=2)).load() == VALUE


def test_a_key_has_its_own_value() -> None:
    store = Store()
    state(store).save(VALUE)
    assert state(store, key="another").load() is None


def test_nothing_is_loaded_once_it_is_deleted() -> None:
    store = Store()
    state(store).save(VALUE)
    state(store).delete()
    assert (state(store).load(), store.kept) == (None, {})


def test_a_cleared_task_starts_anew() -> None:
    store = Store()
    state(store, Ti(max_tries=2)).save(VALUE)
    assert state(store, Ti(max_tries=5)).load() is None


def test_what_was_saved_at_another_endpoint_does_not_count() -> None:
    store = Store()
    state(store, endpoint=lambda: "https://old.example").save(VALUE)
    assert state(store).load() is None
    state(store).save(["new"])
    assert state(store).load() == ["new"]


def test_an_endpoint_that_cannot_be_looked_up_fails_no_task(log: Log) -> None:
    def fails() -> str:
        raise RuntimeError("no connection")

    store = Store()
    state(store).save(VALUE)
    assert state(store, endpoint=fails).load() is None
    assert len(log.lines("Could not read a_key")) == 1


def test_without_a_store_nothing_is_kept_and_nothing_is_told(log: Log) -> None:
    kept = TaskState({"ti": Ti()}, "a_key", LOGGER, here)  # type: ignore[typeddict-item]
    kept.save(VALUE)
    kept.delete()
    assert kept.load() is None
    assert log.ours == []


def test_a_store_that_fails_fails_no_task_and_each_failure_is_told(log: Log) -> None:
    broken = state(Store(broken=True))
    broken.save(VALUE)
    broken.delete()
    assert broken.load() is None
    assert [line.partition(":")[0] for line in log.errors] == [
        "Could not save a_key in the task state store",
        "Could not delete a_key from the task state store",
        "Could not read a_key from the task state store",
    ]


@pytest.mark.parametrize(
    "kept", [None, "text", [], {}, {"value": pack(VALUE)}, {"max_tries": 0, "value": pack(VALUE)}, {**KEPT, "value": 7}]
)
def test_a_value_of_another_form_counts_as_none(kept: Any, log: Log) -> None:
    assert state(Store({"a_key": kept})).load() is None
    assert log.errors == []


@pytest.mark.parametrize("text", ["", "no such text", "\u65e5", pack(VALUE)[:-10]])
def test_a_damaged_value_counts_as_none_and_is_told(text: str, log: Log) -> None:
    assert state(Store({"a_key": {**KEPT, "value": text}})).load() is None
    assert len(log.lines("Could not read a_key")) == 1


def test_ten_thousand_names_take_little_room() -> None:
    store = Store()
    names = [f"operations/{number:032x}" for number in range(10_000)]
    state(store).save(names)
    assert len(store.kept["a_key"]["value"]) < 65_536
    assert state(store).load() == names
