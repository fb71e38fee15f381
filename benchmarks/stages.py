"""What a request costs without gRPC: `python -m benchmarks.stages DATASET STORE --out FILE.json`.

One process and thread; users of the dataset in random order, by the same `Recommender` as the server's, from looking
the user up to the bytes of the reply. Microseconds of each stage and of the whole, and processor time per request.
`rerank` is the head over `depth` candidates, co-listening scores included. Users come from the store, or, where nobody
has been loaded there, from the dataset's train plays by way of a store of their own.

With `--beside OTHER` every request is asked of both stores, one right after the other and in turns first, and the
ratio of processor time a request is told with its 95 % interval (bootstrap over requests). With `--again` every user is
asked for once and then, at once, for half as many tracks: the ratio of processor time is that of the second request to
the first.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from benchmarks.environment import one_thread_per_library

if __name__ == "__main__":  # before the libraries are loaded
    one_thread_per_library()

import numpy as np
import numpy.typing as npt

from benchmarks.machine import machine, versions
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.index import one_thread
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.clock import play_times
from lhydra.data.dataset import TRAIN, Dataset, user_states
from lhydra.data.plays import flags_of, state_of
from lhydra.domain import I64, Query, Recommendation, Repeat, UserState
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra.queries import to_query
from lhydra.recommender import Recommender
from lhydra.timing import timed
from lhydra.users.store import UserStore, open_users
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.replies import reply
from lhydra_server.translate import to_request

F64 = npt.NDArray[np.float64]
WARM_UP_REQUESTS = 200  # not counted
QUANTILES = {"p50": 50, "p90": 90, "p99": 99}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints and writes percentiles per stage.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--beside", type=Path, help="another store, whose processor time a request counts as 1")
    parser.add_argument(
        "--again", action="store_true", help="asks for each user a second time, for half as many tracks"
    )
    parser.add_argument("--repeat", choices=[repeat.name.lower() for repeat in Repeat], default="exclude")
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--depth", type=int, default=0, help="candidates to rerank (default: the bundle's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    one_thread()
    try:
        check_output("--out", args.out, is_json_with("versions", "stages_us"))
        dataset = Dataset.open(args.dataset)
        stores = [args.store, args.beside] if args.beside else [args.store]
        recommenders = [Recommender(Bundle.open(store), args.depth) for store in stores]
        for recommender in recommenders:
            recommender.warm_up()
        rng, n_users = np.random.default_rng(args.seed), len(dataset.user_ids)
        drawn = rng.permutation(n_users) if args.again else rng.integers(0, n_users, args.requests + WARM_UP_REQUESTS)
        with ExitStack() as stack:
            users = open_users(None, args.store)
            stack.callback(users.close)
            if not users.sample(1):
                users = open_users(f"lmdb:{stack.enter_context(tempfile.TemporaryDirectory())}/users", args.store)
                stack.callback(users.close)
                users.load(listeners(dataset, np.unique(drawn)))
            asked = [dataset.user_ids[position] for position in drawn[: args.requests + WARM_UP_REQUESTS]]
            taken: list[list[tuple[Recommendation, dict[str, int]]]] = [[] for _ in recommenders]
            cpu_us, again_us = np.zeros((len(recommenders), len(asked))), np.zeros(len(asked))
            for i, user_id in enumerate(asked):
                for n in range(len(recommenders)) if i % 2 else reversed(range(len(recommenders))):
                    before_ns = time.process_time_ns()
                    taken[n].append(answer(recommenders[n], users, user_id, args.k, Repeat[args.repeat.upper()]))
                    cpu_us[n, i] = (time.process_time_ns() - before_ns) / 1e3
                if args.again:
                    before_ns = time.process_time_ns()
                    answer(recommenders[0], users, user_id, max(args.k // 2, 1), Repeat[args.repeat.upper()])
                    again_us[i] = (time.process_time_ns() - before_ns) / 1e3
            answers, cpu_us = taken[0][WARM_UP_REQUESTS:], cpu_us[:, WARM_UP_REQUESTS:]
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    names = list(dict.fromkeys(name for _, stage_us in answers for name in stage_us))
    stages = {
        name: dict(zip(QUANTILES, np.percentile(us, list(QUANTILES.values())).tolist(), strict=True))
        for name, us in ((name, [stage_us.get(name, 0) for _, stage_us in answers]) for name in names)
    }
    document = {
        "machine": machine(),
        "versions": versions(),
        "requests": args.requests,
        "k": args.k,
        "repeat": args.repeat,
        "depth": recommenders[0].depth,
        "tracks": len(recommenders[0].catalog),
        "tiers": dict(Counter(found.tier.label for found, _ in answers)),
        "stages_us": stages,
        "cpu_us_per_request": cpu_us[0].mean(),
    }
    if args.beside:
        document["ratio_to_beside"] = ratio = ratio_of(cpu_us[0], cpu_us[1], args.seed)
    if args.again:
        document["ratio_of_again"] = again = ratio_of(again_us[WARM_UP_REQUESTS:], cpu_us[0], args.seed)
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, row in stages.items():
        print(f"{name:9} p50 {row['p50']:7.0f} us   p99 {row['p99']:7.0f} us")
    print(f"{cpu_us[0].mean():.0f} us of CPU a request")
    if args.beside:
        print(f"ratio to {args.beside}: {ratio['mean']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})")
    if args.again:
        print(f"asked again: {again['mean']:.3f} ({again['low']:.3f} to {again['high']:.3f}) of the first time")
    return 0


def listeners(dataset: Dataset, positions: I64) -> Iterator[tuple[str, UserState]]:
    """Gives users as the store holds them who have played the train fold; where it keeps single plays, in their order.

    Args:
        dataset: whose users.
        positions: (m,) of the users table.

    Yields:
        User id and state.
    """
    states = user_states(dataset, "test", positions=positions)
    if not dataset.has_events:
        yield from states
        return
    events, times, flags = dataset.events, play_times(dataset.events), flags_of(dataset.events)
    for (user_id, state), position in zip(states, positions.tolist(), strict=True):
        own = np.arange(*np.searchsorted(events.user, [position, position + 1]))
        own = own[events.fold[own] == TRAIN]
        played = dataset.hashes[events.track[own]], events.count[own], times[own], flags[own]
        yield user_id, replace(state_of(state.profile, *played), heard=state.heard)


def ratio_of(ours: F64, others: F64, seed: int) -> dict[str, float]:
    """Compares two costs of the same requests.

    Args:
        ours: (n,) of each request.
        others: (n,) of the same requests elsewhere.
        seed: of the bootstrap.

    Returns:
        The ratio of the means, and its 95 % interval over requests.
    """
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(ours), len(ours)) for _ in range(1_000))
    low, high = np.percentile([ours[one].mean() / others[one].mean() for one in drawn], [2.5, 97.5])
    return {"mean": float(ours.mean() / others.mean()), "low": float(low), "high": float(high)}


def query_of(users: UserStore, user_id: str, k: int, repeat: Repeat) -> Query:
    """Makes the query of a request as the server does.

    Args:
        users: the user store.
        user_id: whom to answer.
        k: tracks.
        repeat: what becomes of heard tracks.

    Returns:
        The query.
    """
    now = int(time.time())
    said = to_request(pb.RecommendRequest(user_id=user_id, k=k, repeat_policy=cast(Any, repeat)), k, {}, None, now)
    return to_query(said, users.get(user_id), now)


def answer(
    recommender: Recommender, users: UserStore, user_id: str, k: int, repeat: Repeat
) -> tuple[Recommendation, dict[str, int]]:
    """Answers one request as the server does, from the user's state to the reply's bytes.

    Args:
        recommender: with a bundle that lies in a store.
        users: the user store.
        user_id: whom to answer.
        k: tracks.
        repeat: what becomes of heard tracks.

    Returns:
        The answer, and microseconds of each stage; `total` is all of it.
    """
    stage_us: dict[str, int] = {}
    parts = recommender.bundle.replies
    assert parts is not None  # the bundle lies in a store
    with timed("total", stage_us):
        with timed("lookup", stage_us):
            query = query_of(users, user_id, k, repeat)
        found = recommender.recommend(query)
        with timed("reply", stage_us):
            reply(found, parts, stage_us, bundle_id=recommender.bundle_id, degraded=(), request_id="0" * 32)
    total = stage_us.pop("total")
    return found, {**stage_us, **found.stage_us, "total": total}


if __name__ == "__main__":
    sys.exit(main())
