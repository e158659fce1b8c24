"""operations.list whose pages are too large, or never end: what the synchronous hook makes of it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from google.api_core import exceptions

from airflow_dai_provider.api import listing, rest
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.connections import Connect
from tests.support.payloads import large_url
from tests.support.tiny_server import Exchange, Serve

LIMIT = rest.MAX_RESPONSE_BYTES


def sizes(emulator: DaiEmulator) -> list[str | None]:
    return [request.query.get("pageSize") for request in emulator.requests]


@pytest.mark.parametrize(
    ("page_size", "asked"),
    [(100, ["100", "50", "50", "50"]), (None, [None, "50", "50", "50"]), (5, ["5"] * 24)],
)
def test_a_page_that_is_too_large_is_asked_for_again_with_half_as_many(
    hook: DaiHook, emulator: DaiEmulator, page_size: int | None, asked: list[str | None]
) -> None:
    names = [emulator.start_ingest(creative_url=large_url(LIMIT // 100)) for _ in range(118)]
    assert [operation.name for operation in hook.list_operations(page_size=page_size)] == names
    assert sizes(emulator) == asked


def test_the_page_in_the_middle_is_asked_for_again_with_its_token(hook: DaiHook, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest() for _ in range(8)]
    names += [emulator.start_ingest(creative_url=large_url(LIMIT // 3)) for _ in range(5)]
    assert [operation.name for operation in hook.list_operations(page_size=8)] == names
    assert sizes(emulator) == ["8", "8", "4", "2", "2", "2"]
    tokens = [request.query.get("pageToken") for request in emulator.requests]
    assert tokens[1] == tokens[2] == tokens[3] is not None


def test_the_filter_stays_when_the_page_is_halved(hook: DaiHook, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest(creative_url=large_url(LIMIT // 3)) for _ in range(4)]
    emulator.start_ingest(seconds=0)
    assert [operation.name for operation in hook.list_operations("done=false", 4)] == names
    assert {request.query["filter"] for request in emulator.requests} == {"done=false"}


def test_a_single_operation_that_is_too_large_is_an_error(hook: DaiHook, emulator: DaiEmulator) -> None:
    first = emulator.start_ingest()
    emulator.start_ingest(creative_url=large_url(LIMIT))
    listed = hook.list_operations(page_size=4)
    assert [operation.name for operation in islice(listed, 1)] == [first]
    with pytest.raises(exceptions.Unknown, match=f"larger than {LIMIT} bytes"):
        next(listed)
    assert sizes(emulator)[:4] == ["4", "2", "1", "1"]


def test_pages_that_bring_nothing_new_end(
    connect: Connect, tiny_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_IDLE_PAGES", 20)
    connect(is_anonymous=True, num_retries=0)
    answers = {"operations": [{"name": "operations/a"}]}

    def respond(exchange: Exchange) -> None:
        exchange.answer(200, {**answers, "nextPageToken": str(len(exchange.server.requests))})

    server = tiny_server(respond)
    with DaiHook(api_endpoint=server.endpoint) as hook:
        operations = hook.list_operations()
        assert next(operations).name == "operations/a"
        with pytest.raises(exceptions.Unknown) as caught:
            list(operations)
    assert len(server.requests) == 21
    assert (
        "20 pages in a row without another operation; the list does not end; 21 pages of it have shown 1 operations"
        in str(caught.value)
    )


def test_the_error_of_a_circle_says_what_was_read(connect: Connect, tiny_server: Serve) -> None:
    connect(is_anonymous=True, num_retries=0)

    def respond(exchange: Exchange) -> None:
        number = len(exchange.server.requests)
        page: dict[str, Any] = {"operations": [{"name": f"operations/{number}"}], "nextPageToken": "AB"[number % 2]}
        exchange.answer(200, page)

    with (
        DaiHook(api_endpoint=tiny_server(respond).endpoint) as hook,
        pytest.raises(exceptions.Unknown, match="same page token twice: B; .* 3 pages of it have shown 3 operations"),
    ):
        list(hook.list_operations())
