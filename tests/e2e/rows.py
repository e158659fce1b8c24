"""
The rows of the table of failures: the event, the DAG, and the guard that is expected to cancel the ingest.

Each row is played on ``<dag>__own`` (the operator's own guards), on ``<dag>__swept`` (the operator, and one sweep for
the whole Airflow), and on ``<dag>__rings`` (with callback, teardown and Deadline); see ``dags/rows.py``. The events are
in ``events.py`` and ``disturbances.py``.

To play one row: ``make e2e ARGS="-k row_7b-"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import disturbances
import events
from disturbances import ALONE, API_SERVER_DOWN, SCHEDULER_LOST, TOGETHER, TRIGGERER_DOWN, TRIGGERER_STALLED
from events import Event

#: The outcome of an ingest that no guard cancels, and of one that no guard may cancel.
LEAK = "leaks"
UNHARMED = "unharmed"

#: The guards, as ``guards.py`` finds them in the logs.
KILL = "on_kill"
TRIGGER = "trigger on_kill"
OPERATOR = "operator"
CALLBACK = "task callback"
NEXT_TRY = "next try"
DAG_CALLBACK = "DAG callback"
TEARDOWN = "teardown"
DEADLINE = "Deadline"
SWEEP = "sweep"
RINGS = f"{TEARDOWN}|{DAG_CALLBACK}"
#: The dag processor of Airflow 2 does not log whose callback it runs.
A_CALLBACK = "callback"

#: The first versions of Airflow with a feature; ``Row.before`` says what is expected before them.
STATE_STORE = (3, 3)
DEADLINES = (3, 1)
AIRFLOW_3 = (3, 0)
NOT_PLAYED = (None, None)
FORMS = ("own", "swept", "rings")
#: Rows in which no task is over and no run has failed: to the sweep, the ingest is one that is meant to run on.
NO_STRAY = ("16", "19d")
#: Rows in which no name is known. Airflow 2 has no records, so the sweep knows no owner.
NO_NAME = ("lost-for-good", "lost-worker")


@dataclass(frozen=True)
class Row:
    """
    A row.

    :param id: its number in the table of failures, with a suffix where it is played in several ways.
    :param what: the event, as the table names it.
    :param own: the guards of which one must come first, separated by ``|``, with the operator's own guards only.
    :param rings: the same with the recommended guards.
    :param before: both before a version of Airflow; None where the row cannot be played.
    :param phase: the rows of one phase are played at the same time.
    """

    id: str
    what: str
    dag: str
    play: Event
    own: str
    rings: str
    before: Mapping[tuple[int, int], tuple[str | None, str | None]] = field(default_factory=dict)
    phase: str = TOGETHER

    def expected(self, guards: str, airflow: tuple[int, int]) -> str | None:
        """Return the guards of which one must come first, separated by ``|``; None where the row cannot be played."""
        own, rings = next((self.before[v] for v in sorted(self.before) if airflow < v), (self.own, self.rings))
        if guards == "swept":
            knows_owners = not AIRFLOW_3 <= airflow < STATE_STORE
            own = _with_sweep(own) if own and knows_owners and self.id not in NO_STRAY else None
            if airflow < AIRFLOW_3 and self.id in NO_NAME:
                own = LEAK
        expected = rings if guards == "rings" else own
        if airflow < AIRFLOW_3 and expected and A_CALLBACK in expected:
            return f"{expected}|{A_CALLBACK}"
        return expected


def _with_sweep(own: str) -> str:
    """Return the guards of which one must come first when the sweep looks after an operator with these."""
    return SWEEP if own == LEAK else own if own == UNHARMED else f"{own}|{SWEEP}"


ROWS = (
    Row("1", "the task raises, no retry left", "raises", events.raises, OPERATOR, OPERATOR),
    Row("1-deferred", "the same after a deferral", "defers_and_raises", events.raises, OPERATOR, OPERATOR),
    Row("2", "it raises, and its retry reattaches to the ingest", "raises_with_retry",
        events.raised_and_retried, UNHARMED, UNHARMED, {STATE_STORE: NOT_PLAYED}),
    Row("2-again", "the retry raises too", "raises_with_retry", events.raises_twice, OPERATOR, OPERATOR),
    Row("3-failed", "the running task is marked failed", "waits", events.marked("failed"), KILL, f"{KILL}|{RINGS}"),
    Row("3-success", "it is marked success", "waits", events.marked("success"), KILL, f"{KILL}|{RINGS}"),
    Row("3-mapped", "one of three mapped tasks is marked failed", "mapped",
        partial(events.mapped, events.second_is_marked), KILL, KILL),
    Row("4", "the running task is cleared", "waits", partial(events.cleared, "running"),
        f"{KILL}|{UNHARMED}", f"{KILL}|{UNHARMED}"),
    Row("5", "`execution_timeout`", "times_out", events.times_out, OPERATOR, OPERATOR),
    Row("5-retry", "the same, and its retry reattaches to the ingest", "times_out_with_retry",
        events.timed_out_and_retried, UNHARMED, UNHARMED, {STATE_STORE: NOT_PLAYED}),
    Row("6", "`dagrun_timeout`, task running", "run_times_out", events.run_times_out, KILL, f"{KILL}|{RINGS}"),
    Row("7", "the task process is SIGKILLed, no retries", "waits", events.killed(), LEAK, RINGS,
        {AIRFLOW_3: (A_CALLBACK, RINGS)}),
    Row("7b", "the same, with a retry left", "waits_with_retry",
        events.killed_and_retried, UNHARMED, UNHARMED,
        {STATE_STORE: (CALLBACK, CALLBACK)}),
    Row("7-fixed", "SIGKILL; the DAG had the wrong file, is fixed, the task cleared", "fixed",
        events.fixed_and_cleared, NEXT_TRY, f"{RINGS}|{NEXT_TRY}",
        {AIRFLOW_3: (A_CALLBACK, RINGS), STATE_STORE: (LEAK, RINGS)}),
    Row("8", "task and worker are lost, no retries", "waits", events.killed(worker=True),
        CALLBACK, f"{CALLBACK}|{RINGS}"),
    Row("8-retry", "the same, with a retry left", "waits_with_retry",
        partial(events.killed_and_retried, worker=True), UNHARMED, UNHARMED,
        {STATE_STORE: (CALLBACK, CALLBACK)}),
    Row("8-callback", "the same, with an `on_retry_callback` that comes late", "waits_with_retry_callback",
        events.lost_and_called_back, f"{UNHARMED}|{CALLBACK}", f"{UNHARMED}|{CALLBACK}"),
    # In Airflow 2, the signal is also an error in the task.
    Row("8-pod", "SIGTERM to all processes of the task, as when its pod is deleted", "waits", events.pod_ends,
        KILL, f"{KILL}|{RINGS}", {AIRFLOW_3: (f"{KILL}|{OPERATOR}", f"{KILL}|{OPERATOR}|{RINGS}")}),
    Row("9-failed", "the deferred task is marked failed", "defers", events.marked("failed", "deferred"),
        TRIGGER, f"{TRIGGER}|{RINGS}"),
    Row("9-success", "it is marked success", "defers", events.marked("success", "deferred"),
        TRIGGER, f"{TRIGGER}|{RINGS}"),
    Row("9-cleared", "it is cleared", "defers", partial(events.cleared, "deferred"),
        f"{TRIGGER}|{UNHARMED}", f"{TRIGGER}|{UNHARMED}"),
    # Airflow 2 also cancels the trigger, which sees that its task is no longer deferred: both cancel, in any order.
    Row("10b", "`execution_timeout` while deferred", "defers_and_times_out", events.times_out, OPERATOR, OPERATOR,
        {AIRFLOW_3: (f"{OPERATOR}|{TRIGGER}", f"{OPERATOR}|{TRIGGER}")}),
    Row("11", "the wait in the triggerer fails", "defers", events.trigger_fails, OPERATOR, OPERATOR),
    Row("13", "`dagrun_timeout` while deferred", "defers_and_run_times_out", events.run_times_out,
        TRIGGER, f"{TRIGGER}|{RINGS}"),
    Row("14", "another task fails", "then_work", partial(events.work_fails, "raise", "failed"), LEAK, RINGS),
    Row("15-raises", "a task between setup and teardown raises", "setup_then_work",
        partial(events.work_fails, "raise", "failed"), LEAK, RINGS),
    Row("15-marked", "it is marked failed", "setup_then_work", events.marked("failed", task="work", work="sleep"),
        LEAK, RINGS),
    Row("15-killed", "its process is SIGKILLed", "setup_then_work", events.killed("work"), LEAK, RINGS),
    Row("15-worker", "its worker is lost", "setup_then_work", events.killed("work", worker=True), LEAK, RINGS),
    Row("15-deferred", "it is deferred and marked failed", "setup_then_deferred",
        events.marked("failed", "deferred", task="work"), LEAK, RINGS),
    Row("15a", "the ingest is the setup, and its worker is lost", "setup_waits", events.killed(worker=True),
        CALLBACK, f"{CALLBACK}|{DAG_CALLBACK}"),
    Row("16", "a Deadline passes, and nothing fails", "late", events.deadline_missed, LEAK, DEADLINE,
        {DEADLINES: NOT_PLAYED}),
    Row("17", "a rescheduled sensor is marked failed between pokes", "then_rescheduled",
        events.marked("failed", "up_for_reschedule", task="work"), LEAK, RINGS),
    Row("18", "the whole run is marked failed", "waits", partial(events.run_marked_failed, "running"),
        KILL, f"{KILL}|{RINGS}"),
    Row("18-deferred", "the same while deferred", "defers", partial(events.run_marked_failed, "deferred"),
        TRIGGER, f"{TRIGGER}|{RINGS}"),
    Row("18b", "the run is marked failed and deleted", "waits", events.run_deleted, KILL, KILL),
    Row("19b", "the run is marked failed while the task waits for its retry", "waits_for_retry",
        partial(events.run_marked_failed, "up_for_retry"), LEAK, TEARDOWN,
        {STATE_STORE: (OPERATOR, OPERATOR)}),
    Row("19d", "a skip after the start", "then_work", partial(events.work_fails, "skip", "skipped"), LEAK, TEARDOWN),
    Row("19e", "one of three mapped tasks loses its worker", "mapped",
        partial(events.mapped, events.second_loses_its_worker), LEAK, f"{CALLBACK}|{DAG_CALLBACK}",
        {AIRFLOW_3: (A_CALLBACK, A_CALLBACK)}),
    Row("1-list", "the task of three ingests raises", "list_raises", events.raises, OPERATOR, OPERATOR),
    Row("2-list", "it raises, and its retry reattaches to the three", "list_raises_with_retry",
        events.raised_and_retried, UNHARMED, UNHARMED, {STATE_STORE: NOT_PLAYED}),
    Row("3-list", "it is marked failed", "list_waits", events.marked("failed"), KILL, f"{KILL}|{RINGS}"),
    Row("5-list", "its `execution_timeout`", "list_times_out", events.times_out, OPERATOR, OPERATOR),
    Row("7-list", "its process is SIGKILLed", "list_waits", events.killed(), LEAK, RINGS,
        {AIRFLOW_3: (A_CALLBACK, RINGS)}),
    Row("8-list", "its task and worker are lost", "list_waits", events.killed(worker=True),
        CALLBACK, f"{CALLBACK}|{RINGS}"),
    Row("9-list", "it is deferred and marked failed", "list_defers", events.marked("failed", "deferred"),
        TRIGGER, f"{TRIGGER}|{RINGS}"),
    Row("lost", "the response to create is lost; the ingest is recovered, then the task marked failed", "waits",
        disturbances.response_lost, KILL, f"{KILL}|{RINGS}", phase=ALONE),
    Row("lost-for-good", "the response is lost, and the server has no list", "waits",
        disturbances.response_lost_without_list, LEAK, LEAK, phase=ALONE),
    Row("lost-worker", "the worker is lost before the response to create has come", "waits",
        disturbances.lost_before_response, LEAK, LEAK, phase=ALONE),
    Row("10", "deferral timeout, with the triggerer down", "defers_and_raises_later", disturbances.deferral_times_out,
        OPERATOR, OPERATOR, phase=TRIGGERER_DOWN),
    Row("12", "the triggerer is killed and started again", "defers", disturbances.lives_through,
        UNHARMED, UNHARMED, phase=TRIGGERER_DOWN),
    Row("19c-failed", "a deferred task is marked failed while the triggerer is down", "defers",
        partial(disturbances.marked_without_triggerer, "failed"), TRIGGER, RINGS,
        {AIRFLOW_3: (LEAK, RINGS)}, phase=TRIGGERER_DOWN),
    Row("19c-success", "it is marked success then", "defers",
        partial(disturbances.marked_without_triggerer, "success"), TRIGGER, TEARDOWN,
        {AIRFLOW_3: (LEAK, TEARDOWN)}, phase=TRIGGERER_DOWN),
    Row("12b", "the triggerer stalls, and another takes over", "defers", disturbances.lives_through_a_stall,
        UNHARMED, UNHARMED, phase=TRIGGERER_STALLED),
    Row("20", "the API server is down", "waits", disturbances.api_server_lost,
        f"{KILL}|{CALLBACK}", f"{KILL}|{CALLBACK}|{RINGS}", {AIRFLOW_3: NOT_PLAYED}, API_SERVER_DOWN),
    Row("19", "the scheduler is lost, and another started", "waits", disturbances.scheduler_lost,
        f"{KILL}|{UNHARMED}", f"{KILL}|{UNHARMED}", phase=SCHEDULER_LOST),
)  # fmt: skip
