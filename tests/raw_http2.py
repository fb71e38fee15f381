"""HTTP/2 by hand, for callers that no gRPC client can be: they send half of a call, or never read."""

import contextlib
import socket
import struct
from collections.abc import Iterator

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(stream: int, path: str, *, end: bool = False) -> bytes:
    """Returns the headers of a call; `end`: no message will follow."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value)) for name, value in fields.items()
    )
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def message(stream: int, data: bytes) -> bytes:
    """Returns the one message of a call, and its end."""
    return frame(DATA, END_STREAM, stream, b"\0" + struct.pack(">I", len(data)) + data)


@contextlib.contextmanager
def connection(port: int) -> Iterator[socket.socket]:
    """A connection to a server of 127.0.0.1 that has said hello, and by now has been greeted back."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        assert next(frames(raw))[0] == SETTINGS
        raw.sendall(frame(SETTINGS, 1, 0))
        yield raw


def frames(raw: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields what the server sends: kind, flags, stream and payload of every frame, until it hangs up."""
    while len(head := _read(raw, 9)) == 9:
        kind, flags, number = struct.unpack(">BBI", head[3:])
        yield kind, flags, number, _read(raw, int.from_bytes(head[:3], "big"))


def answered(raw: socket.socket, *, pong: bool = False) -> Iterator[int]:
    """Yields the number of each stream that the server ends; `pong`: pings are answered meanwhile."""
    ended = set()
    for kind, flags, number, payload in frames(raw):
        if pong and kind == PING and not flags:
            raw.sendall(frame(PING, 1, 0, payload))
        if number not in ended and (kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM)):
            ended.add(number)
            yield number


def _read(raw: socket.socket, n: int) -> bytes:
    """n bytes and none of what follows, which is for the next to read; fewer at the end."""
    data = b""
    while len(data) < n and (more := raw.recv(n - len(data))):
        data += more
    return data
