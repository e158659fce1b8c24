"""Any JSON that a server can send, and storing what the provider makes of it as Airflow does, in any database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.operation_list import to_dicts
from airflow_dai_provider.api.polling import Wait
from airflow_dai_provider.sweep.report import Failure, SweepReport
from airflow_dai_provider.sweep.selection import Selection
from airflow_dai_provider.tasks.events import error_event, many_event, operation_event, read_many_event
from airflow_dai_provider.tasks.failures import task_error
from tests.support.airflow_versions import IS_AIRFLOW_2, first, serialize_xcom
from tests.support.payloads import METADATA_TYPE, NAME, SIGNATURE

_NOW = datetime(2026, 1, 1, tzinfo=UTC)

#: Any text, lone surrogates and NUL among it.
texts = st.text(st.characters(exclude_categories=()), max_size=12) | st.sampled_from(
    [
        "nul \0 x",
        "cut \ud83d",
        "\ude00\ud83d",
        "\U0001f600",
        "\x1b[31m",
        "x" * 70_000,
        "\u65e5" * 30_000,
        "\r\n\x01\x7f",
    ]
)
_keys = texts | st.sampled_from(["__classname__", "__version__", "__data__", "__type", "__var", "__id__", "@type", ""])
numbers = st.integers() | st.floats() | st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**400, 1e22, 1e308, 5e-324])
_leaves = st.none() | st.booleans() | numbers | texts
_wide = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3), max_leaves=8
)


def _nested(levels: int, inmost: Any, by_list: bool) -> Any:
    value = inmost
    for _ in range(levels):
        value = [value] if by_list else {"a": value}
    return value


values = _wide | st.builds(_nested, st.sampled_from([31, 60, 120, 240]), _leaves, st.booleans())
#: What stands in the place of an operation, with what can stand in each field; most of them can be read.
operations = st.fixed_dictionaries(
    {"name": st.just(NAME)},
    optional={
        "done": st.booleans(),
        "error": st.fixed_dictionaries({}, optional={"code": st.integers(0, 16) | numbers, "message": texts}),
        "response": st.dictionaries(_keys, values, max_size=3),
        "metadata": st.dictionaries(_keys, values, max_size=3)
        | st.fixed_dictionaries(
            {"@type": st.just(METADATA_TYPE)},
            optional={
                "creativeUrl": texts.map("https://media.example/{}?sig=s1gn4ture".format) | values,
                "gvRegistryId": values,
                "createTime": st.just("9999-12-31T23:59:59+00:00") | values,
                "youtubeStatus": st.fixed_dictionaries(
                    {},
                    optional={
                        "state": values,
                        "failureReason": st.fixed_dictionaries({}, optional={"reason": values, "code": values}),
                    },
                ),
                "more": values,
            },
        ),
    },
)
#: Bodies of responses: JSON as Python reads it, so with NaN and Infinity too, and what is not quite JSON.
bodies = (
    operations
    | st.fixed_dictionaries({"error": st.fixed_dictionaries({}, optional={"code": numbers, "message": values})})
    | values
).map(lambda value: json.dumps(value).encode()) | st.sampled_from(
    [
        b'{"name": "%s", "metadata": {"a": 1e400, "b": -1e400, "c": NaN}}' % NAME.encode(),
        b'{"name": "%s", "metadata": {"a": %s}}' % (NAME.encode(), b"9" * 5000),
        b'{"name": "%s", "metadata": {"a": 1, "a": "\\u0000"}}' % NAME.encode(),
        b'{"name": "%s", "metadata": {"a": %s}}' % (NAME.encode(), b"[" * 100_000 + b"]" * 100_000),
        b'{"name": "%s", "metadata": {"a": "\xff"}}' % NAME.encode(),
        b'{"name": "%s\\u0000", "done": true}' % NAME.encode(),
        b'{"name": "%s\\ud83d", "done": true}' % NAME.encode(),
    ]
)


def store_all_that_a_server_can_send(session: Any, ti: Any, examples: int) -> None:
    """Store what the provider makes of any response, and check that no signature is in it.

    :param session: of SQLAlchemy, on the database of Airflow; nothing is committed.
    :param ti: a task instance in that database, which the session has loaded.
    """

    def check(values: list[Any]) -> None:
        for value in values:
            assert SIGNATURE not in json.dumps(value)
            store(session, ti, value)

    @given(bodies)
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    def one_holds(body: bytes) -> None:
        for status in (200, 503):
            check(_handed_to_airflow(body, status))

    @given(st.lists(operations | values, max_size=3))
    @settings(max_examples=examples // 3, deadline=None, derandomize=True, database=None)
    def several_hold(items: list[Any]) -> None:
        check(_of_a_page(items))

    one_holds()
    several_hold()
    session.rollback()


def _handed_to_airflow(body: bytes, status: int) -> list[Any]:
    """Return everything that Airflow gets of a response: to a poll, and of the errors of other requests."""
    response, handed = rest.Response(status, {}, body), list[Any]()
    for request in (rest.cancel_operation(NAME), rest.create_creative({}), rest.list_operations()):
        try:
            rest.read_response(request, response, _NOW)
        except ServiceError as error:
            handed += _of_an_error(error)
    try:
        operation = rest.read_response(rest.get_operation(NAME), response, _NOW)
    except ServiceError as error:
        return handed + _of_an_error(error)
    assert Operation.from_dict(operation.to_dict()).to_dict() == operation.to_dict()
    report = SweepReport([operation], Selection(1.0, include_undated=True), _NOW.timestamp())
    report.begin()
    for stray in report.found:
        report.failed(stray.name, Failure(ServiceError.rpc_code, str(operation)))
    return [
        *handed,
        operation.to_dict(),
        [operation.to_dict()] * 2,
        operation_event(NAME, operation),
        report.to_dict(),
        str(operation),
    ]


def _of_an_error(error: ServiceError) -> list[Any]:
    return [error_event(NAME, error), str(task_error(error.rpc_code, str(error), "It may still run"))]


def _of_a_page(items: list[Any]) -> list[Any]:
    """Return what Airflow gets of a page with these items and two that are in order, which these must not change."""
    running, failed = {"name": "operations/running"}, {"name": "operations/failed", "done": True, "error": {"code": 9}}
    body = json.dumps({"operations": [running, *items, failed]}).encode()
    page = rest.read_response(rest.list_operations(), rest.Response(200, {}, body), _NOW)
    assert [page.operations[0], page.operations[-1]] == [Operation.from_api(running), Operation.from_api(failed)]
    assert len(page.operations) + len(page.unreadable) == len(items) + 2
    names = [running["name"], failed["name"]]
    polled = rest.read_response(rest.poll_operations(dict.fromkeys(names)), rest.Response(200, {}, body), _NOW)
    assert (polled.running, polled.others) == ({running["name"]: page.operations[0]}, {failed["name"]})

    finished = [one for one in page.operations if one.done]
    many = ManyWait(list({one.name for one in finished}), Wait("several", started=0.0, poll_interval=1.0))
    for operation in finished:
        if operation.name in many.left:
            many.finish(operation)
    event = many_event(list(many.finished), many)
    known, _ = read_many_event(event, list(many.finished))
    assert known["operations/failed"] == page.operations[-1]
    report = SweepReport(page.operations, Selection(1.0, include_undated=True), _NOW.timestamp())
    return [event, to_dicts(page.operations), report.to_dict(), *page.unreadable]


def store(session: Any, ti: Any, value: Any) -> None:
    """Store a value as an XCom and as the event that resumes a task, as Airflow does; then read both back.

    :param session: of SQLAlchemy, on the database of Airflow; nothing is committed.
    :param ti: a task instance in that database, which the session has loaded.
    :raises Exception: when Airflow or the database cannot store the value, or gives another one back.
    """
    where = {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id, "map_index": ti.map_index, "key": "x"}
    carry(value)
    if IS_AIRFLOW_2:
        from airflow.models.xcom import XCom

        XCom.set(**where, value=value, session=session)
        session.flush()
        assert XCom.get_one(**where, session=session) == value
        ti.next_kwargs = {"event": value}
    else:
        from airflow.models.xcom import XComModel

        XComModel.set(**where, value=serialize_xcom(value), serialize=False, session=session)
        session.flush()
        session.expire_all()
        read = session.query(XComModel).filter_by(**where).one().value
        assert first("airflow.sdk.serde:deserialize", "airflow.serialization.serde:deserialize")(read) == value
        ti.next_kwargs = serialize_xcom({"event": value}) if first("airflow.sdk.serde:serialize") else {"event": value}
    session.flush()
    session.expire_all()
    assert ti.next_kwargs == {"event": value}


def carry(value: Any) -> None:
    """Carry a value over the wire between Airflow's processes, and over HTTP; fail where it does not arrive as it was.

    :raises Exception: when it cannot be carried.
    """
    if encoder := first("airflow.sdk.execution_time.comms:_new_encoder"):
        import msgspec

        assert msgspec.msgpack.decode(encoder().encode(value)) == value
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    assert json.loads(text.encode()) == value
    # What SQLite takes, but PostgreSQL or MySQL does not.
    assert "\\u0000" not in text
    assert _levels(value) <= 45, "Airflow's own form has two levels for one, and MySQL stores 100."
    assert all(-(2**63) <= number < 2**63 for number in _numbers(value))


def _levels(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_levels, value.values() if isinstance(value, dict) else value), default=0)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [number for item in (value.values() if isinstance(value, dict) else value) for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []
