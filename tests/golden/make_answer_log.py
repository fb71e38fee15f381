"""Makes the golden answer log of the current format: python tests/golden/make_answer_log.py, from the root.

Four answers of the newest golden bundle: a known user, one with rules and draws, nobody, and similar tracks. Run once
when the format changes: what is there already is not touched.
"""

import json
import sys
from pathlib import Path

import numpy as np

from lhydra.answers.entry import FORMAT, LoggedAnswer, to_line
from lhydra.bundle.bundle import Bundle
from lhydra.domain import HISTORY_DTYPE, RECENT_DTYPE, UserState
from lhydra.recommender import Recommender
from lhydra.repeats import repeats_of
from lhydra.rules import Boost, Explore, Match, Rules
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.answers import Asked
from lhydra_server.replaying import answered
from lhydra_server.served import Served, served_of

HERE = Path(__file__).resolve().parent
RULES = Rules("home", caps=(("artist", 2),), boosts=(Boost(Match("genre", ("Jazz",)), 2.0),), explore=Explore(2, 10))


def golden() -> Served:
    """The newest golden bundle as a service sees it."""
    bundle = Bundle.open_folder(HERE / "bundle_v5")
    return served_of(bundle, Recommender(bundle))


def main() -> int:
    """Writes answer_log_v<format>.jsonl beside this file."""
    path = HERE / f"answer_log_v{FORMAT}.jsonl"
    if path.exists():
        print(f"format {FORMAT} has its golden file: it stays as it is", file=sys.stderr)
        return 1
    served = golden()
    then = json.loads((HERE / "answers_v5.json").read_text())[0]
    history = np.array(list(zip(*then["history"], strict=True)), HISTORY_DTYPE)
    recent = np.array(list(zip(*then["recent"], strict=True)), RECENT_DTYPE)
    state = UserState(then["profile"], history, np.array(then["heard"], np.uint64), recent=recent, version=3)
    state = UserState(state.profile, history, state.heard, repeats=repeats_of(state), recent=recent, version=3)
    tracks = list(served.catalog.track_ids(np.arange(2)))  # type: ignore[attr-defined]
    requests: dict[str, tuple[Asked, UserState | None, Rules | None]] = {
        "plain": (pb.RecommendRequest(user_id="u", k=5), state, None),
        "rules": (pb.RecommendRequest(user_id="u", k=5, rules=pb.Rules(set="home")), state, RULES),
        "nobody": (pb.RecommendRequest(user_id="n", k=3), None, None),
        "similar": (pb.SimilarTracksRequest(track_ids=tracks, k=3), None, None),
    }
    lines = []
    for name, (request, known, rules) in requests.items():
        method = "Recommend" if isinstance(request, pb.RecommendRequest) else "SimilarTracks"
        asked = LoggedAnswer(
            *(name, method, request.user_id, then["now"], "golden", 50, 1000),
            *(request.SerializeToString(deterministic=True), known, rules, "", (), (), ()),
        )
        lines.append(to_line(answered(asked, served)))
    path.write_bytes(b"".join(lines))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
