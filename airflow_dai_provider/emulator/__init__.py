"""A local Video Creative Ingest (DAI) service, for trying a DAG without credentials and for tests.

It speaks the HTTP of ``dai.googleapis.com`` (https://developers.google.com/video-creative-ingest) and keeps
its operations in memory; nothing is downloaded. From code::

    with DaiEmulator(ingest_seconds=5) as emulator:
        name = emulator.start_ingest()
        ...  # point a client at emulator.endpoint, or DAI_EMULATOR_HOST at emulator.host
        assert emulator.state(name) == "CANCELLED"

With ``DaiEmulator(authentication=True)`` a client needs a token, which it gets with the key of
``emulator.service_account_key()``. A :class:`Fault` makes a request go wrong; another process injects one at the
control address (``emulator.control_endpoint``).

From a shell: ``python -m airflow_dai_provider.emulator --help``.

Over plain HTTP, query parameters of the media URL decide what an ingest does, for example
``https://media.example/ad.mp4?seconds=30&outcome=DOWNLOAD_ERROR&code=403``: ``seconds``, ``outcome``, ``code``,
``cancel`` and ``cancel_seconds``, which :class:`Plan` explains.

The package shares no code with the client, so that a mistake in one cannot hide in the other. It needs aiohttp and
pydantic, and with authentication or TLS also cryptography and PyJWT; it does not load Airflow.
"""

from airflow_dai_provider.emulator.api import RecordedRequest
from airflow_dai_provider.emulator.faults import Fault
from airflow_dai_provider.emulator.http_server import SelfSigned
from airflow_dai_provider.emulator.ingest import Plan, State
from airflow_dai_provider.emulator.routes import METHODS, TOKEN_METHODS
from airflow_dai_provider.emulator.server import DaiEmulator
from airflow_dai_provider.emulator.store import UnknownOperationError

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
