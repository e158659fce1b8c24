"""creatives.create, get and delete; the choice of an ingest's course by the media URL."""

import copy
from typing import Any

import pytest
import requests
from emulator_testing import Client, Clock, assert_error

from airflow_dai_provider.emulator import DaiEmulator, Plan

MEDIA = {"uri": "https://media.example/m.mp4", "delivery": "DELIVERY_STREAMING", "mimeType": "video/webm"}


def with_url(creative: dict[str, Any], url: str) -> dict[str, Any]:
    return {"creative": {**creative, "mezzanines": [{**MEDIA, "uri": url}]}}


def test_create_returns_the_operation(emulator: DaiEmulator, client: Client, creative: dict[str, Any]) -> None:
    response = client.post("creatives", json={"creative": creative})
    operation = response.json()
    assert response.status_code == 200
    assert operation == client.operation(operation["name"])
    assert "done" not in operation
    assert operation["metadata"]["creativeUrl"] == "https://media.example/ad.mp4"
    assert emulator.state(operation["name"]) == "RUNNING"


def test_creative_exists_until_it_is_deleted(client: Client, clock: Clock, creative: dict[str, Any]) -> None:
    creative["name"] = "creatives/chosen-by-the-caller"  # output only: ignored
    operation = client.post("creatives", json={"creative": creative}).json()
    clock.advance(10)
    response = client.operation(operation["name"])["response"]
    name = response["name"]
    assert name.startswith("creatives/gv-")
    assert client.get(name).json() == {**creative, "name": name}
    deletion = client.delete(name)
    assert (deletion.status_code, deletion.json()) == (200, {})
    assert_error(client.get(name), 404, "NOT_FOUND", name)
    assert_error(client.delete(name), 404, "NOT_FOUND", name)
    assert client.operation(operation["name"])["response"]["name"] == name


def test_the_creatives_that_exist_can_be_listed(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    control = f"{emulator.control_endpoint}/creatives"
    for seconds, outcome in ((5, "success"), (5, "success"), (5, "INVALID_MEDIA"), (50, "success")):
        emulator.start_ingest(seconds=seconds, outcome=outcome)
    assert emulator.creatives() == []
    clock.advance(10)
    kept, deleted = emulator.creatives()
    client.delete(deleted)
    assert emulator.creatives() == [kept]
    assert requests.get(control, timeout=5).json() == {"creatives": [kept]}
    emulator.reset()
    assert emulator.creatives() == []
    assert_error(client.get(kept), 404, "NOT_FOUND", kept)


def test_creative_needs_the_success_of_its_ingest(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    running, succeeded = emulator.start_ingest(seconds=100), emulator.start_ingest()
    clock.advance(10)
    name = client.operation(succeeded)["response"]["name"]
    assert client.get(name).status_code == 200
    # Operation and creative of one ingest share the end of their names.
    assert name == succeeded.replace("operations/ingest-", "creatives/gv-")
    too_early = running.replace("operations/ingest-", "creatives/gv-")
    assert_error(client.get(too_early), 404, "NOT_FOUND", too_early)
    assert_error(client.delete(too_early), 404, "NOT_FOUND")
    clock.advance(90)
    assert client.get(too_early).status_code == 200
    assert_error(client.get("creatives/gv-unknown"), 404, "NOT_FOUND")


def test_first_mezzanine_is_chosen_before_media_files(client: Client, creative: dict[str, Any]) -> None:
    mezzanines = [{**MEDIA, "uri": f"https://media.example/{number}.mov"} for number in (1, 2)]
    body = {"creative": {**creative, "mezzanines": mezzanines}}
    assert client.post("creatives", json=body).json()["metadata"]["creativeUrl"] == mezzanines[0]["uri"]


def test_mezzanine_alone_is_enough(client: Client) -> None:
    body = {"creative": {"adSystem": "tests", "mezzanines": [MEDIA], "mediaFiles": None}}
    assert client.post("creatives", json=body).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b'"\xff"', b"[]", b"null"])
def test_body_that_is_no_object_is_refused(emulator: DaiEmulator, client: Client, body: bytes) -> None:
    assert_error(client.post("creatives", data=body), 400, "INVALID_ARGUMENT")
    assert emulator.states() == {}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("creative", None, "'creative'"),
        ("creative", "x", "'creative'"),
        ("creative.adSystem", None, "'creative.adSystem'"),
        ("creative.adSystem", "", "'creative.adSystem'"),
        ("creative.adSystem", 7, "'creative.adSystem'"),
        ("creative.mediaFiles", None, "mezzanines or mediaFiles"),
        ("creative.mediaFiles", [], "mezzanines or mediaFiles"),
        ("creative.mediaFiles", {}, "'creative.mediaFiles'"),
        ("creative.mediaFiles", ["x"], "'creative.mediaFiles[0]'"),
        ("creative.mezzanines", [MEDIA, {**MEDIA, "uri": ""}], "'creative.mezzanines[1].uri'"),
        ("creative.mediaFiles.0.uri", None, "'creative.mediaFiles[0].uri'"),
        ("creative.mediaFiles.0.mimeType", None, "'creative.mediaFiles[0].mimeType'"),
        ("creative.mediaFiles.0.delivery", None, "'creative.mediaFiles[0].delivery'"),
        ("creative.mediaFiles.0.delivery", "DELIVERY_UNSPECIFIED", "'creative.mediaFiles[0].delivery'"),
        ("creative.mediaFiles.0.delivery", ["x"], "'creative.mediaFiles[0].delivery'"),
        ("dynamicCreativeInfo", "x", "'dynamicCreativeInfo'"),
        ("dynamicCreativeInfo", {"dynamicGroupId": "g"}, "'creative.networkCode'"),
    ],
)
def test_invalid_creative_is_refused(
    emulator: DaiEmulator, client: Client, creative: dict[str, Any], path: str, value: Any, words: str
) -> None:
    body: Any = {"creative": creative}
    parent: Any = body
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    for part in parents:
        parent = parent[part]
    if value is None:
        del parent[last]
    else:
        parent[last] = value
    assert_error(client.post("creatives", json=body), 400, "INVALID_ARGUMENT", words)
    assert emulator.states() == {}


@pytest.mark.parametrize("value", ["3.5s", "15552000s", "0.000000001s", None])
def test_active_duration_is_accepted(client: Client, creative: dict[str, Any], value: Any) -> None:
    info = {"dynamicGroupId": "g", "activeDuration": value}
    body = {"creative": {**creative, "networkCode": "123"}, "dynamicCreativeInfo": info}
    assert client.post("creatives", json=body).status_code == 200


@pytest.mark.parametrize("value", ["15552000.1s", "3.5", "-1s", "1.0123456789s", "s", "1m", 30, "٣s"])
def test_invalid_active_duration_is_refused(client: Client, creative: dict[str, Any], value: Any) -> None:
    body = {"creative": {**creative, "networkCode": "123"}, "dynamicCreativeInfo": {"activeDuration": value}}
    words = "'dynamicCreativeInfo.activeDuration'"
    assert_error(client.post("creatives", json=body), 400, "INVALID_ARGUMENT", words)


def test_absent_dynamic_info_may_be_null(client: Client, creative: dict[str, Any]) -> None:
    body = {"creative": creative, "dynamicCreativeInfo": None}
    assert client.post("creatives", json=body).status_code == 200


def test_text_that_utf_8_cannot_carry_comes_back(client: Client, creative: dict[str, Any]) -> None:
    creative["adTitle"] = "\ud800 and ü"
    name = client.post("creatives", json=with_url(creative, "https://m.example/a?seconds=0")).json()["name"]
    assert client.operation(name)["response"]["adTitle"] == creative["adTitle"]


def test_url_chooses_duration_and_failure(client: Client, clock: Clock, creative: dict[str, Any]) -> None:
    url = "https://media.example/ad.mp4?sig=a%2Bb&seconds=30&outcome=DOWNLOAD_ERROR&code=410"
    operation = client.post("creatives", json=with_url(creative, url)).json()
    assert operation["metadata"]["creativeUrl"] == url
    clock.advance(29)
    assert "done" not in client.operation(operation["name"])
    clock.advance(1)
    reason = client.operation(operation["name"])["metadata"]["youtubeStatus"]["failureReason"]
    assert reason == {"reason": "DOWNLOAD_ERROR", "code": 410}


def test_url_chooses_what_a_cancel_does(
    emulator: DaiEmulator, client: Client, clock: Clock, creative: dict[str, Any]
) -> None:
    urls = {
        "ignored": "https://m.example/?cancel=ignored",
        "slow": "https://m.example/?cancel=honoured&cancel_seconds=2.5",
    }
    started = {
        label: client.post("creatives", json=with_url(creative, url)).json()["name"] for label, url in urls.items()
    }
    for name in started.values():
        client.post(f"{name}:cancel")
    clock.advance(2)
    assert set(emulator.states().values()) == {"RUNNING"}
    clock.advance(0.5)
    assert emulator.states() == {started["ignored"]: "RUNNING", started["slow"]: "CANCELLED"}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("seconds=soon", "seconds: got 'soon'"),
        ("seconds=-1", "seconds: got -1.0"),
        ("seconds=nan", "seconds: got nan"),
        ("seconds=", "seconds: got ''"),
        ("cancel_seconds=-2", "cancel_seconds: got -2.0"),
        ("outcome=failure", "outcome: got 'failure', expected one of success, DOWNLOAD_ERROR"),
        ("cancel=maybe", "cancel: got 'maybe', expected one of honoured, ignored"),
        ("outcome=DOWNLOAD_ERROR&code=x", "code: got 'x'"),
        ("outcome=DOWNLOAD_ERROR&code=99", "code: got 99"),
        ("code=404", "only with DOWNLOAD_ERROR"),
    ],
)
def test_url_with_an_invalid_value_is_refused(
    emulator: DaiEmulator, client: Client, creative: dict[str, Any], query: str, words: str
) -> None:
    body = with_url(creative, f"https://media.example/ad.mp4?{query}")
    assert_error(client.post("creatives", json=body), 400, "INVALID_ARGUMENT", words)
    assert emulator.states() == {}
    with pytest.raises(ValueError) as info:
        emulator.start_ingest(creative_url=f"https://media.example/ad.mp4?{query}")
    assert words in str(info.value)


def test_malformed_url_is_refused(client: Client, creative: dict[str, Any]) -> None:
    body = with_url(creative, "https://[media.example/ad.mp4")
    assert_error(client.post("creatives", json=body), 400, "INVALID_ARGUMENT", "media URL")


def test_arguments_of_start_ingest_win_over_the_url(emulator: DaiEmulator, clock: Clock) -> None:
    url = "https://media.example/ad.mp4?seconds=3&outcome=INVALID_MEDIA"
    from_url = emulator.start_ingest(creative_url=url)
    argued = emulator.start_ingest(creative_url=url, seconds=4, outcome="success")
    clock.advance(3)
    assert emulator.states() == {from_url: "FAILED", argued: "RUNNING"}
    clock.advance(1)
    assert emulator.state(argued) == "SUCCEEDED"


def test_creative_of_start_ingest_is_one_that_create_would_take(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest(seconds=0)
    response = client.operation(name)["response"]
    submitted = {key: value for key, value in copy.deepcopy(response).items() if key not in ("@type", "name")}
    assert client.post("creatives", json={"creative": submitted}).status_code == 200


@pytest.mark.parametrize("field", ["seconds", "cancel_seconds"])
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_plan_refuses_an_invalid_duration(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: got"):
        Plan(**{field: value})


def test_emulator_refuses_invalid_options() -> None:
    with pytest.raises(ValueError, match="seconds"):
        DaiEmulator(ingest_seconds=-1)
    with pytest.raises(ValueError, match="finished_cancel: got 'no', expected one of ok, failed_precondition"):
        DaiEmulator(finished_cancel="no")
    with pytest.raises(ValueError, match="port"):
        DaiEmulator(port=65536)
    with pytest.raises(ValueError, match="unimplemented: got 'operations.wait', expected one of operations.get"):
        DaiEmulator(unimplemented=("operations.wait",))
