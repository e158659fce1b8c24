"""Rounds of everything that starts and cancels ingests, with a key whose tokens are revoked in the middle.

A cancellation is requested by a task, in the worker and in the triggerer, by the task that starts an ingest, by the
callback of a task that has failed, and by a sweep.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred
from faults import METHODS, TOKEN, inject, too_few
from judge import print_results, requests_against_the_rule
from leaks import Leaks
from situations import OF_CANCELS, Situation

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.ingest.recovery import IngestMayHaveStartedError
from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.operators.dai import (
    DaiCancelOperationOperator,
    DaiCancelStrayOperationsOperator,
    DaiCreateCreativeOperator,
)
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.e2e.messages import NOT_FINISHED

#: Rounds at once, and the number of rounds without faults for comparison.
WORKERS = 16
#: The most tries of a task, and the seconds between two.
TRIES = 4
RETRY_DELAY = 1.0
FAULTLESS = 90
#: The largest share of starts under faults, and a few more, whose tasks may not know if an ingest was started.
IN_DOUBT = 1 / 3
#: The ingests of a list.
LIST = 3
#: How often all tokens are revoked: so seldom that a request does not meet it twice.
REVOCATIONS = 3


class InDoubtError(Exception):
    """A task with a list has failed, and does not know if it has started the ingests of some media.

    :param errors: the errors, by media URL.
    """

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("; ".join(errors.values()))
        self.errors = errors


@dataclass
class TaskInstance:
    """The part of a task instance that the operators use."""

    dag_id: str = "soak"
    run_id: str = "soak"
    task_id: str = "soak"
    map_index: int = -1
    try_number: int = 1
    max_tries: int = TRIES - 1
    pushed: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, *, key: str, **_: Any) -> Any:
        return self.pushed.get(key)


class Triggerer:
    """An event loop in a thread of its own that runs all triggers, as in Airflow's triggerer."""

    def __enter__(self) -> Triggerer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fire(self, trigger: DaiOperationTrigger) -> Any:
        return asyncio.run_coroutine_threadsafe(self._first(trigger), self._loop).result()

    def tasks(self) -> int:
        """Return the number of tasks left on the loop."""
        return len(asyncio.all_tasks(self._loop))

    async def _first(self, trigger: DaiOperationTrigger) -> Any:
        return [event.payload async for event in trigger.run()][0]

    async def _close(self) -> None:
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()


class Store(dict[str, Any]):
    """The part of the task state store that the operators use."""

    set = dict.__setitem__
    delete = dict.__delitem__


def run_task(make: Callable[[], Any], ti: TaskInstance, triggerer: Triggerer) -> None:
    """Run a task as Airflow does: deferred, and again after errors that a retry may heal."""
    context = {"ti": ti, "task_state_store": Store()}
    while True:
        operator = make()
        try:
            try:
                # Without Airflow's check of the caller, which on 2.11 fails in all but the main thread.
                inspect.unwrap(type(operator).execute)(operator, context)
            except TaskDeferred as deferred:
                _, arguments = deferred.trigger.serialize()
                kwargs = {**(deferred.kwargs or {}), "event": triggerer.fire(DaiOperationTrigger(**arguments))}
                operator.resume_execution(deferred.method_name, kwargs, context)
        except AirflowFailException:
            raise
        except AirflowException:
            if ti.try_number > ti.max_tries:
                raise
            time.sleep(RETRY_DELAY)
            ti.try_number += 1
        else:
            return


def media_url(number: int, part: int = 0) -> str:
    seconds = 3600 if KINDS[number % len(KINDS)] is start_and_time_out else 6
    return f"https://media.example.com/{number}-{part}.mp4?seconds={seconds}"


def cancel(name: str, **options: Any) -> Callable[[], DaiCancelOperationOperator]:
    waiting = {"wait_for_completion": True, "poll_interval": 2, "timeout": 120}
    return lambda: DaiCancelOperationOperator(task_id="soak", operation_name=name, **waiting, **options)


def creative(url: str) -> dict[str, Any]:
    media = {"uri": url, "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
    return {"adSystem": "soak", "mediaFiles": [media]}


def create(number: int) -> DaiCreateCreativeOperator:
    """Return a task whose wait times out after 3 s."""
    return DaiCreateCreativeOperator(task_id="soak", creative=creative(media_url(number)), poll_interval=1, timeout=3)


def cancel_in_worker(emulator: DaiEmulator, triggerer: Triggerer, number: int) -> str | None:
    """Cancel and wait in the worker; return the problem, if any."""
    name = emulator.start_ingest(f"operations/worker/{number}", seconds=3600, cancel_seconds=number % 3)
    situation_of(number)(emulator, name)
    ti = TaskInstance()
    run_task(cancel(name), ti, triggerer)
    return wrong_state(emulator, ti, name, "CANCELLED")


def cancel_in_triggerer(emulator: DaiEmulator, triggerer: Triggerer, number: int) -> str | None:
    """Cancel an ingest that completes anyway, and wait in the triggerer; return the problem, if any."""
    turn, situation = divmod(number // len(KINDS), len(OF_CANCELS))
    # Each situation meets each duration.
    seconds = (turn + situation) % 4
    name = emulator.start_ingest(f"operations/triggerer/{number}", seconds=seconds, cancel="ignored")
    situation_of(number)(emulator, name)
    ti = TaskInstance()
    run_task(cancel(name, deferrable=True), ti, triggerer)
    return wrong_state(emulator, ti, name, "SUCCEEDED")


def start_and_time_out(emulator: DaiEmulator, triggerer: Triggerer, number: int) -> str | None:
    """
    Start an ingest whose wait times out, so that it is cancelled; return the problem, if any.

    Raise IngestMayHaveStartedError if the request was lost, in which case no ingest may have started.
    """
    url = media_url(number)
    ti = TaskInstance(max_tries=0)
    try:
        run_task(lambda: create(number), ti, triggerer)
    except IngestMayHaveStartedError:
        raise
    except AirflowException as error:
        if NOT_FINISHED not in str(error):
            return f"{url}: unexpected failure: {error}"
    else:
        return f"{url}: no failure in spite of the timeout"
    name = ti.pushed["operation_name"]
    if not emulator.cancel_requested(name):
        return f"{name} was not cancelled"
    return None


def start_and_retry(emulator: DaiEmulator, triggerer: Triggerer, number: int) -> str | None:
    """Start an ingest that takes longer than one try, so that the next reattaches to it; return the problem, if any."""
    ti = TaskInstance()
    run_task(lambda: create(number), ti, triggerer)
    name = ti.pushed["operation_name"]
    if emulator.cancel_requested(name):
        return f"{name} was cancelled"
    return wrong_state(emulator, ti, name, "SUCCEEDED")


def start_a_list(emulator: DaiEmulator, triggerer: Triggerer, number: int) -> str | None:
    """Start a list of ingests, and wait for them in the worker or the triggerer; return the problem, if any."""
    urls = [media_url(number, part) for part in range(LIST)]
    waiting = {"poll_interval": 2, "timeout": 120, "deferrable": number % 2 == 0}
    ti = TaskInstance()
    failure: AirflowFailException | None = None
    try:
        run_task(
            lambda: DaiCreateCreativeOperator(task_id="soak", creative=[*map(creative, urls)], **waiting), ti, triggerer
        )
    except AirflowFailException as error:
        failure = error
    rows = dict(zip(urls, ti.pushed["operation"], strict=True))
    names = [row["name"] for row in rows.values() if row["name"]]
    if wrong := [name for name in names if emulator.state(name) != "SUCCEEDED" or emulator.cancel_requested(name)]:
        return f"{', '.join(wrong)} did not succeed, or was cancelled"
    if wrong := [row["name"] for row in rows.values() if row["name"] and row["state"] != "SUCCEEDED"]:
        return f"the task does not know that {', '.join(wrong)} have succeeded"
    errors = {url: row["error_message"] for url, row in rows.items() if not row["name"]}
    if failure and errors:
        raise InDoubtError(errors) from failure
    return (
        f"{names} have succeeded, and the task says {failure or 'nothing of the others'}" if failure or errors else None
    )


def cancel_by_callback(emulator: DaiEmulator, triggerer: Triggerer, number: int) -> str | None:
    """Cancel the ingest of a task that has failed; return the problem, if any."""
    name = emulator.start_ingest(f"operations/callback/{number}", seconds=3600)
    DaiCancelOperationNotifier(name, timeout=60).notify({"ti": TaskInstance()})
    return None if emulator.cancel_requested(name) else f"{name} was not cancelled"


class SweepByAge(DaiCancelStrayOperationsOperator):
    """A sweep that knows no owners, as on Airflow 3.0 to 3.2."""

    def _find_owners(self, *_: Any) -> None:
        """Return no owners: these rounds have no database."""


def sweep(emulator: DaiEmulator, triggerer: Triggerer, number: int) -> str | None:
    """Sweep a stray, which is found by its age, and wait; return the problem, if any."""
    url = f"https://media.example.com/stray-{number}/"
    name = emulator.start_ingest(f"operations/stray/{number}", seconds=3600, creative_url=f"{url}ad.mp4")
    situation_of(number)(emulator, name)
    time.sleep(1)
    ti = TaskInstance()
    waiting = {"wait_for_completion": True, "poll_interval": 2, "timeout": 120}
    run_task(lambda: SweepByAge(task_id="soak", older_than=0.5, url_prefix=url, **waiting), ti, triggerer)
    state = emulator.state(name)
    return None if state == "CANCELLED" else f"{name} is {state} after the sweep: {ti.pushed['report']}"


KINDS = (
    cancel_in_worker,
    cancel_in_triggerer,
    start_and_time_out,
    start_and_retry,
    start_a_list,
    cancel_by_callback,
    sweep,
)
#: How many ingests a round of a kind starts by ``creatives.create``.
STARTS = {start_and_time_out: 1, start_and_retry: 1, start_a_list: LIST}


def situation_of(number: int) -> Situation:
    return OF_CANCELS[number // len(KINDS) % len(OF_CANCELS)]


def wrong_state(emulator: DaiEmulator, ti: TaskInstance, name: str, state: str) -> str | None:
    seen = ti.pushed["operation"]["state"]
    return None if (seen, emulator.state(name)) == (state, state) else f"{name}: {seen} instead of {state}"


@dataclass
class Played:
    """
    The results of the rounds.

    :param starts: the number of ingests that tasks are to start.
    :param share: the share of requests that were to fail.
    :param started: the number of ingests by media URL, according to the service's own list.
    :param in_doubt: the errors of tasks that do not know if an ingest was started, by media URL.
    """

    emulator: DaiEmulator
    leaks: Leaks
    share: float = 0.0
    starts: int = 0
    wrong: list[str] = field(default_factory=list)
    in_doubt: dict[str, str] = field(default_factory=dict)
    started: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def judge(self) -> dict[str, list[str]]:
        """Return the problems, by the row of the table."""
        emulator = self.emulator
        missed = [
            f"an ingest of {url} was started, but not found: {error}"
            for url, error in self.in_doubt.items()
            if self.started[url]
        ]
        allowed = self.starts * IN_DOUBT + 3 if self.share else 0
        too_many = [f"{len(self.in_doubt)} of {self.starts} starts"] if len(self.in_doubt) > allowed else []
        return {
            "wrong outcomes": self.wrong + missed,
            "too many starts in doubt": too_many,
            "faults missing": too_few(emulator, self.share),
            "tokens never revoked": [] if emulator.tokens_issued > REVOCATIONS else ["no request has met a revocation"],
            "strays": [name for name, state in emulator.states().items() if state == "RUNNING"],
            "ingests started twice": [url for url, times in self.started.items() if times > 1],
            # After each try the next may poll at once.
            "requests beyond the retry rule": requests_against_the_rule(emulator.requests, sooner=TRIES),
            **self.leaks.found,
        }


def play(rounds: int, share: float, seed: int | None) -> Played:
    started = time.monotonic()
    with DaiEmulator(seed=seed, authentication=True) as emulator:
        connect(emulator)
        inject(emulator, share, [*METHODS, TOKEN])
        starts = sum(STARTS.get(KINDS[number % len(KINDS)], 0) for number in range(rounds))
        played = Played(emulator, Leaks(), share, starts)
        with Triggerer() as triggerer:

            def one(number: int) -> None:
                kind = KINDS[number % len(KINDS)]
                try:
                    problem = kind(emulator, triggerer, number)
                except IngestMayHaveStartedError as error:
                    played.in_doubt[media_url(number)] = str(error)
                except InDoubtError as error:
                    played.in_doubt |= error.errors
                except Exception as error:  # any exception is a wrong outcome
                    played.wrong.append(f"{kind.__name__} {number}: {type(error).__name__}: {error}")
                else:
                    played.wrong += [problem] if problem else []

            # Alone, since Airflow 2 deadlocks when several threads are the first to import it.
            one(0)
            with ThreadPoolExecutor(WORKERS) as pool:
                for done, _ in enumerate(pool.map(one, range(1, rounds)), 2):
                    if done % max(1, rounds // (REVOCATIONS + 1)) == 0:
                        emulator.revoke_tokens()
                    if done % 100 == 0:
                        print(f"  {done} of {rounds} rounds, {time.monotonic() - started:.0f} s", flush=True)
            tasks = triggerer.tasks()
        played.leaks.find(tasks)
        played.seconds = time.monotonic() - started
    with emulator:  # again, without faults
        emulator.clear_faults()
        with DaiHook() as hook:
            urls = [
                operation.ingest.signed_creative_url or "" for operation in hook.list_operations() if operation.ingest
            ]
    played.started.update(url for url in urls if "?seconds=" in url)
    return played


def connect(emulator: DaiEmulator) -> None:
    """Let Airflow's connection have a key of this emulator."""
    extra = {"keyfile_dict": emulator.service_account_key(), "dai_api_endpoint": emulator.endpoint}
    connection = {"conn_type": "google_cloud_platform", "extra": extra}
    os.environ["AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT"] = json.dumps(connection)


def play_rounds(rounds: int, share: float, seed: int | None) -> int:
    """Play the rounds and print the table; return the number of problems."""
    print(f"{rounds} rounds with {share:.0%} of all requests failing, {WORKERS} at once", flush=True)
    faultless = play(FAULTLESS, 0, seed)
    played = play(rounds, share, seed)
    sent = len(played.emulator.requests)
    faults = played.emulator.faults_injected
    minimum = len(faultless.emulator.requests) / FAULTLESS
    problems = played.judge()
    problems["wrong without faults"] = [
        f"{label}: {one}" for label, found in faultless.judge().items() for one in found
    ]
    rows = {
        "seconds": f"{played.seconds:.0f}",
        "seed": played.emulator.seed,
        "requests": sent,
        "faults injected": f"{sum(faults.values())} ({sum(faults.values()) / sent:.1%} of the requests)",
        **{f"  {kind}": number for kind, number in sorted(faults.items())},
        "requests per round": f"{sent / rounds:.2f}, {sent / rounds / minimum:.2f} x the {minimum:.2f} without faults",
        "starts in doubt": len(played.in_doubt),
    }
    return print_results(rows, problems)
