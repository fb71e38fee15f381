"""Reflection, for clients without our .proto: v1 and v1alpha, which are the same messages under two names."""

from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from lhydra_server.admission import StreamPool

V1 = "grpc.reflection.v1.ServerReflection"


def handlers(services: Iterable[str], pool: StreamPool) -> list[grpc.GenericRpcHandler]:
    """Makes the handlers of both versions.

    Args:
        services: full names of the services beside reflection.
        pool: where each stream has a thread.

    Returns:
        For a server.
    """
    _describe_v1()
    servicer = reflection.ReflectionServicer((*services, reflection.SERVICE_NAME, V1))

    def answer(data: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for reply in servicer.ServerReflectionInfo((_parsed(one, context) for one in data), context):
            yield reply.SerializeToString()

    answer.experimental_thread_pool = pool  # type: ignore[attr-defined]
    method: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(answer)
    }
    return [grpc.method_handlers_generic_handler(name, method) for name in (reflection.SERVICE_NAME, V1)]


def _parsed(data: bytes, context: grpc.ServicerContext) -> reflection_pb2.ServerReflectionRequest:
    try:
        return reflection_pb2.ServerReflectionRequest.FromString(data)
    except DecodeError:
        expected = "a ServerReflectionRequest"
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"request: found {len(data)} bytes, expected {expected}")


def _describe_v1() -> None:
    """Makes v1 known to those who ask for its description; grpcio-reflection brings v1alpha only."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = file.name.replace("v1alpha", "v1"), file.package.replace("v1alpha", "v1")
    fields = [field for message in file.message_type for field in message.field if field.type_name]
    for field in fields:
        field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
        method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
