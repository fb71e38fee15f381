"""How far the request path is from bare native calls: `python -m benchmarks.floor DATASET STORE --out FILE.json`.

The floor is what no implementation on these libraries can leave out: the graph of the user tower, FAISS at the
bundle's own operating point, the gathers of the candidates, the graph of the head, the k best, and the bytes of the
reply. What lies above the native calls is computed before and handed over: encoded users, co-listening scores,
signals of the moment, and the candidates, so that it answers with the same tracks in the same order, which is checked.
It looks nobody up, excludes nothing, checks nothing and has one user at a time.

The real path is `benchmarks.stages.answer`, from looking the user up to the bytes of the reply. Both take turns,
request by request on one core; the floor answers for another user, so that neither finds in a cache what the other has
just read. `shared` are the stages that both have, together.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import one_thread_per_library

if __name__ == "__main__":  # before the libraries are loaded
    one_thread_per_library()

import faiss
import numpy as np
import numpy.typing as npt
import onnxruntime

from benchmarks.machine import core_scaling, machine, noise_line, versions
from benchmarks.stages import answer, query_of
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.recipes import parameters
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.domain import F32, I64, Repeat, Tier
from lhydra.errors import LhydraError, complain
from lhydra.features import item_item
from lhydra.files import write_text
from lhydra.known_users import KnownUsers
from lhydra.recommender import Recommender
from lhydra.traced import Traced, no_check
from lhydra.users.store import UserStore, open_users
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.wire import SCORE_BYTES

Array = npt.NDArray[Any]
STAGES = ("embed", "retrieve", "rerank", "select", "reply")  # of the floor
ABOVE = ("lookup", "exclude", "encode")  # what only the real path does
SHARED, WHOLE, PROCESSOR = "shared", "whole", "processor"
SIDES = "real", "floor"
TOLERANCE = 1e-5  # of logits
_SCORE, _RETRIEVAL_SCORE = np.arange(1, 5), np.arange(6, 10)  # as in lhydra_server.replies


@dataclass(frozen=True)
class Ready:
    """One user's inputs, computed before: of both graphs without what is gathered, and the rows to gather.

    Args:
        tower: inputs of the user tower by name, but for the history vectors.
        played: (h,) rows of those.
        head: inputs of the head by name, but for the user vector and what is gathered of the candidates.
        candidates: (n,) rows.
        cosines: (n,) float32 of the candidates.
    """

    tower: dict[str, Array]
    played: I64
    head: dict[str, Array]
    candidates: I64
    cosines: F32


class Floor:
    """Bare native calls over the files of one bundle.

    Args:
        folder: of the bundle.
        bundle: the same, opened: its tables and operating point.
        depth: candidates.
        k: tracks.
    """

    def __init__(self, folder: Path, bundle: Bundle, depth: int, k: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.tower, self.head = (
            onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in ("user_tower.onnx", "head.onnx")
        )
        self.index = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
        self.parameters = parameters(self.index, bundle.index.point)
        self.refine = bundle.index.point.refine
        catalog = bundle.catalog
        self.vectors, self.history = catalog.vectors, catalog.history
        tables: dict[str, Array] = {
            "track_dense": catalog.dense,
            "track_ids": catalog.ids.astype(np.int64),
            "popularity": catalog.popularity,
        }
        self.gathered: dict[str, Array] = declared(tables, self.head)
        assert bundle.replies is not None
        self.parts, self.offsets = bundle.replies.data.data, bundle.replies.offsets
        self.depth, self.k = depth, k

    def answer(self, ready: Ready) -> tuple[I64, F32, bytes, list[int]]:
        """Answers one request.

        Args:
            ready: what is known of the user.

        Returns:
            (k,) rows, (k,) logits, the bytes of the reply, and nanoseconds at the start and the end of each of STAGES.
        """
        clock = time.perf_counter_ns
        at = [clock()]
        [vector] = self.tower.run(None, {**ready.tower, "history": self.history.at(ready.played[None])})
        at.append(clock())
        _, rows = self.index.search(vector, self.depth * self.refine, params=self.parameters)
        if self.refine > 1:
            np.argsort(self.vectors.take(rows[0], 0).astype(np.float32) @ vector[0])
        at.append(clock())
        rows = ready.candidates
        gathered = {name: table.take(rows, 0)[None] for name, table in self.gathered.items()}
        vectors = self.vectors.take(rows, 0)[None]
        logits, scores = self.head.run(None, {**ready.head, **gathered, "vectors": vectors, "user": vector})
        at.append(clock())
        best = np.argsort(-logits[0])[: self.k]
        rows, scores, cosines = rows.take(best), scores[0].take(best), ready.cosines.take(best)
        at.append(clock())
        starts, ends = self.offsets.take(rows), self.offsets.take(rows + 1)
        parts = [self.parts[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        said = bytearray().join(parts)
        place, out = (np.cumsum(ends - starts) - SCORE_BYTES)[:, None], np.frombuffer(said, np.uint8)
        out[place + _SCORE] = scores.view(np.uint8).reshape(-1, 4)
        out[place + _RETRIEVAL_SCORE] = cosines.view(np.uint8).reshape(-1, 4)
        reply = bytes(said)
        at.append(clock())
        return rows, logits[0].take(best), reply, at


def declared(inputs: Mapping[str, Array], graph: onnxruntime.InferenceSession) -> dict[str, Array]:
    """Returns the inputs that a graph declares: one whose data set lacks a feature may have lost its input.

    Args:
        inputs: by name.
        graph: an ONNX graph.

    Returns:
        Those of them.
    """
    return {node.name: inputs[node.name] for node in graph.get_inputs() if node.name in inputs}


def ready(floor: Floor, bundle: Bundle, traced: Traced) -> Ready:
    """Takes from a request that was answered what the floor is given.

    Args:
        floor: whose graphs it is for.
        bundle: what answered.
        traced: the request.

    Returns:
        The inputs.
    """
    user, tracks = traced.user, bundle.catalog
    assert user is not None
    assert traced.candidates is not None
    candidates, cosines = traced.candidates
    played, entry, mask = user.padded()
    rows_of, weights = tracks.item_rows, tracks.neighbour_weights
    together = item_item.scores(
        tracks.neighbours, weights, rows_of.take(played[0]), user.entry, rows_of.take(candidates)
    )
    head: dict[str, Array] = {"user_dense": user.dense, "user_ids": user.ids, "colisten": together[None]}
    if traced.moment is not None:
        head |= {"signals": traced.moment.signals(candidates)[None], "context": traced.moment.context()[None]}
    tower: dict[str, Array] = {"dense": user.dense, "ids": user.ids, "entry": entry, "mask": mask}
    return Ready(declared(tower, floor.tower), played[0], declared(head, floor.head), candidates, cosines)


def listened(
    recommender: Recommender, users: UserStore, floor: Floor, user_ids: Sequence[str], n: int
) -> dict[str, Ready]:
    """Finds users who get personal answers, and checks that the floor answers them alike.

    Args:
        recommender: the real path.
        users: the user store.
        floor: the floor.
        user_ids: whom to try, in order.
        n: how many are wanted.

    Returns:
        By user id what the floor is given. Who has skipped tracks lately is left out: the real path moves their vector.

    Raises:
        LhydraError: nobody has listened.
    """
    found: dict[str, Ready] = {}
    for user_id in user_ids:
        query = query_of(users, user_id, floor.k, Repeat.EXCLUDE)
        if len(query.state.skipped):
            continue
        [traced] = recommender.trace_many([(query, no_check)])
        if traced.answer is None or traced.tier is not Tier.PERSONAL:
            continue
        found[user_id] = given = ready(floor, recommender.bundle, traced)
        rows, logits, reply, _ = floor.answer(given)
        told = [track.track_id for track in pb.RecommendResponse.FromString(reply).tracks]
        alike = np.allclose(logits, traced.answer.logits, rtol=0, atol=TOLERANCE)  # equal ones may change places
        if not alike or told != recommender.catalog.track_ids(rows):
            raise LhydraError(complain(f"the floor's answer to {user_id}", "other tracks", "the recommender's"))
        if len(found) == n:
            return found
    if not found:
        raise LhydraError(complain("users", "none with a personal answer", "a store whose users are loaded"))
    return found


def measure(
    recommender: Recommender, users: UserStore, floor: Floor, asked: dict[str, Ready]
) -> dict[str, dict[str, float]]:
    """Asks for every user once of both, in turn.

    Args:
        recommender: the real path.
        users: the user store.
        floor: the floor.
        asked: whom, with what the floor is given.

    Returns:
        Of both the median of each stage and of the whole, and the mean processor time of a request, in microseconds.
    """
    names, given = list(asked), list(asked.values())
    given = given[len(given) // 2 :] + given[: len(given) // 2]  # the floor answers for another user
    real: dict[str, list[float]] = {name: [] for name in (*ABOVE, *STAGES, SHARED, WHOLE)}
    bare: dict[str, list[float]] = {name: [] for name in (*STAGES, SHARED, WHOLE)}
    cpu_ns = {"real": 0, "floor": 0}
    for user_id, one in zip(names, given, strict=True):
        began_ns = time.process_time_ns()
        _, stage_us = answer(recommender, users, user_id, floor.k, Repeat.EXCLUDE)
        between_ns = time.process_time_ns()
        *_, at = floor.answer(one)
        ended_ns = time.process_time_ns()
        cpu_ns["real"] += between_ns - began_ns
        cpu_ns["floor"] += ended_ns - between_ns
        for name in (*ABOVE, *STAGES):
            real[name].append(stage_us.get(name, 0))
        real[SHARED].append(sum(stage_us.get(name, 0) for name in STAGES))
        real[WHOLE].append(stage_us["total"])
        for name, took in zip(STAGES, np.diff(at), strict=True):
            bare[name].append(took / 1e3)
        for name in (SHARED, WHOLE):
            bare[name].append((at[-1] - at[0]) / 1e3)
    p50_us = {
        side: {name: float(np.median(us)) for name, us in stages.items()}
        for side, stages in zip(SIDES, (real, bare), strict=True)
    }
    return {side: us | {PROCESSOR: cpu_ns[side] / 1e3 / len(names)} for side, us in p50_us.items()}


def told(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Puts rounds together.

    Args:
        rounds: what `measure` found in each.

    Returns:
        Of each stage, the whole and the processor: microseconds of both and their ratio, medians over the rounds, and
        the least and greatest ratio of a round.
    """
    found: dict[str, dict[str, float]] = {}
    for name in (*ABOVE, *STAGES, SHARED, WHOLE, PROCESSOR):
        row = {f"{side}_us": float(np.median([one[side].get(name, 0.0) for one in rounds])) for side in SIDES}
        if name not in ABOVE:
            ratios = [one["real"][name] / one["floor"][name] for one in rounds]
            row |= {"ratio": float(np.median(ratios)), "least": min(ratios), "greatest": max(ratios)}
        found[name] = row
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Prints and writes the distance to the floor.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--users", type=int, default=1_000, help="asked for once in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--depth", type=int, default=300, help="candidates to rerank")
    parser.add_argument("--seed", type=int, default=0, help="which users, and in which order")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    faiss.omp_set_num_threads(1)
    try:
        check_output("--out", args.out, is_json_with("versions", "floor"))
        user_ids = Dataset.open(args.dataset).user_ids
        order = np.random.default_rng(args.seed).permutation(len(user_ids))
        bundle = Bundle.open(args.store)
        recommender = Recommender(bundle, args.depth)
        recommender.warm_up()
        recommender.known_users = KnownUsers(bundle, 0)  # nobody is kept: every request is a first one
        floor = Floor(args.store / bundle.bundle_id, bundle, args.depth, args.k)
        users = open_users(None, args.store)
        free_before = core_scaling()
        own_cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(own_cores)})
        try:
            asked = listened(recommender, users, floor, [user_ids[i] for i in order], args.users)
            rounds = [measure(recommender, users, floor, asked) for _ in range(1 + args.repeats)][1:]  # one to warm up
        finally:
            os.sched_setaffinity(0, own_cores)
            users.close()
        free_after = core_scaling()
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    found = told(rounds)
    document = {
        "benchmark": "floor",
        "machine": machine(),
        "spinning": {"before": free_before, "after": free_after},
        "versions": versions(),
        "settings": {name: getattr(args, name) for name in ("users", "repeats", "k", "depth", "seed")},
        "bundle": {"tracks": len(bundle.catalog), "dim": bundle.index.dim, "recipe": bundle.index.recipe},
        "floor": found,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, row in found.items():
        ratio = f"x{row['ratio']:.2f} ({row['least']:.2f} to {row['greatest']:.2f})" if "ratio" in row else ""
        print(f"{name:9} {row['real_us']:7.0f} us   floor {row['floor_us']:7.0f} us   {ratio}")
    print(noise_line(free_before, free_after))
    return 0


if __name__ == "__main__":
    sys.exit(main())
