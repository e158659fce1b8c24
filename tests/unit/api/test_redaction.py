"""No secret of a URL is shown, wherever the URL stands and wherever a long text is cut."""

import json
import time
from typing import Any

import pytest

from airflow_dai_provider.api.redaction import redact_urls, short_repr, url_secrets

SECRET = "5ec7e7" * 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", "", id="empty"),
        pytest.param("is it done? #3 me@example.org", "is it done? #3 me@example.org", id="no URL"),
        pytest.param("operations/a?b#c", "operations/a?b#c", id="no scheme"),
        pytest.param("https://h/v.mp4", "https://h/v.mp4", id="nothing secret"),
        pytest.param("https://h:8443/a/b.mp4?sig=1&x=2", "https://h:8443/a/b.mp4", id="query"),
        pytest.param("https://h/v.mp4#t=1", "https://h/v.mp4", id="fragment"),
        pytest.param("https://h/v.mp4?a=1#t=1", "https://h/v.mp4", id="query and fragment"),
        pytest.param("https://h/v.mp4#t=1?a=1", "https://h/v.mp4", id="fragment with a question mark"),
        pytest.param("https://h?sig=1", "https://h", id="query without a path"),
        pytest.param("https://h/?url=https://i/?sig=1", "https://h/", id="URL inside a query"),
        pytest.param("https://user@h/v", "https://h/v", id="user"),
        pytest.param("http://user:pass@proxy:3128", "http://proxy:3128", id="user and password"),
        pytest.param("http://:pass@proxy:3128", "http://proxy:3128", id="password only"),
        pytest.param("http://user:p%40ss@proxy", "http://proxy", id="encoded at sign in the password"),
        pytest.param("http://user:p@ss@proxy/x", "http://proxy/x", id="at sign in the password"),
        pytest.param("https://h/@channel/a@b.mp4?sig=1", "https://h/@channel/a@b.mp4", id="at sign in the path"),
        pytest.param("https://[::1]:80/v?sig=1", "https://[::1]:80/v", id="IPv6"),
        pytest.param("https://h/\u00fc.mp4?sig=\u00fc", "https://h/\u00fc.mp4", id="non-ASCII"),
        pytest.param("HTTPS://H/v?sig=1", "HTTPS://H/v", id="upper case"),
        pytest.param("gs://bucket/v?generation=1", "gs://bucket/v", id="another scheme"),
        pytest.param("see https://h/v?sig=1 now", "see https://h/v now", id="inside a sentence"),
        pytest.param("https://h/v?a=1\nhttps://i/w?b=2", "https://h/v\nhttps://i/w", id="two lines"),
        pytest.param("https://a:b@h/v and s3://c:d@i/w?e", "https://h/v and s3://i/w", id="two URLs"),
        pytest.param("(1)https://h/v?sig=1", "(1)https://h/v", id="scheme after another character"),
        pytest.param("://h?sig=1", "://h", id="nothing before the slashes"),
        pytest.param("//h/ad.mp4?sig=1", "//h/ad.mp4?...", id="no scheme but a query"),
        pytest.param("https:\\/\\/h/ad.mp4?sig=1", "https:\\/\\/h/ad.mp4?...", id="escaped slashes"),
        pytest.param("https://h/my ad.mp4?a=1&sig=1", "https://h/my ad.mp4?...", id="space in the path"),
        pytest.param("https://h/ad.mp4?title=my ad&sig=1", "https://h/ad.mp4 ad&...", id="space in the query"),
    ],
)
def test_takes_user_query_and_fragment_and_nothing_else(text: str, expected: str) -> None:
    assert redact_urls(text) == expected
    assert redact_urls(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a" * 40_000, id="letters"),
        pytest.param("a.b-" * 10_000, id="characters of a scheme"),
        pytest.param("://" * 13_000, id="slashes"),
        pytest.param("https://" + "a" * 40_000, id="host"),
        pytest.param("https://a@" + "a@" * 20_000, id="at signs"),
        pytest.param("?a" * 20_000, id="question marks"),
    ],
)
def test_takes_time_in_proportion_to_the_text(text: str) -> None:
    started = time.process_time()
    redact_urls(text)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, "None", id="None"),
        pytest.param(3, "3", id="number"),
        pytest.param("", "''", id="empty text"),
        pytest.param("operations/a", "'operations/a'", id="text"),
        pytest.param(b"x", "b'x'", id="bytes"),
        pytest.param({"a": [1]}, "{'a': [1]}", id="dict"),
        pytest.param("a\r\n\0\ud800", r"'a\r\n\x00\ud800'", id="what a log cannot show"),
    ],
)
def test_short_repr_shows_a_short_value_in_full(value: object, expected: str) -> None:
    assert short_repr(value) == expected


def nested(width: int, depth: int) -> Any:
    """Return a list of lists of long texts."""
    return [nested(width, depth - 1) for _ in range(width)] if depth else "x" * 200


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("x" * 100_000, id="text"),
        pytest.param(b"x" * 100_000, id="bytes"),
        pytest.param(["x" * 1000] * 1000, id="list"),
        pytest.param({str(key): "x" * 1000 for key in range(1000)}, id="dict"),
        pytest.param(10**1000, id="number"),
        pytest.param(nested(6, 4), id="wide and deep"),
    ],
)
def test_short_repr_is_short(value: object) -> None:
    assert len(short_repr(value)) <= 1000


def as_text(url: str) -> object:
    return url


def as_body(url: str) -> object:
    return json.dumps({"name": "operations/a", "metadata": {"creativeUrl": url}}).encode()


def as_cut_body(url: str) -> object:
    return json.dumps({"name": "operations/a", "metadata": {"creativeUrl": url}}).encode()[:-3]


def as_item(url: str) -> object:
    return {"metadata": {"creativeUrl": url}, "response": [url]}


def as_object(url: str) -> object:
    return ValueError(f"cannot read {url}")


@pytest.mark.parametrize("wrap", [as_text, as_body, as_cut_body, as_item, as_object])
@pytest.mark.parametrize(
    "secret_url",
    [
        pytest.param("https://h/{path}?X-Goog-Signature=" + SECRET, id="query"),
        pytest.param("https://h/{path}#token=" + SECRET, id="fragment"),
        pytest.param("https://user:" + SECRET + "@h/{path}", id="password"),
    ],
)
def test_short_repr_never_shows_a_secret_however_long_the_url_is(wrap: Any, secret_url: str) -> None:
    shown = [short_repr(wrap(secret_url.format(path="v" * length))) for length in range(0, 200, 3)]
    assert not [text for text in shown if SECRET[:6] in text]


@pytest.mark.parametrize(
    ("value", "secrets"),
    [
        ("https://h/ad.mp4?sig=1&x=2#top", ["sig=1&x=2#top"]),
        ("https://user:word@h/ad.mp4", ["user:word"]),
        ("https://user:word@h/?sig=1 and ftp://h/#f", ["user:word", "sig=1", "f"]),
        ({"a": ["https://h?a", ("https://h?b",)], "b": 3, "c": None}, ["a", "b"]),
        ("no url?really", []),
        ("//h/ad.mp4?sig=1&x=2", ["sig=1&x=2"]),
        ("https://h/my ad.mp4?title=my ad&sig=1", ["title=my", "sig=1"]),
        ("https://h/ad.mp4", []),
        (None, []),
    ],
)
def test_url_secrets_are_what_is_taken_from_urls(value: object, secrets: list[str]) -> None:
    assert list(url_secrets(value)) == secrets
