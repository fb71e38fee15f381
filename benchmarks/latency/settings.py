"""The command line of the latency benchmark: flags, and which of them go together."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.latency import h2load
from benchmarks.latency.load import Arrivals
from benchmarks.latency.peers import PEERS
from lhydra.errors import ConfigError, complain

RESULTS = Path(__file__).resolve().parents[1] / "results" / "latency.json"
MODES = ("closed", "open", "ramp", "soak", "overload", "mixed", "cases", "in-process")


class Settings(argparse.Namespace):
    """The flags by their names; the JSON keeps all of them. Either `store` or `address` is set."""

    store: Path | None
    address: str | None
    dataset: Path | None
    user_ids: Path | None
    modes: list[str]
    peers: list[str]
    model: Path | None
    workers: int | None
    depth: int
    serve_flag: list[str]
    variant: list[str]
    k: int
    repeats: int
    concurrency: list[int]
    closed_by: Literal["h2load", "python"]
    rates: list[float]
    arrivals: Arrivals
    ramp_from: float | None
    p99_ms: float
    soak_s: float
    soak_share: float
    soak_rate: float | None
    filter: list[str]
    feedback: bool
    seconds: float
    warmup_s: float
    timeout_s: float
    channels: int
    seed: int
    spin_s: float
    allow_errors: bool
    compare: Path | None
    json: Path
    plot: Path | None


def parse_settings(argv: Sequence[str]) -> Settings:
    """Returns the settings of a command line; a flag that is wrong by itself ends the program with exit code 2.

    Args:
        argv: the words after the program's name.

    Returns:
        The settings, with `closed_by` filled in.

    Raises:
        ConfigError: the settings do not go together.
    """
    settings = _parser().parse_args(argv, namespace=Settings())
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    settings.closed_by = settings.closed_by or ("h2load" if h2load.installed() else "python")
    if settings.closed_by == "h2load" and not h2load.installed():
        raise ConfigError(complain("--closed-by", "h2load, which is not installed", "it (nghttp2-client), or python"))
    if unknown := (set(settings.modes) - set(MODES)) | (set(settings.peers) - set(PEERS)):
        raise ConfigError(complain("--modes or --peers", sorted(unknown)[0], ", ".join((*MODES, *PEERS))))
    if settings.peers and not (settings.store and settings.model and settings.workers and settings.depth):
        raise ConfigError(complain("--peers", "too little", "--store, --model, --workers and --depth with it"))
    if settings.peers and settings.closed_by != "h2load":
        raise ConfigError(complain("--peers", "no h2load", "h2load, the load that speaks to all servers alike"))
    if "in-process" in settings.modes and not (settings.store and settings.dataset):
        raise ConfigError(complain("--modes in-process", "too little", "--store and --dataset with it"))
    if "overload" in settings.modes and "ramp" not in settings.modes and settings.compare is None:
        raise ConfigError(complain("--modes overload", "no ramp", "ramp before it, to know what is too much"))
    if settings.address and settings.depth:
        raise ConfigError(complain("--depth", "--address", "a server of its own (--store)"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency", description="Latency of Recommend: closed and open loop."
    )
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--store", type=Path, help="start a server of its own on this store")
    server.add_argument("--address", metavar="H:P", help="measure a server that runs already")
    users = parser.add_mutually_exclusive_group()
    users.add_argument("--dataset", type=Path, help="ask for the users of this dataset")
    users.add_argument("--user-ids", type=Path, metavar="FILE", help="ids, one a line, or a CSV with user_id")
    add = parser.add_argument
    add("--modes", type=_words, default=["closed", "open"], help=f"of {', '.join(MODES)} (default: closed,open)")
    add("--peers", type=_words, default=[], help=f"of {', '.join(PEERS)}: measured beside ours, closed loop")
    add("--model", type=Path, help="the model behind the bundle, for peers in torch")
    add("--workers", type=_positive(int), help="workers of the own server (default: the server's)")
    add("--depth", type=int, default=0, help="candidates to rerank (default: the server's)")
    add("--serve-flag", action="append", default=[], metavar="FLAG", help="another flag for the own server; repeatable")
    add(
        "--variant", action="append", default=[], metavar="NAME=FLAGS", help="ours with other flags, beside; repeatable"
    )
    add("--k", type=_positive(int), default=20, help="tracks per answer (default: 20)")
    add("--repeats", type=_positive(int), default=1, help="each with a new start of every server (default: 1)")
    add("--concurrency", type=_many(int), default=[1, 8], metavar="N,...", help="closed loop (default: 1,8)")
    add("--closed-by", choices=("h2load", "python"), help="default: h2load where it is installed")
    add("--rates", type=_many(float), default=[200.0], metavar="N,...", help="open loop, a second (default: 200)")
    add("--arrivals", choices=("poisson", "fixed"), default="poisson", help="default: poisson")
    add("--ramp-from", type=_positive(float), help="first rate of the ramp (default: from the closed loop)")
    add("--p99-ms", type=_positive(float), default=50.0, help="bound of a sustained rate (default: 50)")
    add("--soak-s", type=_positive(float), default=30.0, help="seconds of the soak (default: 30)")
    add("--soak-share", type=_positive(float), default=0.6, help="of the knee (default: 0.6)")
    add("--soak-rate", type=_positive(float), help="a second, rather than a share of the knee")
    add("--filter", action="append", default=[], metavar="K=V,...", help="filtered requests; default: by the catalogue")
    add("--feedback", action="store_true", help="record plays at --address too: it changes the users there")
    add("--seconds", type=_positive(float), default=8.0, help="per run (default: 8)")
    add("--warmup-s", type=_positive(float), default=2.0, help="default: 2")
    add("--timeout-s", type=_positive(float), default=5.0, help="deadline (default: 5)")
    add("--channels", type=_positive(int), default=8, help="connections of the open loop (default: 8)")
    add("--seed", type=int, default=0, help="order of users, arrivals (default: 0)")
    add("--spin-s", type=float, default=0.5, help="of the check whether both cores are free; 0 leaves it out")
    add("--allow-errors", action="store_true", help="exit 0 though requests failed")
    add("--compare", type=Path, metavar="JSON", help="a baseline: its rates are used, exit 1 when worse beyond noise")
    add("--json", type=Path, default=RESULTS, metavar="FILE", help="default: results/latency.json")
    add("--plot", type=Path, metavar="FILE", help="one HTML page")
    return parser


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    number.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return number


def _many(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    one = _positive(kind)

    def numbers(text: str) -> list[Any]:
        return [one(part) for part in text.split(",") if part]

    numbers.__name__ = f"list of {one.__name__}"
    return numbers


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]
