"""A Kafka broker that refuses what it is told to: answers no broker in the tests can be made to give."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

from kafka.protocol.broker_version_data import BROKER_API_VERSIONS
from kafka.protocol.metadata import (
    ApiVersionsRequest,
    ApiVersionsResponse,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    MetadataRequest,
    MetadataResponse,
)
from kafka.protocol.producer import (
    InitProducerIdRequest,
    InitProducerIdResponse,
    ProduceRequest,
    ProduceResponse,
)
from kafka.protocol.sasl import (
    SaslAuthenticateRequest,
    SaslAuthenticateResponse,
    SaslHandshakeRequest,
    SaslHandshakeResponse,
)
from kafka.record.memory_records import MemoryRecords

_VERSIONS = BROKER_API_VERSIONS[(2, 6)]
_REQUESTS = {
    request.API_KEY: request
    for request in (
        ApiVersionsRequest,
        FindCoordinatorRequest,
        InitProducerIdRequest,
        MetadataRequest,
        ProduceRequest,
        SaslAuthenticateRequest,
        SaslHandshakeRequest,
    )
}

UNKNOWN_TOPIC = 3
NO_COORDINATOR = 15
NO_ERROR = 0
INVALID_RECORD = 87


class ScriptedKafka:
    """
    One broker with one partition per topic.

    `topics` are those it has; it makes none. `judge` is given the bodies of a batch and
    returns an error code, 0 to take it. `password_error` is what it answers to any
    password. `written` holds every body it took, in order, `asked` the topics asked for,
    `may_make_topics` whether the last request for them allowed to make them.
    """

    def __init__(self, *topics: str) -> None:
        self.topics = set(topics)
        self.judge: Callable[[list[bytes]], int] = lambda bodies: NO_ERROR
        self.password_error = NO_ERROR
        self.written: list[bytes] = []
        self.asked: list[str] = []
        self.may_make_topics: bool | None = None
        self._producer_ids = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._mute: set[socket.socket] = set()
        self._spawn(self._accept)

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    def mute(self) -> None:
        """Answer nothing any more on the connections there are; new ones are served."""
        self._mute.update(self._connections)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in [self._listener, *self._connections]:
            connection.close()

    @property
    def _port(self) -> int:
        return self._listener.getsockname()[1]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._spawn(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), connection, connection.makefile("rb") as stream:
            while True:
                answer = self._answer(_frame(stream))
                if connection not in self._mute:
                    connection.sendall(answer)

    def _answer(self, frame: bytes) -> bytes:
        key, version, correlation = struct.unpack_from(">hhi", frame)
        request = _REQUESTS[key].decode(frame, version=version, header=True)
        with self._lock:
            response = getattr(self, f"_on_{type(request).__name__}")(request)
        response.API_VERSION = version
        response.with_header(correlation_id=correlation)
        return response.encode(header=True, framed=True)

    def _on_ApiVersionsRequest(self, request):
        key = ApiVersionsResponse.ApiVersion
        return ApiVersionsResponse(
            error_code=NO_ERROR,
            api_keys=[key(api_key=k, min_version=low, max_version=high) for k, (low, high) in _VERSIONS.items()],
            throttle_time_ms=0,
        )

    def _on_MetadataRequest(self, request):
        asked = [topic.name for topic in request.topics or ()]
        self.asked += asked
        self.may_make_topics = request.allow_auto_topic_creation
        return MetadataResponse(
            throttle_time_ms=0,
            brokers=[MetadataResponse.MetadataResponseBroker(1, "127.0.0.1", self._port, None)],
            cluster_id="scripted",
            controller_id=1,
            topics=[self._topic(name) for name in asked],
        )

    def _topic(self, name):
        topic = MetadataResponse.MetadataResponseTopic
        there = name in self.topics
        partition = topic.MetadataResponsePartition(
            error_code=NO_ERROR,
            partition_index=0,
            leader_id=1,
            leader_epoch=0,
            replica_nodes=[1],
            isr_nodes=[1],
            offline_replicas=[],
        )
        return topic(
            error_code=NO_ERROR if there else UNKNOWN_TOPIC,
            name=name,
            is_internal=False,
            partitions=[partition] if there else [],
        )

    def _on_FindCoordinatorRequest(self, request):
        return FindCoordinatorResponse(
            throttle_time_ms=0, error_code=NO_COORDINATOR, error_message="", node_id=-1, host="", port=-1
        )

    def _on_InitProducerIdRequest(self, request):
        self._producer_ids += 1
        return InitProducerIdResponse(
            throttle_time_ms=0, error_code=NO_ERROR, producer_id=self._producer_ids, producer_epoch=0
        )

    def _on_ProduceRequest(self, request):
        topic = ProduceResponse.TopicProduceResponse
        return ProduceResponse(
            responses=[
                topic(name=data.name, partition_responses=[self._write(part) for part in data.partition_data])
                for data in request.topic_data
            ],
            throttle_time_ms=0,
        )

    def _write(self, part):
        bodies = [record.value for batch in MemoryRecords(bytes(part.records)) for record in batch]
        error = self.judge(bodies)
        if error == NO_ERROR:
            self.written += bodies
        return ProduceResponse.TopicProduceResponse.PartitionProduceResponse(
            index=part.index,
            error_code=error,
            base_offset=len(self.written) if error == NO_ERROR else -1,
            log_append_time_ms=-1,
            log_start_offset=0,
            record_errors=[],
            error_message=None,
        )

    def _on_SaslHandshakeRequest(self, request):
        return SaslHandshakeResponse(error_code=NO_ERROR, mechanisms=["PLAIN"])

    def _on_SaslAuthenticateRequest(self, request):
        return SaslAuthenticateResponse(
            error_code=self.password_error, error_message="wrong", auth_bytes=b"", session_lifetime_ms=0
        )

    def _spawn(self, target, *arguments) -> None:
        threading.Thread(target=target, args=arguments, name="scripted-kafka", daemon=True).start()


def _frame(stream) -> bytes:
    head = stream.read(4)
    if len(head) < 4:
        raise EOFError
    return stream.read(int.from_bytes(head, "big"))
