"""What the benchmarks' DAGs share. Each process of a task leaves a line in the file ``BENCHMARK_PROCESSES``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import task

PARAMS = {"campaign": "a", "number": 2, "seconds": 20}


def note(**fields: Any) -> None:
    """Add a line for this process."""
    line = json.dumps({"pid": os.getpid(), **fields})
    with Path(os.environ["BENCHMARK_PROCESSES"]).open("a") as file:
        file.write(f"{line}\n")


@task
def creatives(params: dict, part: str = "") -> list[dict]:
    """Return the creatives of a campaign."""
    uri = f"https://media.example.com/{params['campaign']}{part}-{{}}.mp4?seconds={params['seconds']}"
    media = {"delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
    return [
        {"adSystem": "example", "mediaFiles": [{"uri": uri.format(number), **media}]}
        for number in range(params["number"])
    ]
