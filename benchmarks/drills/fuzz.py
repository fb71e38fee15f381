"""Bytes that a fuzzer (atheris, libFuzzer) bends towards whatever reads them: it answers, or refuses in one clean line.

The drill starts this module once for each reader, with coverage of our own modules; a process of the fuzzer ends by
itself. What reads: requests as the wire brings them, recorded requests, manifests, configurations, rule sets, token
files, and users' records, their checksums put right so that what lies behind those is reached.
"""

import argparse
import importlib.util
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.drills.verdict import Verdict, not_run
from benchmarks.latency.own_server import child_environment

if TYPE_CHECKING:  # what is imported before the fuzzer is not followed by it
    from benchmarks.drills.world import World
    from lhydra.errors import LhydraError

NOW = 1_700_000_000
GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden"
INNER = re.compile(r"Traceback|File \"|object at 0x|<class |<built-in|\w+Error\(|self\.")
DONE = re.compile(r"Done (\d+) runs")
COLUMNS = {"genre": "categorical", "artist": "categorical", "tags": "multi", "year": "year", "tempo": "numeric"}
RULES = """default: calm
sets:
  calm:
    caps: {artist: 2}
    collapse: {versions: [live]}
    diversity: {strength: 0.3, method: mmr}
    calibration: {column: genre, strength: 0.5}
    boost: [{column: genre, values: [rock], factor: 2, since: 2026-01-01}]
    bury: [{tracks: [t1], factor: 0.5}]
    pin: [{track: t2, place: 1, until: 2026-12-31}]
    block: [{column: artist, values: [nobody]}]
    fresh: {column: year, slots: 2}
    explore: {slots: 1}
"""
CONFIG = """serve: {port: 50_051, users: ~, pin: yes, log_sample: .5}
index: &a {recipe: flat}
synth: {<<: *a, users: 010, seed: !!int 3}
"""
TOKENS = "# shop\n6c1f00e2 read shop 200\nd3b8aa4c read,write,admin operator\n"
RECORDED = '{"user_id": "u1", "k": 20, "now_s": 1700000000, "history": [{"track_id": "t1", "count": 3}], '
RECORDED += '"session": [{"track_id": "t3", "skipped": true}], "profile": {"age": 30}, "exclude_track_ids": ["t7"]}'

Reader = Callable[[bytes], None]


def fuzz(world: "World", seconds: float = 120.0) -> list[Verdict]:
    """Runs the fuzzer on each reader.

    Args:
        world: for what is written.
        seconds: in all.

    Returns:
        The row of the table.
    """
    promise = f"{seconds:g} s of a fuzzer on {', '.join(READERS)}"
    target = "0 crashes, no inner text, every refusal one printable line"
    if importlib.util.find_spec("atheris") is None:
        return [not_run(promise, target, "no atheris: pip install atheris")]
    runs, failed = 0, []
    for name in READERS:
        command = [sys.executable, "-m", "benchmarks.drills.fuzz", name, f"{seconds / len(READERS):.0f}"]
        ended = subprocess.run(command, env=child_environment(), capture_output=True, text=True, errors="replace")
        done = DONE.search(ended.stderr)
        runs += int(done[1]) if done else 0
        if ended.returncode or done is None:
            log = world.folder / f"fuzz-{name}.log"
            log.write_text(ended.stdout + ended.stderr)
            failed.append(f"{name} crashed ({log.name})")
    measured = f"{runs:,} runs, " + (", ".join(failed) or "0 crashes")
    return [Verdict(promise, target, measured, not failed)]


def refused(error: "LhydraError", text: str | None = None) -> None:
    """Checks that what a caller is told is a clean line.

    Args:
        error: what was raised.
        text: what is told; by default the error's own.

    Raises:
        AssertionError: it is not.
    """
    text = str(error) if text is None else text
    if not text or not text.isprintable() or INNER.search(text):
        raise AssertionError(f"{type(error).__name__} is told as {text!r}")


def requests() -> tuple[Reader, list[bytes]]:
    """Returns what reads a request of any method, as a worker does, and requests."""
    from grpc import StatusCode

    from lhydra.errors import LhydraError
    from lhydra.lists.file import RuleSets
    from lhydra.queries import to_query
    from lhydra_protos.v1 import recommender_pb2 as pb
    from lhydra_server import explain, translate
    from lhydra_server.errors import status_of
    from lhydra_server.interceptors import parsed

    sets = RuleSets()

    def recommend(data: bytes) -> None:
        request = translate.to_request(parsed(data, pb.RecommendRequest), 1_000, COLUMNS, "genre", NOW, sets, "id")
        to_query(request, None, NOW)

    def similar(data: bytes) -> None:
        request = translate.to_similar(parsed(data, pb.SimilarTracksRequest), 1_000, COLUMNS, "genre", NOW, sets, "id")
        to_query(request, None, NOW)

    def record(data: bytes) -> None:
        translate.to_plays(parsed(data, pb.RecordPlaysRequest))

    def asked(data: bytes) -> None:
        request = explain.asked_request(parsed(data, pb.ExplainRequest), "id")
        to_query(translate.to_request(request, 1_000, COLUMNS, "genre", NOW, sets, "id"), None, NOW)

    methods = recommend, similar, record, asked

    def read(data: bytes) -> None:
        try:
            methods[(data or b"\0")[0] % len(methods)](data[1:])
        except LhydraError as error:
            code, text = status_of(error, "id")
            if code not in (StatusCode.INVALID_ARGUMENT, StatusCode.UNIMPLEMENTED):
                raise
            refused(error, text)

    full = pb.RecommendRequest(user_id="ann", k=5, exclude_track_ids=["t1"], depth=100, now_s=NOW, seed=7)
    full.history.entries.add(track_id="t1", count=2, timestamp_s=5)
    full.session.entries.add(track_id="t2", skipped=True)
    full.profile.columns["age"].number = 30
    full.filter.genres.append("rock")
    full.rules.caps["artist"] = 2
    full.rules.boosts.add(column="genre", values=["rock"], factor=2)
    full.rules.calibration.column = "genre"
    full.diversity.strength = 0.5
    plays = pb.RecordPlaysRequest()
    plays.plays.add(event_id="e", user_id="ann", track_id="t1", count=1, timestamp_s=NOW)
    seeds = full, pb.SimilarTracksRequest(track_ids=["t1"], k=5), plays, pb.ExplainRequest(request=full, track_id="t1")
    return read, [bytes([i]) + seed.SerializeToString() for i, seed in enumerate(seeds)]


def recorded() -> tuple[Reader, list[bytes]]:
    """Returns what reads a line of recorded requests, and such lines."""
    from lhydra.errors import LhydraError
    from lhydra.queries import to_query
    from lhydra_index_builder.diff.asking import _parsed

    def read(data: bytes) -> None:
        try:
            to_query(_parsed(data, 10, NOW), None, NOW)
        except LhydraError as error:
            refused(error)

    return read, [RECORDED.encode()]


def _of_file(load: Callable[[Path], object], name: str, seeds: Sequence[bytes]) -> tuple[Reader, list[bytes]]:
    """What reads a file of some name."""
    from lhydra.errors import LhydraError

    path = Path(tempfile.mkdtemp(prefix="fuzz-"), name)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            load(path)
        except LhydraError as error:
            refused(error)

    return read, list(seeds)


def manifests() -> tuple[Reader, list[bytes]]:
    """Returns what reads a manifest, and manifests."""
    from lhydra.bundle.manifest import Manifest

    seeds = [path.read_bytes() for path in GOLDEN.glob("bundle_v*/manifest.json")]
    return _of_file(lambda path: Manifest.read(path.parent), "manifest.json", seeds)


def configurations() -> tuple[Reader, list[bytes]]:
    """Returns what reads the configuration of a command, and one."""
    from lhydra.commands.synth import SynthSettings
    from lhydra.config import resolve
    from lhydra_index_builder.config import RebuildSettings
    from lhydra_server.config import ServeSettings

    def load(path: Path) -> None:
        given = argparse.Namespace(config=path)
        resolve("serve", ServeSettings, given, {})
        resolve("synth", SynthSettings, given, {})
        resolve("index", RebuildSettings, given, {})

    return _of_file(load, "config.yaml", [CONFIG.encode()])


def rules() -> tuple[Reader, list[bytes]]:
    """Returns what reads a file of rule sets, and one."""
    from lhydra.lists.file import read

    return _of_file(lambda path: read(path).check(COLUMNS), "rules.yaml", [RULES.encode()])


def tokens() -> tuple[Reader, list[bytes]]:
    """Returns what reads a file of tokens and looks for its first one, and such a file."""
    from lhydra_server.tokens import Tokens, read

    def load(path: Path) -> None:
        found = Tokens(read(path))
        found.find([f"Bearer {path.read_text().split()[0]}"])

    return _of_file(load, "tokens", [TOKENS.encode()])


def records() -> tuple[Reader, list[bytes]]:
    """Returns what reads a user's record, and records of every format."""
    from lhydra.domain import HISTORY_DTYPE, RECENT_DTYPE, REPEAT_DTYPE
    from lhydra.errors import UserStoreError
    from lhydra.users.packed import unpack_state
    from lhydra.users.stored import lows_of, stored_of

    sizes = 8, 8, 8, HISTORY_DTYPE.itemsize, REPEAT_DTYPE.itemsize, RECENT_DTYPE.itemsize, 1

    def sealed(data: bytes) -> bytes:
        """With the checksums that its bytes should have, as far as its lengths make sense."""
        packed = bytearray(data)
        if len(packed) >= 64 and packed[0] == 3:
            lengths = struct.unpack_from("<7I", packed, 24)
            end = 64 + sum(n * size for n, size in zip(lengths, sizes, strict=True))
            packed[20:24] = struct.pack("<I", zlib.crc32(packed[end:]))
            packed[4:8] = struct.pack("<I", zlib.crc32(packed[8:end], 3))
        elif len(packed) >= 32:
            packed[4:8] = struct.pack("<I", zlib.crc32(packed[8:]))
        return bytes(packed)

    def read(data: bytes) -> None:
        for packed in (data, sealed(data)):
            chunks = [None] * len(lows_of(packed, "ann") or ())  # as a store has it of which they are gone
            for reader in (unpack_state, lambda value, user, chunks=chunks: stored_of(value, chunks, user)):
                try:
                    reader(packed, "ann")
                except UserStoreError as error:
                    refused(error)

    return read, [bytes.fromhex(path.read_text()) for path in GOLDEN.glob("user_record_v*.hex")]


READERS = {
    "requests": requests,
    "recorded requests": recorded,
    "manifests": manifests,
    "configurations": configurations,
    "rules": rules,
    "tokens": tokens,
    "records": records,
}


def main() -> None:
    """Fuzzes one reader for some seconds; the fuzzer ends this process, with its exit code."""
    import atheris

    name, seconds = sys.argv[1:]
    with atheris.instrument_imports(include=["lhydra", "lhydra_server", "lhydra_index_builder"]):
        read, seeds = READERS[name]()
    if not seeds:
        raise ValueError(f"{name}: found nothing to begin with, expected what lies in {GOLDEN}")
    with tempfile.TemporaryDirectory() as folder:
        for i, seed in enumerate(seeds):
            Path(folder, str(i)).write_bytes(seed)
        flags = [
            f"-max_total_time={seconds}",
            "-rss_limit_mb=4096",
            "-max_len=16384",
            "-len_control=0",
            f"-artifact_prefix={folder}/",
        ]
        atheris.Setup([sys.argv[0], *flags, folder], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
