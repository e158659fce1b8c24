"""Resources that are JSON objects, but not what was asked for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import Code, ServiceError

GET = rest.get_operation("operations/a")
CREATE = rest.create_creative({})
NESTED: Any = {}
for _ in range(300):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    ("request_", "resource"),
    [
        (GET, {"name": "operations/b"}),
        (GET, {"name": ""}),
        (CREATE, {"name": "operations/a b"}),
        (CREATE, {"name": "x"}),
        (CREATE, {"name": ""}),
        (rest.get_creative("creatives/c"), NESTED),
    ],
    ids=lambda value: value.method if isinstance(value, rest.Request) else str(value)[:30],
)
def test_what_was_not_asked_for_cannot_be_read(request_: rest.Request[Any], resource: dict[str, Any]) -> None:
    """The name is all by which an ingest can be cancelled, so a start without a valid one has to be recovered."""
    response = rest.Response(200, {}, json.dumps(resource | {"done": True}).encode())
    with pytest.raises(ServiceError, match="invalid body") as caught:
        rest.read_response(request_, response, datetime.now(UTC))
    assert (caught.value.rpc_code, caught.value.sent) == (Code.UNKNOWN, True)
