"""The keys of the XComs that tasks leave for other tasks and for guards."""

from __future__ import annotations

#: The name(s) of the operation(s) that a task has started: a string, or a list of them.
XCOM_OPERATION_NAME = "operation_name"
#: The number of the try that has started them.
XCOM_TRY_NUMBER = "operation_try_number"
#: When that was: ``{operation name: seconds of the epoch}``.
XCOM_PUSHED_AT = "operation_pushed_at"
#: What the service reported, of a task that has waited: ``Operation.to_dict()``.
XCOM_OPERATION = "operation"
#: What a sweep has found, and what became of it.
XCOM_REPORT = "report"
#: Airflow's own, of what a task returns.
XCOM_RETURN_VALUE = "return_value"
