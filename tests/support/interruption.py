"""Stop a test program by a signal: SIGTERM and SIGHUP act like Ctrl+C, so that all it has started is stopped too."""

from __future__ import annotations

import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Set once a signal has come; threads that wait should end then.
interrupted = threading.Event()


def raise_on_signals() -> None:
    """Have the main thread raise KeyboardInterrupt at the first of these signals, and ignore further ones."""
    for number in SIGNALS:
        # ``nohup`` asks to ignore SIGHUP.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: object) -> None:
    # A process can get a signal twice: with its process group, and from make. The second must not stop the clean-up.
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    interrupted.set()
    raise KeyboardInterrupt(signal.Signals(number).name)
