"""What a hook and its siblings know of the service together, and what a call that is broken off says."""

from __future__ import annotations

import pytest

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.clock import Clock
from tests.support.emulators import methods

CANCEL = "operations.cancel"


def test_a_page_of_a_front_end_is_an_outage_once_the_api_has_responded_to_a_sibling(
    hook: DaiHook, emulator: DaiEmulator
) -> None:
    names = [emulator.start_ingest() for _ in range(2)]
    hook.connect()
    first, second = hook.sibling(), hook.sibling()
    first.cancel_operation(names[0])
    emulator.inject(Fault(CANCEL, status=404, html=True))

    second.cancel_operation(names[1])

    assert all(emulator.cancel_requested(name) == 1 for name in names)
    assert hook.make_wait("what the parent waits for").responded


def test_one_page_does_not_end_a_list_of_cancellations(hook: DaiHook, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest() for _ in range(20)]
    with hook.workers(1) as workers:
        list(workers.call(names[:1], lambda one, name: one.cancel_operation(name)))
    emulator.inject(Fault(CANCEL, status=404, html=True, name=names[11]))

    with hook.workers(len(names)) as workers:
        outcomes = list(workers.call(names, lambda one, name: one.cancel_operation(name), retry_timeout=60))

    assert [outcome for outcome in outcomes if outcome.error] == []


def test_a_pause_holds_the_parent_and_the_next_set_of_workers(
    hook: DaiHook, emulator: DaiEmulator, clock: Clock
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=429, retry_after=20))
    began = clock.now
    with hook.workers(1) as workers:
        (outcome,) = workers.call([name], lambda one, name: one.get_operation(name))
    assert outcome.error is not None

    with hook.workers(1) as workers:
        (outcome,) = workers.call([name], lambda one, name: one.get_operation(name))
        assert outcome.error is not None
        assert "was not sent: the service has asked for a pause, of which 20 s are left" in str(outcome.error)
    assert len(emulator.requests) == 1

    list(hook.list_operations())
    assert clock.now == began + 20


def broken_off_by_a_pause(hook: DaiHook, emulator: DaiEmulator) -> ServiceError:
    """Return the error of a cancellation that gets one 503, and may not be sent again because of a sibling's pause."""
    name = emulator.start_ingest()
    hook.is_worker = True
    sibling, sleep = hook.sibling(), hook._sleep

    def meet_a_pause(seconds: float) -> None:
        emulator.inject(Fault("operations.get", status=429, retry_after=1000))
        with pytest.raises(ServiceError):
            sibling.get_operation(name)
        sleep(seconds)

    hook._sleep = meet_a_pause
    emulator.inject(Fault(CANCEL, status=503))
    with pytest.raises(ServiceError) as caught:
        hook.cancel_operation(name)
    return caught.value


def broken_off_by_a_kill(hook: DaiHook, emulator: DaiEmulator) -> ServiceError:
    """Return the error of a cancellation that gets one 503, and is killed in a sibling's pause."""
    name = emulator.start_ingest()
    hook.is_worker = True
    killed = False

    def sleep(seconds: float) -> None:
        nonlocal killed
        killed = seconds >= 1
        hook.service.pause.note(ServiceError("too busy", Code.RESOURCE_EXHAUSTED, 10.0), hook._clock())

    hook._sleep = sleep
    hook.stopped = lambda: "the task was killed" if killed else None
    emulator.inject(Fault(CANCEL, status=503))
    with pytest.raises(ServiceError) as caught:
        hook.cancel_operation(name)
    return caught.value


@pytest.mark.parametrize("broken_off", [broken_off_by_a_pause, broken_off_by_a_kill])
def test_a_call_that_is_not_sent_again_keeps_the_error_of_the_service(
    hook: DaiHook, emulator: DaiEmulator, broken_off: object
) -> None:
    assert callable(broken_off)
    error = broken_off(hook, emulator)
    assert methods(emulator).count(CANCEL) == 1
    assert (error.rpc_code, error.sent) == (Code.UNAVAILABLE, True)
    assert " returned 503 UNAVAILABLE" in str(error)
    assert "; it was not retried: " in str(error)
    assert "was not sent" not in str(error)


def test_an_attempt_that_was_sent_counts_after_one_that_was_not(
    hook: DaiHook, emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = emulator.start_ingest()
    hook.retry_timeout = 1.0
    emulator.inject(Fault(CANCEL, status=503))
    attempts = 0
    send = hook._send

    def refuse_the_second(request: object) -> object:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            return send(request)  # type: ignore[arg-type]
        raise ServiceError("Connection refused", Code.UNAVAILABLE, sent=False)

    monkeypatch.setattr(hook, "_send", refuse_the_second)
    with pytest.raises(ServiceError, match="Connection refused") as caught:
        hook.cancel_operation(name)
    assert (attempts, caught.value.sent) == (2, True)


def test_a_single_request_is_sent_at_the_end_of_its_time_although_the_pause_is_longer(
    hook: DaiHook, emulator: DaiEmulator, clock: Clock
) -> None:
    """Its response can decide what became of an ingest, and no other request comes with it."""
    name = emulator.start_ingest()
    began = clock.now
    emulator.inject(Fault(CANCEL, status=503, retry_after=1_000))
    with pytest.raises(ServiceError, match="503"):
        hook.cancel_operation(name)
    assert hook.get_operation(name, retry=False).name == name
    assert clock.now == began
    assert [one.name for one in hook.list_operations()] == [name]
    assert clock.now == began + 60


def test_a_sibling_that_is_stopped_in_a_long_pause_rests_no_longer(
    hook: DaiHook, emulator: DaiEmulator, clock: Clock
) -> None:
    name = emulator.start_ingest()
    hook.is_worker, began = True, clock.now
    hook.stopped = lambda: "the task was killed" if clock.now > began + 5 else None
    emulator.inject(Fault(CANCEL, status=429, retry_after=50))
    with pytest.raises(ServiceError, match="429.*it was not retried: the task was killed"):
        hook.cancel_operation(name)
    assert clock.now <= began + 11
