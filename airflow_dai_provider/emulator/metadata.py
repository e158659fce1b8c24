"""The metadata server of a virtual machine, from which google-auth takes application default credentials.

Source: https://cloud.google.com/compute/docs/metadata
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from airflow_dai_provider.emulator.accounts import DEFAULT_EMAIL
from airflow_dai_provider.emulator.responses import Response, html_response, json_response

if TYPE_CHECKING:
    from airflow_dai_provider.emulator.api import RecordedRequest

_ROOT = "/computeMetadata/v1"
_FLAVOR = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
_ACCOUNTS = f"{_ROOT}/instance/service-accounts"


def respond(
    request: "RecordedRequest", scopes: frozenset[str], issue: Callable[[str, frozenset[str]], dict[str, object]]
) -> Response:
    """Answer a request for metadata.

    :param scopes: the scopes of the machine's account.
    :param issue: issues a token for an account and scopes, as the JSON of a token endpoint.
    """
    if request.headers.get("metadata-flavor") != "Google":
        return html_response(403, "Missing Metadata-Flavor:Google header.")
    path = request.raw_path.rstrip("/")
    texts = {
        "": "computeMetadata/\n",
        f"{_ROOT}/project/project-id": DEFAULT_EMAIL.partition("@")[2].partition(".")[0],
        f"{_ROOT}/universe/universe-domain": "googleapis.com",
    }
    if path in texts:
        return Response(200, texts[path].encode(), "application/text", _FLAVOR)
    if path in (f"{_ACCOUNTS}/default/token", f"{_ACCOUNTS}/{DEFAULT_EMAIL}/token"):
        wanted = frozenset(request.query.get("scopes", "").split(",")) - {""}
        return json_response(issue(DEFAULT_EMAIL, wanted or scopes), headers=_FLAVOR)
    if path in (f"{_ACCOUNTS}/default", f"{_ACCOUNTS}/{DEFAULT_EMAIL}"):
        account = {"aliases": ["default"], "email": DEFAULT_EMAIL, "scopes": sorted(scopes)}
        return json_response(account, headers=_FLAVOR)
    return html_response(404, f"The requested URL {request.raw_path} was not found on this server.", _FLAVOR)
