"""What an Airflow under test has logged."""

from __future__ import annotations

import json
from pathlib import Path


class WrittenLogs:
    """The logs below an AIRFLOW_HOME."""

    home: Path

    def task_log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return all that a task has logged, in all its tries and map indexes."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return "\n".join(path.read_text() for path in sorted(folder.rglob("*.log")))

    def task_log_lines(self, dag_id: str, run_id: str, task_id: str) -> list[str]:
        """Return the messages that a task has logged, without the JSON that Airflow 3 wraps them in."""
        return [_message(line) for line in self.task_log(dag_id, run_id, task_id).splitlines()]

    def component_logs(self) -> str:
        """Return what the components, and the dag processor for each file, have logged."""
        files = [*self.home.glob("*.log"), *(self.home / "logs").rglob("*.py.log")]
        return "\n".join(path.read_text(errors="replace") for path in sorted(files))


def _message(line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict):
        return line
    errors = [f": {detail['exc_type']}: {detail['exc_value']}" for detail in record.get("error_detail") or []]
    return str(record.get("event", line)) + "".join(errors[:1])
