"""What a sweep picks, and what its report says, on values alone; its threads are seen at work in test_stray."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.many_wait import MAX_NAMED, some_of
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.ingest.ownership import Opening, Owner, Record
from airflow_dai_provider.sweep.report import Failure, SweepReport
from airflow_dai_provider.sweep.selection import PassedOver, Selection, Stray, check_count, check_duration, check_flag
from airflow_dai_provider.sweep.verdicts import OwnerIndex
from tests.support.payloads import METADATA_TYPE

NAME = "operations/a"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOW_SECONDS = NOW.timestamp()
HOUR = 3600
URL = "https://media.example/ads/ad.mp4?X-Goog-Signature=s3cret"
READ = {"older_than": HOUR, "url_prefix": None, "url_pattern": None, "spare": None, "include_undated": False}


def operation(
    name: str = NAME, age: float | None = 2 * HOUR, url: str | None = URL, state: str = "RUNNING", **metadata: Any
) -> Operation:
    metadata = {"@type": METADATA_TYPE, **metadata}
    if age is not None:
        metadata["createTime"] = (NOW - timedelta(seconds=age)).isoformat()
    if url is not None:
        metadata["creativeUrl"] = url
    return Operation(name, OperationState(state), metadata=metadata)


def judge(taken: Operation, **parameters: Any) -> Stray | PassedOver:
    return Selection.read(**{**READ, **parameters}).judge(taken, NOW_SECONDS)


class TestSelection:
    def test_what_is_picked_is_shown_without_secrets(self) -> None:
        stray = judge(operation(url="https://user:s3cret@media.example/ad.mp4?sig=s3cret#s3cret", age=7265.9))
        assert stray == Stray(NAME, "2026-11-22T09:58:54.100000+00:00", 7265, "https://media.example/ad.mp4")
        assert str(stray) == f"{NAME} (2:01:05 old, https://media.example/ad.mp4)"

    @pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELLED"])
    def test_what_has_ended_is_not(self, state: str) -> None:
        assert judge(operation(state=state), include_undated=True) is PassedOver.FINISHED

    @pytest.mark.parametrize(("age", "picked"), [(HOUR + 0.001, True), (HOUR, False), (0, False), (-5 * HOUR, False)])
    @pytest.mark.parametrize("older_than", [HOUR, 3600.0, "3600", " 3.6e3 ", timedelta(hours=1)], ids=repr)
    def test_the_age(self, age: float, picked: bool, older_than: Any) -> None:
        """Older, not as old; and one that is younger than now, by a clock that goes ahead, is young."""
        verdict = judge(operation(age=age), older_than=older_than)
        assert isinstance(verdict, Stray) if picked else verdict is PassedOver.YOUNGER

    @pytest.mark.parametrize("age", [None, 0, 1000 * HOUR])
    def test_without_an_age_only_what_has_an_owner_can_be_a_stray(self, age: float | None) -> None:
        assert judge(operation(age=age), older_than=None) is PassedOver.UNOWNED

    @pytest.mark.parametrize("include_undated", [False, True])
    @pytest.mark.parametrize(
        "create_time", [None, "", "yesterday", 5, "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z"], ids=repr
    )
    def test_one_without_a_create_time_is_picked_only_when_asked_for(
        self, create_time: Any, include_undated: bool
    ) -> None:
        verdict = judge(operation(age=None, createTime=create_time), include_undated=include_undated)
        if include_undated:
            assert verdict == Stray(NAME, None, None, "https://media.example/ads/ad.mp4")
            assert "of unknown age" in str(verdict)
        else:
            assert verdict is PassedOver.UNDATED

    @pytest.mark.parametrize("metadata", [None, {}, {"@type": "type.googleapis.com/other", "createTime": "2020-01-01"}])
    def test_one_of_another_kind_tells_neither_time_nor_url(self, metadata: dict[str, Any] | None) -> None:
        other = Operation(NAME, OperationState.RUNNING, metadata=metadata)
        assert judge(other) is PassedOver.UNDATED
        assert judge(other, include_undated=True) == Stray(NAME, None, None, None)
        assert judge(other, include_undated=True, url_prefix="https://") is PassedOver.OTHER_URL
        assert judge(other, include_undated=True, url_pattern=".*") is PassedOver.OTHER_URL
        assert "of unknown URL" in str(judge(other, include_undated=True))

    @pytest.mark.parametrize(
        ("filters", "picked"),
        [
            ({"url_prefix": "https://media.example/"}, True),
            ({"url_prefix": "https://media.example/ads/ad.mp4?X-Goog"}, True),
            ({"url_prefix": URL}, True),
            ({"url_prefix": URL + "x"}, False),
            ({"url_prefix": "media.example/"}, False),
            ({"url_prefix": "HTTPS://media.example/"}, False),
            ({"url_prefix": "https://media.e.ample/"}, False),
            ({"url_prefix": "https://media.example.evil/"}, False),
            ({"url_pattern": r"/ads/"}, True),
            ({"url_pattern": r"^https://media\.example/.*\.mp4"}, True),
            ({"url_pattern": r"\.mp4$"}, False),
            ({"url_pattern": r"^/ads/"}, False),
            ({"url_prefix": "https://", "url_pattern": "ads"}, True),
            ({"url_prefix": "https://", "url_pattern": "spots"}, False),
            ({"url_prefix": "http://", "url_pattern": "ads"}, False),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_the_url_is_matched_as_a_text(self, filters: dict[str, str], picked: bool) -> None:
        verdict = judge(operation(), **filters)
        assert isinstance(verdict, Stray) if picked else verdict is PassedOver.OTHER_URL

    @pytest.mark.parametrize(
        "spare",
        [NAME, [NAME], (NAME, "operations/b"), {NAME}, {"operations/b", NAME}, f"['{NAME}']"],
        ids=["a name", "a list", "a tuple", "a set", "a set of two", "a text"],
    )
    def test_names_to_spare(self, spare: Any) -> None:
        assert judge(operation(), spare=spare) is PassedOver.SPARED
        assert isinstance(judge(operation("operations/a/b"), spare=spare), Stray)

    @pytest.mark.parametrize("spare", [None, [], (), set(), "[]"], ids=repr)
    def test_nothing_to_spare(self, spare: Any) -> None:
        assert isinstance(judge(operation(), spare=spare), Stray)


BAD = {
    "older_than": (
        [0, -1, 0.0, "0", "-5", True, "", "None", "2 hours", "nan", float("nan"), float("inf"), "inf", 10**400, [60]]
        + [timedelta(0), timedelta(seconds=-1), {"hours": 1}, b"60"],
        "expected a timedelta, or a positive number of seconds",
    ),
    "url_prefix": (["", " ", "None", 5, True, ["https://"], b"https://"], "expected the beginning of a URL, or None"),
    "url_pattern": (
        ["", "None", "(", "[", "*", "a{99999999999999999999}", "(" * 10_000, 5, ["a"], b"a"],
        "expected a regular expression",
    ),
    "spare": (
        ["", "None", "x", ["operations/a", None], ["['operations/a', 'operations/b']"], 5, {"name": NAME}, b"x"]
        + ["['operations/a', 5]", "creatives/a"],
        "Invalid operation name .*: expected a string 'operations/'",
    ),
    "include_undated": (["True", 1, 0, None, "", "{{ params.x }}"], "expected True or False"),
}


class TestParameters:
    @pytest.mark.parametrize(
        ("parameter", "value", "expected"),
        [
            pytest.param(parameter, value, expected, id=f"{parameter}-{value!r}"[:60])
            for parameter, (values, expected) in BAD.items()
            for value in values
        ],
    )
    def test_what_is_wrong_is_said(self, parameter: str, value: Any, expected: str) -> None:
        with pytest.raises(ValueError, match=f"^Invalid {parameter}.*{expected}") as raised:
            Selection.read(**{**READ, parameter: value})
        assert len(str(raised.value)) < 500

    @pytest.mark.parametrize("parameter", ["older_than", "url_pattern", "spare", "include_undated"])
    def test_a_secret_in_it_is_not_shown(self, parameter: str) -> None:
        with pytest.raises(ValueError, match=parameter) as raised:
            Selection.read(**{**READ, parameter: f"({URL}"})
        assert "s3cret" not in str(raised.value)

    @pytest.mark.parametrize("value", [1, 20, 10_000])
    def test_a_count(self, value: int) -> None:
        assert check_count("max_cancellations", value) == value

    @pytest.mark.parametrize("value", [0, -1, 1.0, True, "5", None, float("nan")], ids=repr)
    def test_no_count(self, value: Any) -> None:
        with pytest.raises(ValueError, match=r"^Invalid max_x .*: expected a whole number, 1 or more\.$"):
            check_count("max_x", value)

    def test_a_bounded_count(self) -> None:
        assert check_count("max_x", 50, 50) == 50
        with pytest.raises(ValueError, match=r"^Invalid max_x 51: expected a whole number from 1 to 50\.$"):
            check_count("max_x", 51, 50)

    def test_a_flag(self) -> None:
        assert check_flag("x", True) is True
        assert check_flag("x", False) is False

    def test_a_duration(self) -> None:
        assert check_duration("x", timedelta(minutes=1)) == check_duration("x", "60") == 60.0


def make_report(*names: str, **options: Any) -> SweepReport:
    return SweepReport(map(operation, names), Selection(HOUR), NOW_SECONDS, **options)


def begun(*names: str) -> SweepReport:
    report = make_report(*names)
    report.begin()
    return report


FOR_GOOD = sorted(PERMANENT - {Code.NOT_FOUND})
PASSING = sorted(set(Code) - set(FOR_GOOD))


class TestReport:
    def test_new(self) -> None:
        operations = [
            operation("operations/ended", state="SUCCEEDED"),
            operation("operations/ended-too", state="FAILED"),
            operation("operations/undated", age=None),
            operation("operations/young", age=5),
            operation("operations/spared"),
            operation("operations/other", url="https://other.example/"),
            operation("operations/stray"),
        ]
        selection = Selection.read(**{**READ, "spare": "operations/spared", "url_prefix": "https://media.example/"})
        report = SweepReport(operations, selection, NOW_SECONDS)
        assert report.to_dict() == {
            "dry_run": False,
            "listed": 7,
            "unreadable": 0,
            "passed_over": {
                "finished": 2,
                "spared": 1,
                "other_url": 1,
                "owned": 0,
                "unowned": 0,
                "undated": 1,
                "younger": 1,
            },
            "owned": [],
            "found": [
                {
                    "name": "operations/stray",
                    "create_time": "2026-11-22T10:00:00+00:00",
                    "age": 7200,
                    "creative_url": "https://media.example/ads/ad.mp4",
                    "owner": None,
                }
            ],
            "requested": [],
            "cancelled": [],
            "finished": {},
            "refused": {},
            "left": {},
        }
        assert report.selected == (
            "7 operations listed: 2 finished, 1 spared, 1 with another URL, 0 still needed by a task, "
            "0 without an owner, 1 without a create time, 1 younger than older_than; 1 stray"
        )

    def test_one_listed_twice_counts_once_as_it_came_last(self) -> None:
        operations = [
            operation("operations/a"),
            operation("operations/b"),
            operation("operations/a"),
            operation("operations/b", state="SUCCEEDED"),
        ]
        report = SweepReport(operations, Selection(HOUR), NOW_SECONDS)
        assert (report.listed, report.passed_over["finished"]) == (2, 1)
        assert [stray.name for stray in report.found] == ["operations/a"]

    def test_none_has_begun(self) -> None:
        assert make_report("operations/a", dry_run=True).to_dict()["dry_run"] is True
        assert make_report("operations/a").failures == {}

    def test_what_nothing_becomes_of_is_left(self) -> None:
        report = begun("operations/a", "operations/b")
        report.request_accepted("operations/a")
        assert list(report.left) == ["operations/b"]
        assert "before its cancellation was requested" in report.left["operations/b"].reason

    @pytest.mark.parametrize(
        ("state", "where"), [("CANCELLED", "cancelled"), ("SUCCEEDED", "finished"), ("FAILED", "finished")]
    )
    @pytest.mark.parametrize("taken", [False, True], ids=["refused-since-ended", "ended-later"])
    def test_an_end_that_get_has_shown(self, state: str, where: str, taken: bool) -> None:
        report = begun(NAME)
        if taken:
            report.request_accepted(NAME)
        report.seen(NAME, operation(state=state))
        settled = report.to_dict()
        assert settled[where] == ([NAME] if where == "cancelled" else {NAME: state})
        self.assert_in_one_place(report)
        assert report.failures == {}

    def test_one_that_goes_on(self) -> None:
        report = begun(NAME)
        report.request_accepted(NAME)
        report.seen(NAME, operation())
        assert report.to_dict()["requested"] == [NAME]
        report.leave_requested("it was waited for 60 s")
        assert report.requested == {}
        assert f"requested, but {NAME} is RUNNING" in report.left[NAME].reason
        assert report.left[NAME].reason.endswith("; it was waited for 60 s")
        self.assert_in_one_place(report)

    @pytest.mark.parametrize("taken", [False, True], ids=["at-the-request", "at-a-look"])
    @pytest.mark.parametrize("code", FOR_GOOD)
    def test_what_is_refused_for_good(self, code: Code, taken: bool) -> None:
        report = begun(NAME)
        if taken:
            report.request_accepted(NAME)
        report.failed(NAME, Failure(code, "no"))
        assert report.to_dict()["refused"] == {NAME: "its cancellation is requested, but no" if taken else "no"}
        assert report.rpc_code is code
        self.assert_in_one_place(report)

    @pytest.mark.parametrize("code", PASSING)
    def test_an_operation_with_a_transient_error_is_left(self, code: Code) -> None:
        report = begun(NAME)
        report.failed(NAME, Failure(code, "no"))
        assert report.to_dict()["left"] == {NAME: "no"}
        assert report.rpc_code is Code.UNAVAILABLE
        self.assert_in_one_place(report)

    @pytest.mark.parametrize("code", PASSING)
    def test_a_poll_with_a_transient_error_is_made_again(self, code: Code) -> None:
        report = begun(NAME)
        report.request_accepted(NAME)
        report.failed(NAME, Failure(code, "no"))
        report.failed(NAME, Failure(code, "still no")) if code is not Code.NOT_FOUND else None
        self.assert_in_one_place(report)
        if code is Code.NOT_FOUND:  # nobody will ever see its end
            assert report.to_dict()["left"] == {NAME: "its cancellation is requested, but no"}
        else:
            assert report.requested[NAME].reason == "its cancellation is requested, but still no"

    def test_whether_a_retry_can_help(self) -> None:
        report = begun("operations/a", "operations/b", "operations/c")
        report.seen("operations/c", operation("operations/c", state="SUCCEEDED"))
        report.failed("operations/a", Failure(Code.PERMISSION_DENIED, "no"))
        report.failed("operations/b", Failure(Code.UNAVAILABLE, "away"))
        assert list(report.failures) == ["operations/a", "operations/b"]
        assert report.rpc_code is Code.UNAVAILABLE
        report.failed("operations/a", Failure(Code.UNIMPLEMENTED, "no"))
        assert report.rpc_code is Code.UNIMPLEMENTED

    def test_it_is_plain_json(self) -> None:
        report = begun("operations/a", "operations/b", "operations/c")
        report.seen("operations/a", operation("operations/a", state="SUCCEEDED"))
        report.failed("operations/b", Failure(Code.PERMISSION_DENIED, "no"))
        given = report.to_dict()
        assert json.loads(json.dumps(given)) == given
        assert "s3cret" not in json.dumps(given)
        assert {type(value) for value in given["finished"].values()} == {str}
        assert {type(key) for key in given["passed_over"]} == {str}

    def test_the_result_in_words(self) -> None:
        report = begun(*(f"operations/{letter}" for letter in "abcdef"))
        report.request_accepted("operations/a")
        report.seen("operations/b", operation("operations/b", state="CANCELLED"))
        report.seen("operations/c", operation("operations/c", state="FAILED"))
        report.failed("operations/d", Failure(Code.OUT_OF_RANGE, "no"))
        assert report.result == "6 stray: 1 requested, 1 cancelled, 1 finished meanwhile, 1 refused, 2 left"

    @staticmethod
    def assert_in_one_place(report: SweepReport) -> None:
        given = report.to_dict()
        places = [name for place in ("requested", "cancelled", "finished", "refused", "left") for name in given[place]]
        assert places == [stray["name"] for stray in given["found"]]


def test_a_long_message_names_only_the_first() -> None:
    texts = [f"operations/{number}" for number in range(MAX_NAMED + 2)]
    assert some_of(texts[:3]) == "operations/0; operations/1; operations/2"
    assert some_of(texts[:MAX_NAMED]).endswith(f"; operations/{MAX_NAMED - 1}")
    assert some_of(texts).endswith(f"; operations/{MAX_NAMED - 1}; and 2 more")


def test_an_operation_of_several_openings_belongs_to_the_last() -> None:
    openings = tuple(
        Opening(number, "https://host", since=0.0, last=1.0, names=frozenset({"operations/a"})) for number in (1, 2, 3)
    )
    record = Record(Owner("dag", "run", "task"), {}, openings)
    later = Record(record.owner, {}, (openings[0],))
    index = OwnerIndex("https://host", [record, later])
    assert index.find(Operation("operations/a", OperationState.RUNNING)) == [(record, openings[2])]
