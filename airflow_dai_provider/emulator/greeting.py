"""What the command line prints when it serves."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_dai_provider.emulator.plan import URL_HELP

if TYPE_CHECKING:
    from airflow_dai_provider.emulator.server import DaiEmulator

_OPEN = """\
export DAI_EMULATOR_HOST={host}

A local DAI service listens there, in memory only. Set the variable above where Airflow runs, and DAGs talk
to it instead of Google: no credentials, no connection. To start an ingest by hand:

  curl -H 'Content-Type: application/json' {endpoint}/v1/creatives -d '
    {{"creative": {{"adSystem": "me", "mezzanines": [{{"uri": "https://media.example/ad.mp4?seconds=60",
     "mimeType": "video/mp4", "delivery": "DELIVERY_PROGRESSIVE"}}]}}}}'
"""
_AUTHENTICATED = """\
export AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT={connection}

A local DAI service listens at {endpoint}, in memory only, and wants a token of whoever comes.
Set the variable above where Airflow runs, and leave DAI_EMULATOR_HOST unset: DAGs get their tokens there with
the key in {key_file} (good for {token_lifetime} s each), and talk to it instead of Google.
"""
_CONTROL = """
From another shell, without a token and without being recorded:

  curl {control}/ingests       # what has become of each
  curl {control}/ingests -d '{{"name": "operations/another", "seconds": 60}}'
  curl {control}/requests      # what has arrived
  curl {control}/faults -d '{{"method": "operations.get", "status": 503, "times": 2}}'
  curl {control}               # what else there is
"""


def greeting(emulator: "DaiEmulator", *, key_file: Path | None, token_lifetime: int, control: bool, seed: bool) -> str:
    """Say how to use an emulator that listens.

    :param emulator: the emulator.
    :param key_file: where the key is that gives access, None if everybody has it.
    :param token_lifetime: seconds for which a token is good.
    :param control: whether there is a control address.
    :param seed: whether chance decides on faults.
    """
    endpoint = emulator.endpoint
    parts = [_OPEN.format(host=emulator.host, endpoint=endpoint)]
    if key_file is not None:
        extra = {"key_path": str(key_file), "dai_api_endpoint": endpoint}
        connection = shlex.quote(json.dumps({"conn_type": "google_cloud_platform", "extra": extra}))
        parts = [
            _AUTHENTICATED.format(
                connection=connection, endpoint=endpoint, key_file=key_file, token_lifetime=token_lifetime
            )
        ]
    if control:
        parts.append(_CONTROL.format(control=emulator.control_endpoint))
    if seed:
        parts.append(f"\nFaults by rate follow the seed {emulator.seed}.\n")
    return "".join([*parts, f"\n{URL_HELP}\n\nCtrl+C stops it.\n"])
