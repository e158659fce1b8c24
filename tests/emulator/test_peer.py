"""Google's own client library talks to the emulator.

Its REST transport turns answers into protobuf and knows no message behind an unknown ``@type``. The messages
of DAI are not published as a Python package, so those that the emulator sends are registered here by hand,
from the API's reference. This checks names, paths, query, paging, errors and the shape of the JSON (unknown
fields and wrong types would fail); it does not prove that the hand-written messages are Google's.
"""

from importlib.metadata import version
from typing import Any

import pytest
from emulator_testing import OTHER_SCOPE, Client, Clock, credentials_of
from google.api_core import exceptions, path_template
from google.api_core.operations_v1 import AbstractOperationsClient
from google.api_core.operations_v1.transports.rest import OperationsRestTransport
from google.auth.credentials import AnonymousCredentials
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from packaging.version import Version

from airflow_dai_provider.emulator import DaiEmulator

PACKAGE = "google.ads.dai.v1"
SERVICE = "google.longrunning.Operations"
GET, LIST, CANCEL = "/v1/{name=operations/**}", "/v1/{name=operations}", "/v1/{name=operations/**}:cancel"

ENCODES = "%20" in path_template.transcode([{"method": "get", "uri": GET}], name="operations/a b")["uri"]
encoding = pytest.mark.skipif(
    not ENCODES,
    reason="this version of Google's library does not encode names yet",
)
HTTP_OPTIONS = {
    f"{SERVICE}.ListOperations": [{"method": "get", "uri": LIST}],
    f"{SERVICE}.GetOperation": [{"method": "get", "uri": GET}],
    f"{SERVICE}.DeleteOperation": [{"method": "delete", "uri": GET}],
    f"{SERVICE}.CancelOperation": [{"method": "post", "uri": CANCEL, "body": "*"}],
}
TIMESTAMP = ".google.protobuf.Timestamp"
MESSAGES = {
    "FailureReason": {"reason": "string", "code": "int32"},
    "YoutubeStatus": {
        "state": "string",
        "failure_reason": f".{PACKAGE}.FailureReason",
        "update_time": TIMESTAMP,
    },
    "CreateCreativeOperationMetadata": {
        "creative_url": "string",
        "gv_registry_id": "string",
        "create_time": TIMESTAMP,
        "youtube_status": f".{PACKAGE}.YoutubeStatus",
    },
    "MediaFile": {"uri": "string", "delivery": "string", "mime_type": "string"},
    "Creative": {"name": "string", "ad_system": "string", "mezzanines": f"*.{PACKAGE}.MediaFile"},
}


def test_no_test_is_skipped_that_this_library_could_run() -> None:
    assert ENCODES or Version(version("google-api-core")) < Version("2.44")


def message_class(name: str) -> Any:
    """Return the class of a DAI message, registering all of them the first time."""
    pool = descriptor_pool.Default()
    try:
        descriptor = pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
    except KeyError:
        register_messages(pool)
        descriptor = pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
    return message_factory.GetMessageClass(descriptor)


def register_messages(pool: Any) -> None:
    field_type = descriptor_pb2.FieldDescriptorProto
    scalars = {"string": field_type.TYPE_STRING, "int32": field_type.TYPE_INT32}
    file = descriptor_pb2.FileDescriptorProto(
        name="dai_of_the_emulator_tests.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[timestamp_pb2.DESCRIPTOR.name],
    )
    for message_name, fields in MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for number, (field_name, kind) in enumerate(fields.items(), 1):
            field = message.field.add(name=field_name, number=number, label=field_type.LABEL_OPTIONAL)
            if kind in scalars:
                field.type = scalars[kind]
                continue
            field.type, field.type_name = field_type.TYPE_MESSAGE, kind.removeprefix("*")
            if kind.startswith("*"):
                field.label = field_type.LABEL_REPEATED
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())


@pytest.fixture
def peer(emulator: DaiEmulator) -> AbstractOperationsClient:
    return peer_of(emulator, AnonymousCredentials())


def peer_of(emulator: DaiEmulator, credentials: Any) -> AbstractOperationsClient:
    message_class("Creative")
    transport = OperationsRestTransport(
        host=emulator.endpoint,
        credentials=credentials,
        url_scheme="http",
        http_options=HTTP_OPTIONS,
    )
    return AbstractOperationsClient(transport=transport)


def metadata_of(operation: Any) -> Any:
    metadata = message_class("CreateCreativeOperationMetadata")()
    assert operation.metadata.Unpack(metadata)
    return metadata


def test_get_reads_every_field(emulator: DaiEmulator, peer: AbstractOperationsClient, clock: Clock) -> None:
    name = emulator.start_ingest("operations/a/b+c=~:d/ü")
    operation = peer.get_operation(name)
    assert (operation.name, operation.done) == (name, False)
    assert metadata_of(operation).youtube_status.state == "PROCESSING"
    assert metadata_of(operation).create_time.ToSeconds() == int(clock.now)
    clock.advance(10)
    operation = peer.get_operation(name)
    assert (operation.done, operation.WhichOneof("result")) == (True, "response")
    creative = message_class("Creative")()
    assert operation.response.Unpack(creative)
    assert creative.name == f"creatives/{metadata_of(operation).gv_registry_id}"


def test_get_reads_a_failure(emulator: DaiEmulator, peer: AbstractOperationsClient, clock: Clock) -> None:
    name = emulator.start_ingest(outcome="DOWNLOAD_ERROR", code=403)
    clock.advance(10)
    operation = peer.get_operation(name)
    assert (operation.WhichOneof("result"), operation.error.code) == ("error", 9)
    assert metadata_of(operation).youtube_status.failure_reason.code == 403


def test_list_follows_the_pages(emulator: DaiEmulator, peer: AbstractOperationsClient, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(5)]
    listed = [operation.name for operation in peer.list_operations("operations", "", page_size=2)]
    assert listed == names
    assert [request.query.get("pageSize") for request in emulator.requests] == ["2", "2", "2"]
    clock.advance(10)
    assert list(peer.list_operations("operations", "done=false")) == []


@encoding
def test_cancel_sends_no_body(emulator: DaiEmulator, peer: AbstractOperationsClient) -> None:
    name = emulator.start_ingest("operations/a:cancel")
    peer.cancel_operation(name)
    assert emulator.requests[-1].body == b""
    assert emulator.state(name) == "CANCELLED"
    assert peer.get_operation(name).error.code == 1


def test_delete_hides_the_operation(emulator: DaiEmulator, peer: AbstractOperationsClient) -> None:
    name = emulator.start_ingest()
    peer.delete_operation(name)
    with pytest.raises(exceptions.NotFound):
        peer.get_operation(name)
    assert emulator.state(name) == "RUNNING"


def test_errors_become_googles_exceptions(emulator: DaiEmulator, peer: AbstractOperationsClient) -> None:
    emulator.unimplement("operations.cancel")
    with pytest.raises(exceptions.MethodNotImplemented, match="not implemented, or supported, or enabled"):
        peer.cancel_operation(emulator.start_ingest())
    with pytest.raises(exceptions.BadRequest, match="filter"):
        list(peer.list_operations("operations", "name=x"))


def test_token_is_used_and_renewed(guarded: DaiEmulator) -> None:
    peer = peer_of(guarded, credentials_of(guarded))
    names = [guarded.start_ingest(seconds=60) for _ in range(3)]
    assert [operation.name for operation in peer.list_operations("operations", "", page_size=2)] == names
    peer.cancel_operation(names[0])
    assert peer.get_operation(names[0]).error.code == 1
    peer.delete_operation(names[1])
    with pytest.raises(exceptions.NotFound):
        peer.get_operation(names[1])
    assert guarded.tokens_issued == 1
    guarded.revoke_tokens()
    assert not peer.get_operation(names[2]).done
    assert guarded.tokens_issued == 2


def test_token_for_another_scope_is_refused(guarded: DaiEmulator) -> None:
    credentials = credentials_of(guarded, OTHER_SCOPE)
    with pytest.raises(exceptions.Forbidden, match="insufficient authentication scopes"):
        peer_of(guarded, credentials).get_operation(guarded.start_ingest())


@encoding
@pytest.mark.parametrize(
    "name",
    [
        "operations/my-ingest",
        "operations/a/b/c",
        "operations/YWIvYw==",
        "operations/a+b=c~d:e@f",
        "operations/100%",
        "operations/ünïcode/広告",
        "operations/a:cancel",
        "operations/a b?c#d&e",
    ],
)
def test_paths_of_googles_path_template_find_their_operation(emulator: DaiEmulator, client: Client, name: str) -> None:
    emulator.start_ingest(name)
    get = path_template.transcode([{"method": "get", "uri": GET}], name=name)
    assert client.operation(get["uri"].removeprefix("/v1/"))["name"] == name
    cancel = path_template.transcode([{"method": "post", "uri": CANCEL, "body": "*"}], name=name)
    assert client.post(cancel["uri"].removeprefix("/v1/")).json() == {}
    assert emulator.cancel_requested(name) == 1


@encoding
def test_encoded_slash_stays_encoded(emulator: DaiEmulator, client: Client) -> None:
    """A decoder must keep %2F, so a name with a literal %2F is found under its once and twice encoded form."""
    name = emulator.start_ingest("operations/a%2Fb")
    get = path_template.transcode([{"method": "get", "uri": GET}], name=name)
    assert get["uri"] == "/v1/operations/a%252Fb"
    assert client.operation("operations/a%252Fb") == client.operation("operations/a%2Fb")
