"""XComs: their keys, and how the operations that a task has started are pushed and read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, Context

from airflow_dai_provider.api.names import is_operation_name
from airflow_dai_provider.tasks.failures import describe_error

#: The name(s) of the operation(s) that a task has started: a string, or a list of them.
XCOM_OPERATION_NAME = "operation_name"
#: Where and when they were started: ``{"endpoint": base URL of the service, "try_number": int, "clear_number": int,
#: "pushed_at": {operation name: seconds since the epoch}, "flags": {parameter of the task: bool}, "refused": bool}``.
#: The clear number is how often the run had been cleared by then; ``refused`` means that the operations are meant to
#: keep running although the task fails. A user's own code can leave out each of them.
XCOM_STARTED = "operation_started"
#: The finished operation, of a task that has waited: ``Operation.to_dict()``.
XCOM_OPERATION = "operation"
#: The report of a sweep.
XCOM_REPORT = "report"
#: Airflow's own key of what a task returns.
XCOM_RETURN_VALUE = "return_value"


class NoXComsError(AirflowException):
    """XComs cannot be read at all in this process."""


#: The endpoints of operations by their names: a name is known only together with its endpoint.
Endpoints = dict[object, set[str]]


def push_operations(
    ti: Any,
    pushed_at: Mapping[str, float],
    endpoint: str | None = None,
    clear_number: int | None = None,
    flags: Mapping[str, bool] | None = None,
    *,
    many: bool,
    refused: bool = False,
) -> None:
    """Push the operations that a task has started.

    :param pushed_at: for each operation by its name, when it is pushed, in seconds since the epoch.
    :param endpoint: base URL of the service that runs them.
    :param clear_number: of the run, from :func:`clear_number_of`.
    :param flags: what the task means for its operations, for the sweep.
    :param many: whether the names are pushed as a list.
    :param refused: whether they are meant to run on although the task fails, since others of the list were refused.
    """
    # Before the names: where it cannot be pushed, a name alone would stand for an operation at any endpoint.
    started = {
        "endpoint": endpoint,
        "try_number": ti.try_number,
        "clear_number": clear_number,
        "pushed_at": dict(pushed_at),
        "flags": dict(flags or {}),
        "refused": refused,
    }
    ti.xcom_push(XCOM_STARTED, started)
    names = list(pushed_at)
    ti.xcom_push(XCOM_OPERATION_NAME, names if many else names[0])


def clear_number_of(context: Context) -> int | None:
    """Return how often the run of a context was cleared, or None where Airflow does not tell."""
    number = getattr(context.get("dag_run"), "clear_number", None)
    return number if type(number) is int else None


def pull_operations(ti: Any, task_id: str, map_index: int | None, endpoints: Endpoints | None = None) -> list[object]:
    """Return the operations in the XCom ``operation_name``, else the returned strings that are names of operations.

    :param ti: a task instance of the same run, which pulls.
    :param map_index: None for every map index.
    :param endpoints: receives where they run, as far as the task has pushed it.
    """
    if started := [name for value in pull(ti, task_id, XCOM_OPERATION_NAME, map_index) for name in as_list(value)]:
        if endpoints is not None:
            for name, endpoint in pull_started(ti, task_id, map_index, "endpoint").items():
                endpoints.setdefault(name, set()).update(map(str, endpoint))
        return started
    try:
        returned = pull(ti, task_id, XCOM_RETURN_VALUE, map_index)
    except ImportError:
        # An object whose class Airflow does not restore here, so no name.
        return []
    return [value for value in returned if is_operation_name(value)]


def pull_started(ti: Any, task_id: str, map_index: int | None, field: str) -> dict[object, list[Any]]:
    """Return by name what the XCom ``operation_started`` tells of operations.

    What has an unexpected form, as code of a user can push it, tells nothing.

    :param map_index: None for every map index; several can have started operations of one name, at different endpoints.
    :param field: one of ``endpoint``, ``try_number``, ``clear_number`` and ``pushed_at``.
    """
    values: dict[object, list[Any]] = {}
    for started in pull(ti, task_id, XCOM_STARTED, map_index):
        pushed_at = started.get("pushed_at") if isinstance(started, Mapping) else None
        for name, seconds in pushed_at.items() if isinstance(pushed_at, Mapping) else ():
            value = seconds if field == "pushed_at" else started.get(field)
            if value is not None:
                values.setdefault(name, []).append(value)
    return values


def elsewhere(name: object, endpoint: str, endpoints: Endpoints) -> str | None:
    """Return a sentence on an operation that runs at another endpoint only; None for one that can be cancelled here.

    At this endpoint, another operation can have the same name.

    :param endpoint: base URL of the hook that would cancel it.
    """
    known = endpoints.get(name)
    if not known or endpoint in known:
        return None
    return (
        f"it was started at {' and '.join(sorted(known))}, and the endpoint is {endpoint} now, where another operation "
        f"can have this name. Cancel it at the endpoint at which it was started."
    )


def is_several(value: object) -> bool:
    """Return whether a value stands for several: any collection but a text or a JSON object."""
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def as_list(value: Any) -> list[Any]:
    """Return one value or several as a list."""
    return list(value) if is_several(value) else [value]


def pull(ti: Any, task_id: str, key: str, map_index: int | None) -> list[Any]:
    """Return the values that a task has pushed under a key.

    :param map_index: None for every map index.
    :raises NoXComsError: where Airflow does not respond to such a request.
    :raises AirflowException: when Airflow fails to read it; the message names the XCom.
    """
    from airflow_dai_provider.version_compat import gets_xcoms, lacks_supervisor

    if not gets_xcoms():
        raise NoXComsError(
            "XComs cannot be read here: the dag processor of Airflow 3.0 does not respond to such requests. Give "
            "the notifier operation_name without an XCom in it, use a teardown, or use Airflow 3.1 or later."
        )
    try:
        if map_index is None:
            # A list of task ids without map indexes gives every map index, on Airflow 2 and 3 alike.
            values = ti.xcom_pull(task_ids=[task_id], key=key)
        else:
            values = [ti.xcom_pull(task_ids=task_id, key=key, map_indexes=map_index)]
        return [value for value in values or [] if value is not None]
    except ImportError as error:
        if not lacks_supervisor(error):
            raise
        raise NoXComsError(
            "XComs cannot be read here: dag.test() of Airflow 3 runs the callbacks of a DAG without the supervisor "
            "process that reads XComs. On a running Airflow it works; for dag.test() give the notifier operation_name."
        ) from error
    except Exception as error:
        # Even an OSError of the XCom backend is an error of Airflow, and not of the service.
        raise AirflowException(f"Airflow could not read the XCom '{key}': {describe_error(error)}") from error
