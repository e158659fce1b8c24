"""What is refused before it is sent, and what passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_dai_provider.api.creative import InvalidCreativeError, check_creative, creative_digest, media_urls
from tests.support.payloads import SIGNATURE, SIGNED_URL, creative, media_file

MEDIA = media_file(SIGNED_URL)
GOOD = creative(SIGNED_URL)
DYNAMIC = {**GOOD, "networkCode": "1234"}


def media(**changes: Any) -> dict[str, Any]:
    return creative(mediaFiles=[{**MEDIA, **changes}])


@pytest.mark.parametrize(
    ("given", "info"),
    [
        (GOOD, None),
        ({"adSystem": "x", "mezzanines": [MEDIA]}, None),
        ({**GOOD, "mezzanines": [MEDIA, {**MEDIA, "delivery": "DELIVERY_STREAMING", "height": 1080}]}, None),
        ({**GOOD, "mezzanines": []}, None),
        ({**GOOD, "mediaFiles": (MEDIA,)}, None),
        ({**GOOD, "newField": {"a": [None]}}, None),
        (media(newField=1, mimeType="video/unheard-of"), None),
        (DYNAMIC, {}),
        (DYNAMIC, {"dynamicGroupId": "g", "activeDuration": "3.5s", "newField": 1}),
        (DYNAMIC, {"activeDuration": "15552000s"}),
        (DYNAMIC, {"activeDuration": "0.000000001s"}),
        (DYNAMIC, {"activeDuration": None}),
    ],
)
def test_what_the_service_takes_passes(given: Any, info: Any) -> None:
    check_creative(given, info)


@pytest.mark.parametrize(
    ("given", "info", "words"),
    [
        (None, None, "expected a JSON object (a dict), got None"),
        ([GOOD], None, "expected a JSON object (a dict), got [{"),
        ("{'adSystem': 'x'}", None, "render_template_as_native_obj=True"),
        ({"mediaFiles": [MEDIA]}, None, "adSystem: expected a string, got None"),
        ({**GOOD, "adSystem": " "}, None, "adSystem: expected a string, got ' '"),
        ({**GOOD, "adSystem": 3}, None, "adSystem: expected a string, got 3"),
        ({"adSystem": "x"}, None, "expected at least one entry in mediaFiles or mezzanines, got none"),
        ({"adSystem": "x", "mediaFiles": []}, None, "at least one entry"),
        ({**GOOD, "mezzanines": MEDIA}, None, "mezzanines: expected a list of media files, got {"),
        (
            {**GOOD, "mediaFiles": [SIGNED_URL]},
            None,
            "mediaFiles[0]: expected an object with uri, delivery and mimeType",
        ),
        (media(uri=None), None, "mediaFiles[0].uri: expected a string, got None"),
        (media(mimeType=""), None, "mediaFiles[0].mimeType: expected a string, got ''"),
        (media(delivery=None), None, "mediaFiles[0].delivery: expected DELIVERY_PROGRESSIVE or DELIVERY_STREAMING"),
        (media(delivery="PROGRESSIVE"), None, "got 'PROGRESSIVE'"),
        (media(delivery="DELIVERY_UNSPECIFIED"), None, "got 'DELIVERY_UNSPECIFIED'"),
        ({**GOOD, "mezzanines": [MEDIA, {}]}, None, "mezzanines[1].uri"),
        (GOOD, {}, "networkCode: expected a string, which a dynamic creative needs, got None"),
        (DYNAMIC, [], "dynamic_creative_info: expected a JSON object (a dict) or None, got []"),
        (DYNAMIC, {"activeDuration": "3.5"}, "activeDuration: expected seconds such as '3.5s', got '3.5'"),
        (DYNAMIC, {"activeDuration": 3.5}, "got 3.5"),
        (DYNAMIC, {"activeDuration": "-1s"}, "got '-1s'"),
        (DYNAMIC, {"activeDuration": "1e3s"}, "got '1e3s'"),
        (DYNAMIC, {"activeDuration": "٣s"}, "expected seconds such as"),
        (DYNAMIC, {"activeDuration": "0s"}, "more than 0 s and at most 180 days"),
        (DYNAMIC, {"activeDuration": "15552000.1s"}, "at most 180 days ('15552000s'), got '15552000.1s'"),
        ({**GOOD, "adTitle": {1, 2}}, None, "adTitle: expected a string, got {1, 2}"),
        ({**GOOD, "x": {1, 2}}, None, "x: expected JSON, got {1, 2}"),
        (media(width=float("nan")), None, "mediaFiles[0].width: expected a finite number of at most 64 bits, got nan"),
        (media(width=2**63), None, "mediaFiles[0].width: expected a finite number"),
        (
            {**GOOD, "adTitle": "cut \ud83d"},
            None,
            r"adTitle: expected text without NUL and without lone surrogates, got",
        ),
        ({**GOOD, "x": [{"y": "a\0"}]}, None, r"x[0].y: expected text without NUL"),
        ({**GOOD, "x\0": 1}, None, r"the creative: expected names that are text, got 'x\x00'"),
        ({**GOOD, "x": {1: 2}}, None, "x: expected names that are text, got 1"),
        ({**GOOD, "x": ["\0"] * 100}, None, "and 80 more"),
        ({**GOOD, "x": json.loads("[" * 50 + "]" * 50)}, None, "expected at most 30 levels, got ["),
        (DYNAMIC, {"dynamicGroupId": "\ud83d"}, "dynamic_creative_info.dynamicGroupId: expected text without"),
        (
            DYNAMIC,
            {"dynamicGroupId": 777},
            "dynamicGroupId: expected a string, got 777 (with render_template_as_native",
        ),
        ({**GOOD, "networkCode": 123456}, {}, "networkCode: expected a string, got 123456 (with render_template_as_na"),
        ({**GOOD, "networkCode": 123456}, None, "networkCode: expected a string, got 123456 (with render_template_as_"),
        *(
            ({**GOOD, name: 5}, None, f"{name}: expected a string, got 5 (with render_template_as_native_obj=True")
            for name in ("advertiser", "adSystem", "adTitle", "adDescription")
        ),
        (media(uri=5), None, "mediaFiles[0].uri: expected a string, got 5 (with render_template_as_native_obj=True"),
        (media(uri="None"), None, "mediaFiles[0].uri: expected a string, got 'None' (most likely the upstream task"),
        (
            DYNAMIC,
            {"dynamicGroupId": "None"},
            "dynamicGroupId: expected a string, got 'None' (most likely the upstream",
        ),
        (DYNAMIC, {"activeDuration": 3}, "got 3 (with render_template_as_native_obj=True"),
        (DYNAMIC, "None", "or None, got 'None' (most likely the upstream task has pushed no value"),
        ("None", None, "(a dict), got 'None' (most likely the upstream task has pushed no value"),
    ],
)
def test_what_it_would_refuse_is_refused(given: Any, info: Any, words: str) -> None:
    with pytest.raises(InvalidCreativeError) as caught:
        check_creative(given, info)
    assert str(caught.value).startswith("Invalid creative: ")
    assert words in str(caught.value)
    assert SIGNATURE not in str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InvalidCreativeError) as caught:
        check_creative({"mediaFiles": [{}]}, {"activeDuration": 1})
    words = str(caught.value)
    for field in ("adSystem", "uri", "delivery", "mimeType", "networkCode", "activeDuration"):
        assert field in words


def test_media_urls() -> None:
    assert media_urls({**GOOD, "mezzanines": [{**MEDIA, "uri": "https://b"}]}) == {SIGNED_URL, "https://b"}
    assert media_urls({"mediaFiles": None, "mezzanines": [MEDIA]}) == {SIGNED_URL}


def test_the_digest_tells_submissions_apart() -> None:
    digests = [
        creative_digest(GOOD, None),
        creative_digest(GOOD, {}),
        creative_digest({**GOOD, "adTitle": "x"}, None),
        creative_digest(media(uri=SIGNED_URL + "2"), None),
    ]
    assert len(set(digests)) == len(digests)
    assert SIGNATURE not in "".join(digests)
    reordered = dict(reversed(list(GOOD.items())))
    assert creative_digest(reordered, None) == digests[0]
