"""``cancel``, ``wait`` and ``delete-creative``: the question, the outcomes, and the exit codes."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.cli.output import Notes
from airflow_dai_provider.cli.session import Session
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, count
from tests.unit.cli.conftest import Dai, Start

pytestmark = pytest.mark.usefixtures("metadata_database")

CANCEL, GET, DELETE = "operations.cancel", "operations.get", "creatives.delete"


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def outcomes(result: Any) -> dict[str, str]:
    return {row["name"]: row["result"] for row in result.rows}


class TestCancel:
    @pytest.mark.parametrize("answer", ["y\n", "yes\n", "Y"])
    def test_it_asks_and_says_whose_it_is(self, emulator: DaiEmulator, dai: Dai, start: Start, answer: str) -> None:
        started = start()
        result = dai("cancel", started.name, "-o", "json", answer=answer)
        assert (result.code, outcomes(result)) == (0, {started.name: "requested"})
        assert emulator.cancel_requested(started.name) == 1
        assert f"{started.name} is RUNNING (ingest PROCESSING). It belongs to task ingest of run" in result.err
        assert f"Cancel {started.name}? [y/N]" in result.err

    @pytest.mark.parametrize("answer", ["n\n", "\n", "", "yea\n"], ids=["no", "enter", "closed terminal", "else"])
    def test_any_other_answer_cancels_nothing(self, emulator: DaiEmulator, dai: Dai, answer: str) -> None:
        name = emulator.start_ingest()
        result = dai("cancel", name, answer=answer)
        assert (result.code, result.out, count(emulator, CANCEL)) == (1, "", 0)
        assert "Nothing was done. Without a terminal to ask, give --yes." in result.err

    def test_many_are_cancelled_at_once(self, emulator: DaiEmulator, dai: Dai) -> None:
        names = [emulator.start_ingest() for _ in range(30)]
        result = dai("cancel", *names, names[0], "--yes", "-o", "json")
        assert (result.code, outcomes(result)) == (0, dict.fromkeys(names, "requested"))
        assert count(emulator, CANCEL) == 30
        assert (count(emulator, GET), result.err) == (0, "")

    def test_it_waits_until_they_have_finished(self, make_emulator: MakeEmulator, dai: Dai) -> None:
        emulator = make_emulator(cancel_seconds=30)
        names = [emulator.start_ingest() for _ in range(2)]
        late = emulator.start_ingest(seconds=20, cancel="ignored")
        result = dai("cancel", *names, late, "--yes", "--wait", "-o", "json")
        assert result.code == 0
        assert outcomes(result) == {**dict.fromkeys(names, "CANCELLED"), late: "SUCCEEDED"}

    def test_what_still_runs_after_the_time_is_told(self, make_emulator: MakeEmulator, dai: Dai) -> None:
        emulator = make_emulator(cancel_seconds=1e6)
        name = emulator.start_ingest()
        result = dai("cancel", name, "-y", "-w", "--timeout", "90s", "-o", "json")
        assert (result.code, outcomes(result)) == (1, {name: "may still run"})
        assert f"1 of 1 operations have not finished within 90 s: {name}." in result.err
        assert f"may still run: {name}." in result.err

    def test_what_had_finished_is_no_failure(self, emulator: DaiEmulator, dai: Dai, clock: Clock) -> None:
        name = emulator.start_ingest(seconds=1)
        clock.advance(5)
        emulator.inject(Fault(CANCEL, rpc_status="FAILED_PRECONDITION"))
        result = dai("cancel", name, "-y", "-o", "json")
        assert (result.code, result.rows) == (
            0,
            [{"name": name, "result": "SUCCEEDED", "reason": "had already finished"}],
        )

    def test_a_wait_goes_on_until_get_shows_what_a_refusal_has_said(self, emulator: DaiEmulator, dai: Dai) -> None:
        name = emulator.start_ingest(seconds=60)
        emulator.inject(Fault(CANCEL, rpc_status="FAILED_PRECONDITION", times=None))
        assert outcomes(dai("cancel", name, "-y", "-o", "json")) == {name: "may still run"}
        result = dai("cancel", name, "-y", "--wait", "-o", "json")
        assert (result.code, outcomes(result)) == (0, {name: "SUCCEEDED"})

    @pytest.mark.parametrize("signal_number", SIGNALS)
    def test_a_signal_does_not_lose_what_was_requested(
        self, emulator: DaiEmulator, dai: Dai, monkeypatch: pytest.MonkeyPatch, signal_number: int
    ) -> None:
        handlers = [*map(signal.getsignal, SIGNALS)]

        def sleep(_: float) -> None:
            assert callable(signal.getsignal(signal_number)), "the signal would end the tests"
            signal.raise_signal(signal_number)

        first, second = emulator.start_ingest(), emulator.start_ingest()
        # For the unknown one there is a second round, after a pause.
        monkeypatch.setattr(Session, "sleep", staticmethod(sleep))
        result = dai("cancel", first, "operations/unknown", second, "-y", "--wait", "-o", "json")
        assert (result.code, result.err) == (130, "Interrupted.\n")
        assert outcomes(result) == {first: "requested", "operations/unknown": "may still run", second: "requested"}
        assert [*map(signal.getsignal, SIGNALS)] == handlers

    def test_a_second_hangup_does_not_lose_it_either_and_under_nohup_none_is_noticed(
        self, emulator: DaiEmulator, dai: Dai, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        say = Notes.say

        def hang_up(*args: Any, **options: Any) -> None:
            signal.raise_signal(signal.SIGHUP)
            say(*args, **options)

        monkeypatch.setattr(Session, "sleep", staticmethod(lambda _: signal.raise_signal(signal.SIGHUP)))
        monkeypatch.setattr(Notes, "say", hang_up)
        result = dai("cancel", emulator.start_ingest(), "operations/unknown", "-y", "-o", "json")
        assert (result.code, [*outcomes(result).values()]) == (130, ["requested", "may still run"])
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            assert dai("cancel", emulator.start_ingest(), "-y", "-o", "json").code == 0
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_an_unknown_one_is_refused_and_the_others_are_not(self, emulator: DaiEmulator, dai: Dai) -> None:
        name = emulator.start_ingest()
        result = dai("cancel", "operations/unknown", name, "-y", "-o", "json")
        assert (result.code, outcomes(result)) == (1, {"operations/unknown": "unknown", name: "requested"})
        assert "The service does not know it. Check the name and the endpoint." in result.err

    @pytest.mark.parametrize(
        ("code", "words"), [("PERMISSION_DENIED", "allow-listed"), ("UNIMPLEMENTED", "does not support the method")]
    )
    def test_a_refusal(self, emulator: DaiEmulator, dai: Dai, code: str, words: str) -> None:
        name = emulator.start_ingest()
        emulator.inject(Fault(CANCEL, rpc_status=code, times=None))
        result = dai("cancel", name, "-y", "-o", "json")
        assert result.code == 1
        assert words in result.err

    def test_a_server_without_the_method_does_not_hide_what_was_requested(
        self, emulator: DaiEmulator, dai: Dai
    ) -> None:
        names = [emulator.start_ingest() for _ in range(3)]
        emulator.inject(Fault(CANCEL, names[1], rpc_status="UNIMPLEMENTED", times=None))
        result = dai("cancel", *names, "-y", "-w", "-o", "json")
        assert (result.code, [*outcomes(result).values()]) == (1, ["CANCELLED", "refused", "CANCELLED"])
        assert Code.UNIMPLEMENTED in result.rows[1]["reason"]

    def test_the_service_is_down(self, dai: Dai, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DAI_EMULATOR_HOST", f"127.0.0.1:{closed_port}")
        result = dai("cancel", "operations/a", "-y", "-o", "json")
        assert (result.code, outcomes(result)) == (1, {"operations/a": "may still run"})
        assert "got no response from" in result.err


class TestWait:
    def test_it_waits_for_any_end(self, emulator: DaiEmulator, dai: Dai) -> None:
        done = emulator.start_ingest(seconds=5)
        failed = emulator.start_ingest(seconds=50, outcome="INVALID_MEDIA")
        result = dai("wait", done, failed, "-o", "json")
        assert (result.code, outcomes(result)) == (0, {done: "SUCCEEDED", failed: "FAILED"})
        assert "INVALID_MEDIA" in result.rows[1]["reason"]
        assert count(emulator, CANCEL) == 0

    @pytest.mark.parametrize("arguments", [["wait"], ["cancel", "-y", "--wait"]], ids=["wait", "cancel"])
    def test_each_kind_of_error_is_told_once_as_soon_as_it_comes(
        self, emulator: DaiEmulator, dai: Dai, arguments: list[str]
    ) -> None:
        name = emulator.start_ingest(seconds=60)
        emulator.inject(Fault(GET, rpc_status="UNAVAILABLE", times=3))
        emulator.inject(Fault(GET, rpc_status="INTERNAL", times=3))
        result = dai(*arguments, name, "-o", "json")
        assert result.code == 0
        told = result.err.splitlines()
        assert len(told) == 2
        for code, line in zip(("UNAVAILABLE", "INTERNAL"), told, strict=True):
            assert line.startswith(f"Could not poll {name}: ")
            assert code in line

    def test_it_ends_when_the_time_is_up(self, emulator: DaiEmulator, dai: Dai) -> None:
        done, running = emulator.start_ingest(seconds=5), emulator.start_ingest()
        result = dai("wait", done, running, "--timeout", "1m", "-o", "json")
        assert (result.code, outcomes(result)) == (1, {done: "SUCCEEDED", running: "may still run"})
        assert "1 of 2 operations have not finished within 60 s" in result.err

    def test_ctrl_c_ends_it_and_says_what_still_runs(
        self, emulator: DaiEmulator, dai: Dai, monkeypatch: pytest.MonkeyPatch, clock: Clock
    ) -> None:
        done, running = emulator.start_ingest(seconds=5), emulator.start_ingest()

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if emulator.state(done) == "SUCCEEDED" and len(clock.slept) > 10:
                raise KeyboardInterrupt

        monkeypatch.setattr(DaiHook, "_sleep", staticmethod(sleep))
        result = dai("wait", done, running, "-o", "json")
        assert (result.code, outcomes(result)) == (130, {done: "SUCCEEDED", running: "may still run"})
        assert result.err == f"Interrupted.\nNot known to have finished, and may still run: {running}.\n"
        assert count(emulator, CANCEL) == 0

    @pytest.mark.usefixtures("emulator")
    def test_ctrl_c_before_it_begins(self, dai: Dai, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(DaiHook, "list_operations", interrupted)
        result = dai("list")
        assert (result.code, result.err) == (130, "Interrupted.\n")

    def test_an_unknown_one(self, emulator: DaiEmulator, dai: Dai) -> None:
        name = emulator.start_ingest(seconds=5)
        result = dai("wait", "operations/unknown", name, "-o", "json")
        assert (result.code, outcomes(result)) == (1, {"operations/unknown": "unknown", name: "SUCCEEDED"})
        assert Code.NOT_FOUND in result.rows[0]["reason"]


class TestDeleteCreative:
    @pytest.fixture
    def ad(self, emulator: DaiEmulator, clock: Clock) -> str:
        emulator.start_ingest(seconds=1)
        clock.advance(5)
        (ad,) = emulator.creatives()
        return ad

    def test_it_asks_and_deletes(self, emulator: DaiEmulator, dai: Dai, ad: str) -> None:
        assert dai("delete-creative", ad, answer="n\n").code == 1
        assert emulator.creatives() == [ad]
        result = dai("delete-creative", ad, "-o", "json", answer="y\n")
        assert (result.code, outcomes(result)) == (0, {ad: "deleted"})
        assert f"Delete {ad} for good? [y/N]" in result.err
        assert emulator.creatives() == []

    def test_an_unknown_one_is_refused(self, emulator: DaiEmulator, dai: Dai, ad: str) -> None:
        result = dai("delete-creative", "creatives/unknown", ad, "-y", "-o", "json")
        assert (result.code, outcomes(result)) == (1, {"creatives/unknown": "unknown", ad: "deleted"})
        assert emulator.creatives() == []

    def test_ctrl_c_does_not_lose_what_was_deleted(
        self, emulator: DaiEmulator, dai: Dai, monkeypatch: pytest.MonkeyPatch, ad: str
    ) -> None:
        def sleep(_: float) -> None:
            raise KeyboardInterrupt

        # For the unknown one there is a second round, after a pause.
        monkeypatch.setattr(Session, "sleep", staticmethod(sleep))
        result = dai("delete-creative", "creatives/unknown", ad, "-y", "-o", "json")
        assert (result.code, result.err) == (130, "Interrupted.\n")
        assert outcomes(result) == {"creatives/unknown": "may still exist", ad: "deleted"}
        assert result.rows[0]["reason"] == "the command was interrupted"
        assert emulator.creatives() == []

    def test_a_server_without_the_method_does_not_hide_what_was_deleted(
        self, emulator: DaiEmulator, dai: Dai, ad: str
    ) -> None:
        emulator.inject(Fault(DELETE, "creatives/b", rpc_status="UNIMPLEMENTED", times=None))
        result = dai("delete-creative", ad, "creatives/b", "-y", "-o", "json")
        assert (result.code, outcomes(result)) == (1, {ad: "deleted", "creatives/b": "refused"})

    def test_no_permission(self, emulator: DaiEmulator, dai: Dai, ad: str) -> None:
        emulator.inject(Fault(DELETE, rpc_status="PERMISSION_DENIED", times=None))
        result = dai("delete-creative", ad, "-y", "-o", "json")
        assert (result.code, outcomes(result)) == (1, {ad: "refused"})
        assert "allow-listed" in result.err

    def test_the_service_is_down(self, dai: Dai, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DAI_EMULATOR_HOST", f"127.0.0.1:{closed_port}")
        result = dai("delete-creative", "creatives/a", "-y", "-o", "json")
        assert (result.code, outcomes(result)) == (1, {"creatives/a": "may still exist"})
