"""A local Video Creative Ingest (DAI) service, for trying a DAG without credentials and for tests.

It speaks the HTTP of ``dai.googleapis.com`` (https://developers.google.com/video-creative-ingest) and keeps
its operations in memory; nothing is downloaded. From code::

    with DaiEmulator(ingest_seconds=5) as emulator:
        name = emulator.start_ingest()
        ...  # point a client at emulator.endpoint, or DAI_EMULATOR_HOST at emulator.host
        assert emulator.state(name) == "CANCELLED"

With ``DaiEmulator(authentication=True)`` a client needs a token, which ``emulator.service_account_key()`` brings.
What goes wrong is said by :class:`Fault`; another process says it at the control address
(``emulator.control_endpoint``).

From a shell: ``python -m airflow_dai_provider.emulator --help``.

Over plain HTTP, query parameters of the media URL choose what an ingest does, for example
``https://media.example/ad.mp4?seconds=30&outcome=DOWNLOAD_ERROR&code=403``: ``seconds``, ``outcome``, ``code``,
``cancel`` and ``cancel_seconds``, which :class:`Plan` explains.

The package shares no code with the client, so that a mistake in one cannot hide in the other; it needs the
standard library and aiohttp only, and cryptography where there are keys (authentication, TLS).
"""

from airflow_dai_provider.emulator.faults import Fault
from airflow_dai_provider.emulator.ingest import State
from airflow_dai_provider.emulator.plan import Plan
from airflow_dai_provider.emulator.records import RecordedRequest
from airflow_dai_provider.emulator.routes import METHODS, TOKEN_METHODS
from airflow_dai_provider.emulator.server import DaiEmulator
from airflow_dai_provider.emulator.service import UnknownOperationError
from airflow_dai_provider.emulator.tls import SelfSigned

__all__ = [
    "METHODS",
    "TOKEN_METHODS",
    "DaiEmulator",
    "Fault",
    "Plan",
    "RecordedRequest",
    "SelfSigned",
    "State",
    "UnknownOperationError",
]
