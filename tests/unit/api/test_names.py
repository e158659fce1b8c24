"""Which names are let through, and what is said about the others."""

import pytest

from airflow_dai_provider.api.names import InvalidNameError, check_creative_name, check_operation_name, is_missing_name

VALID_SEGMENTS = [
    "a",
    "a/b/c",
    "my-ingest_1.2",
    "YWI+Yw==",
    "~a:b",
    "a@b",
    "100%",
    "a%2Fb",
    "%2e%2e/x",
    "a%0d%0ab",
    "a:cancel",
    "a;b,c&d$e!f*g'(h)",
    '[x]|^`{}"<>',
    "...",
    "..a",
    "a..",
    ".a/a.",
    "\u00fc/\u65e5\u672c",
    "\U0001f3ac",
    "None",
    "x" * 5000,
]


@pytest.mark.parametrize("segments", VALID_SEGMENTS)
def test_an_operation_name_is_returned_unchanged(segments: str) -> None:
    assert check_operation_name(f"operations/{segments}") == f"operations/{segments}"


INVALID_OPERATION_NAMES = [
    pytest.param(None, "None", id="None"),
    pytest.param("None", "'None'", id="the word None"),
    pytest.param("", "''", id="empty"),
    pytest.param("  ", "'  '", id="blank"),
    pytest.param("operations", "'operations'", id="the collection"),
    pytest.param("operations/", "'operations/'", id="no segment"),
    pytest.param("operations//", "'operations//'", id="two empty segments"),
    pytest.param("operations//a", "'operations//a'", id="empty first segment"),
    pytest.param("operations/a//b", "'operations/a//b'", id="empty middle segment"),
    pytest.param("operations/a/", "'operations/a/'", id="empty last segment"),
    pytest.param("operations/.", "'operations/.'", id="dot"),
    pytest.param("operations/..", "'operations/..'", id="two dots"),
    pytest.param("operations/../x", "'operations/../x'", id="leaves the collection"),
    pytest.param("operations/a/../../x", "'operations/a/../../x'", id="leaves the collection later"),
    pytest.param("operations/a/./b", "'operations/a/./b'", id="dot in the middle"),
    pytest.param("/operations/a", "'/operations/a'", id="slash in front"),
    pytest.param("v1/operations/a", "'v1/operations/a'", id="with the version"),
    pytest.param("Operations/a", "'Operations/a'", id="upper case"),
    pytest.param("operation/a", "'operation/a'", id="singular"),
    pytest.param("operationsx/a", "'operationsx/a'", id="longer collection"),
    pytest.param("my-ingest", "'my-ingest'", id="only the last segment"),
    pytest.param("creatives/a", "'creatives/a'", id="a creative"),
    pytest.param("projects/p/operations/a", "'projects/p/operations/a'", id="of a project"),
    pytest.param("https://evil/operations/x", "'https://evil/operations/x'", id="URL"),
    pytest.param("//evil/operations/x", "'//evil/operations/x'", id="URL without a scheme"),
    pytest.param("operations/https://x", "'operations/https://x'", id="scheme in a segment"),
    pytest.param("operations/a?alt=media", "'operations/a?...'", id="query"),
    pytest.param("operations/a#b", "'operations/a#b'", id="fragment"),
    pytest.param("operations/a\\b", r"'operations/a\\b'", id="backslash"),
    pytest.param("operations\\a", r"'operations\\a'", id="backslash for a slash"),
    pytest.param("operations/a b", "'operations/a b'", id="space"),
    pytest.param(" operations/a", "' operations/a'", id="space in front"),
    pytest.param("operations/a\n", r"'operations/a\n'", id="newline at the end"),
    pytest.param("operations/a\r\nX: y", r"'operations/a\r\nX: y'", id="header injection"),
    pytest.param("operations/a\tb", r"'operations/a\tb'", id="tab"),
    pytest.param("operations/a\u00a0b", r"'operations/a\xa0b'", id="no-break space"),
    pytest.param("operations/a\u2028b", r"'operations/a\u2028b'", id="line separator"),
    pytest.param("operations/a\u200bb", r"'operations/a\u200bb'", id="zero-width space"),
    pytest.param("operations/a\u202eb", r"'operations/a\u202eb'", id="right-to-left override"),
    pytest.param("operations/a\0", r"'operations/a\x00'", id="NUL"),
    pytest.param("operations/a\x7f", r"'operations/a\x7f'", id="DEL"),
    pytest.param("operations/\ud800", r"'operations/\ud800'", id="lone surrogate"),
    pytest.param(b"operations/a", "b'operations/a'", id="bytes"),
    pytest.param(7, "7", id="int"),
    pytest.param(True, "True", id="bool"),
    pytest.param({"name": "operations/a"}, "{'name': 'operations/a'}", id="dict"),
    pytest.param(["operations/a"], "['operations/a']", id="list"),
    pytest.param(("operations/a",), "('operations/a',)", id="tuple"),
]


@pytest.mark.parametrize(("name", "shown"), INVALID_OPERATION_NAMES)
def test_what_is_no_operation_name_is_refused_with_what_was_given_and_expected(name: object, shown: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_operation_name(name)
    message = str(caught.value)
    assert message.startswith(
        f"Invalid operation name {shown}: expected a string 'operations/' followed by one or more"
    )
    assert message.isprintable()


@pytest.mark.parametrize("segment", ["a", "YWI+Yw==", "a%2Fb", "a:b", "\u00fc", "..."])
def test_a_creative_name_is_returned_unchanged(segment: str) -> None:
    assert check_creative_name(f"creatives/{segment}") == f"creatives/{segment}"


@pytest.mark.parametrize(
    "name",
    [None, "", "a", "creatives", "creatives/", "creatives/a/b", "creatives/..", "creatives/a?b", "operations/a", 7],
)
def test_what_is_no_creative_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidNameError, match="Invalid creative name .*: expected .*'creatives/' .*one segment"):
        check_creative_name(name)


PUSHED_NONE, PASS_NAME, ONE_NAME = "upstream task has pushed no name", "pass its 'name'", "One name is expected"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (None, PUSHED_NONE),
        ("", PUSHED_NONE),
        (" \t\n", PUSHED_NONE),
        ("None", PUSHED_NONE),
        (" None\n", PUSHED_NONE),
        ({"name": "operations/a", "done": True}, PASS_NAME),
        (["operations/a"], ONE_NAME),
        (("operations/a",), ONE_NAME),
        ([], ONE_NAME),
        ({}, None),
        ({"operation": "operations/a"}, None),
        ("operations/None?", None),
        ("none", None),
        (0, None),
        (False, None),
        (b"", None),
    ],
)
def test_a_hint_is_given_only_where_it_helps(name: object, hint: str | None) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_operation_name(name)
    given = [text for text in (PUSHED_NONE, PASS_NAME, ONE_NAME) if text in str(caught.value)]
    assert given == ([hint] if hint else [])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("https://dai.googleapis.com/v1/operations/a", "operations/a"),
        ("https://user:s3cret@dai.googleapis.com/v1/operations/of/a", "operations/of/a"),
        ("v1/operations/a", "operations/a"),
        ("/operations/a", "operations/a"),
        (" operations/a\n", "operations/a"),
        ("a", "operations/a"),
        ("operations", None),
        ("operations/", None),
        ("operations/../a", None),
        ("v1/operations/a?alt=json", None),
        ("creatives/a", None),
        ("a b", None),
    ],
)
def test_the_name_that_was_probably_meant_is_suggested(name: str, meant: str | None) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_operation_name(name)
    _, found, suggested = str(caught.value).partition(" Did you mean ")
    assert (suggested if found else None) == (f"'{meant}'?" if meant else None)


def test_an_invalid_name_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Invalid operation name"):
        check_operation_name("x")


def test_a_long_or_signed_value_is_not_shown_in_full() -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_operation_name("https://h/v.mp4?X-Goog-Signature=5ec7e7 " + "x" * 10_000)
    assert "5ec7e7" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        (None, True),
        ("", True),
        ("  ", True),
        ("None", True),
        ("\nNone ", True),
        ("none", False),
        ("operations/None", False),
        (0, False),
        (False, False),
        ([], False),
        ({}, False),
        (b"", False),
    ],
)
def test_a_missing_name_is_what_a_template_makes_of_nothing(name: object, missing: bool) -> None:
    assert is_missing_name(name) is missing
