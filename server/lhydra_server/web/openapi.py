"""The OpenAPI description of the gateway, made of the descriptors: the JSON of protobuf in the words of JSON Schema.

Descriptions are the comments of the .proto, which lie in the file of descriptors beside the generated code.
"""

from functools import cache
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lhydra import __version__
from lhydra_server.access import RIGHT_OF
from lhydra_server.web.gateway import PATH, SERVICE

_WHOLE = {  # bits, signed
    FieldDescriptor.CPPTYPE_INT32: (32, True),
    FieldDescriptor.CPPTYPE_UINT32: (32, False),
    FieldDescriptor.CPPTYPE_INT64: (64, True),
    FieldDescriptor.CPPTYPE_UINT64: (64, False),
}
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "requestId"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "message": {"type": "string"},
        "field": {"type": "string"},
        "requestId": {"type": "string"},
        "retryAfterMs": {"type": "integer"},
    },
}


async def openapi(request: Request) -> Response:
    """Tells the description.

    Args:
        request: GET.

    Returns:
        JSON of OpenAPI 3.1.
    """
    return JSONResponse(document())


@cache
def document() -> dict[str, Any]:
    """Describes every unary method.

    Returns:
        A document of OpenAPI 3.1.
    """
    schemas: dict[str, Any] = {"Problem": _PROBLEM}
    paths: dict[str, Any] = {}
    for method in SERVICE.methods:
        if method.client_streaming or method.server_streaming:
            continue
        problem = {"description": "a problem (RFC 9457)", "content": {"application/problem+json": _content("Problem")}}
        right = f"Needs the right `{RIGHT_OF[PATH + method.name]}` where the server asks for tokens."
        paths[PATH + method.name] = {
            "post": {
                "operationId": method.name,
                "description": " ".join([*_described(method.full_name).values(), right]),
                "security": [{}, {"token": []}],
                "requestBody": {"content": {"application/json": _content(_named(method.input_type, schemas))}},
                "responses": {
                    "200": {
                        "description": method.output_type.name,
                        "content": {"application/json": _content(_named(method.output_type, schemas))},
                    },
                    "default": problem,
                },
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Lhydra", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


@cache
def _comments() -> dict[str, str]:
    """What the .proto says of services, methods, messages, fields, enums and values, by their full names."""
    data = resources.files("lhydra_protos.v1").joinpath("recommender.binpb").read_bytes()
    found = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        for location in file.source_code_info.location:
            comments = (" ".join(one.split()) for one in (location.leading_comments, location.trailing_comments))
            if said := "; ".join(filter(None, comments)):
                thing, names, path = file, [file.package], location.path
                for number, index in zip(path[::2], path[1::2], strict=False):  # the path of `syntax` is one number
                    thing = getattr(thing, thing.DESCRIPTOR.fields_by_number[number].name)[index]
                    names.append(thing.name)
                if len(names) > 1:
                    found[".".join(names)] = said
    return found


def _described(full_name: str) -> dict[str, str]:
    return {"description": said} if (said := _comments().get(full_name)) else {}


def _content(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _named(kind: Descriptor | EnumDescriptor, schemas: dict[str, Any]) -> str:
    """Enters a message or enum, and all that it holds, and gives its name."""
    if kind.name not in schemas:
        if isinstance(kind, EnumDescriptor):
            values = [value.name for value in kind.values]
            said = [f"{one}: {_comments()[of]}" for one in values if (of := f"{kind.full_name}.{one}") in _comments()]
            described = " ".join([*_described(kind.full_name).values(), "; ".join(said)])
            schemas[kind.name] = {"type": "string", "enum": values} | ({"description": described} if described else {})
        else:
            properties: dict[str, Any] = {}
            schema = {"type": "object", "additionalProperties": False, "properties": properties}
            schemas[kind.name] = schema | _described(kind.full_name)  # before its fields: it may hold itself
            properties |= {field.json_name: _of(field, schemas) | _described(field.full_name) for field in kind.fields}
    return str(kind.name)


def _of(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _one(message.fields_by_name["value"], schemas)}
    one = _one(field, schemas)
    return {"type": "array", "items": one} if field.is_repeated else one


def _one(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    kind = field.cpp_type
    if held := field.message_type or field.enum_type:
        return {"$ref": f"#/components/schemas/{_named(held, schemas)}"}
    if kind in _WHOLE:
        bits, signed = _WHOLE[kind]
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        whole = {"type": "integer", "format": f"{'' if signed else 'u'}int{bits}", "minimum": least, "maximum": most}
        if bits == 32:
            return whole
        return {"anyOf": [{"type": "string", "pattern": "^-?[0-9]{1,20}$"}, whole]}  # replies have strings
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
    return {"type": "string"} | ({"contentEncoding": "base64"} if field.type == FieldDescriptor.TYPE_BYTES else {})
