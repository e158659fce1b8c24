"""An event loop that nothing may be left on, and gates at which threads stand still."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import pytest

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import TaskDeferred

    from airflow_dai_provider.triggers.dai import DaiOperationTrigger

T = TypeVar("T")

#: Seconds after which a test that hangs is ended.
HANGS_AFTER = 60.0
#: Seconds that a blocked thread waits for a gate before it gives up.
GATE_SECONDS = 5.0


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on an event loop of its own, and fail on whatever it leaves behind: the house stays clean."""
    left: list[str] = []
    with only_new_objects(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: left.append(f"{context}"))
            try:
                result = runner.run(asyncio.wait_for(main, HANGS_AFTER))
            finally:
                left += [f"a task goes on: {task}" for task in asyncio.all_tasks(loop) if not _drops_a_generator(task)]
        left += _open_sessions()
        gc.collect()
    left += [
        str(warning.message)
        for warning in caught
        if issubclass(warning.category, ResourceWarning) or "never awaited" in str(warning.message)
    ]
    caught.clear()  # a warning holds what it warns of, and a failing test holds this
    if left:
        pytest.fail("Left behind: " + "; ".join(left))
    return result


def stored(trigger: DaiOperationTrigger) -> DaiOperationTrigger:
    """Return what a triggerer makes of a trigger, from the metadata database."""
    path, arguments = json.loads(json.dumps(trigger.serialize()))
    module, _, name = path.rpartition(".")
    made: DaiOperationTrigger = getattr(import_module(module), name)(**arguments)
    return made


def fire_trigger(trigger: DaiOperationTrigger) -> dict[str, Any]:
    """Run a trigger to its end; return the payload of its only event, as it is after a journey as JSON."""

    async def main() -> list[Any]:
        try:
            return [event.payload async for event in trigger.run()]
        finally:
            await trigger.cleanup()

    (payload,) = run(main())
    result: dict[str, Any] = json.loads(json.dumps(payload, allow_nan=False))
    assert result == payload
    return result


def fire(deferred: TaskDeferred) -> Any:
    """Run the trigger of a deferred task, as it is after its way through the metadata database; return its event."""
    return fire_trigger(stored(deferred.trigger))


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Keep what is there already from the garbage collector, which makes it quick to ask."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _drops_a_generator(task: asyncio.Task[Any]) -> bool:
    """Whether this is Python's own task, from 3.12 on, for a generator that nobody goes on with: Airflow's way, too."""
    return type(task.get_coro()).__name__ == "async_generator_athrow"


def _open_sessions() -> list[str]:
    return [f"an open session: {o}" for o in gc.get_objects() if type(o) is aiohttp.ClientSession and not o.closed]


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread brings about."""
    while not condition():
        await asyncio.sleep(0.002)


class Gate:
    """
    Where a thread stands still until the event loop has gone on; a loop that is blocked never opens it.

    :param entered: how many threads have come so far.
    """

    def __init__(self) -> None:
        self.entered = 0
        self.blocked = False
        self._open = threading.Event()

    def wait(self) -> None:
        self.entered += 1
        self.blocked |= not self._open.wait(GATE_SECONDS)

    def open(self) -> None:
        self._open.set()

    async def open_after_beats(self, beats: int = 20) -> None:
        """Let the event loop turn while a thread waits here, and open."""
        await until(lambda: self.entered)
        for _ in range(beats):
            await asyncio.sleep(0.001)
        self.open()
        assert not self.blocked, "The event loop stood still."
