"""The file of rule sets: what it says, what it may not say, and how a running server takes a change of it."""

import os
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lhydra.errors import ConfigError
from lhydra.files import write_text
from lhydra.lists.file import read
from lhydra.rules import Boost, Calibration, Collapse, Diversity, Explore, Fresh, Match, Pin
from lhydra_protos.v1 import recommender_pb2 as pb
from tests.fake_serve import write_bundle
from tests.harness import free_port, until
from tests.test_supervisor import B1, TRACKS_OF, Server, fake, open_stub, refused, running

WHOLE = """
default: home
sets:
  home:
    caps: {artist: 2, genre: 10}
    collapse: {versions: [live]}
    diversity: {strength: 0.3, method: mmr}
    calibration: {column: genre, strength: 0.6}
    boost: [{column: genre, values: [Jazz], factor: 2, since: 2026-01-01, until: 2026-12-24}]
    bury: [{tracks: [t1, "010"], factor: 4}]
    pin: [{track: t7, position: 3, until: 2026-12-24T12:00:00+01:00}]
    block: [{column: artist, values: [No, 1999]}, {tracks: [t2]}]
    fresh: {slots: 2, within: 1}
    explore: {slots: 1, pool: 10, temperature: 0.5, epsilon: 0.05}
  plain:
"""


def write(path: Path, text: str) -> Path:
    write_text(path, text)  # in one go: a server that looks meanwhile would find a part of it, and say so
    return path


def test_a_file_says_everything_that_rules_can(tmp_path: Path) -> None:
    sets = read(write(tmp_path / "rules.yaml", WHOLE))
    assert list(sets.sets) == ["home", "plain"]
    home = sets.default
    assert home is sets.sets["home"]
    assert home.caps == (("artist", 2), ("genre", 10))
    assert home.collapse == Collapse(("live",))
    assert home.diversity == Diversity(0.3, "mmr")
    assert home.calibration == Calibration("genre", 0.6)
    christmas = int(datetime(2026, 12, 24, tzinfo=UTC).timestamp())
    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    assert home.boosts == (
        Boost(Match("genre", ("Jazz",), since=start, until=christmas), 2.0),
        Boost(Match(tracks=("t1", "010")), 0.25),
    )
    assert home.pins == (Pin(Match(tracks=("t7",), until=christmas + 11 * 3600), 3),)
    assert home.blocks == (Match("artist", ("No", "1999")), Match(tracks=("t2",)))
    assert home.fresh == Fresh(2, within=1.0)
    assert home.explore == Explore(1, 10, 0.5, 0.05)
    assert sets.sets["plain"].caps == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found nothing, expected a mapping"),
        ("sets:", "sets: found nothing, expected a rule set or more"),
        ("sets: [a]", "sets: found a list, expected a mapping"),
        ("set: {a: }", "unknown key 'set', the nearest known key is 'sets'"),
        ("default: b\nsets: {a: }", "default: found b, expected the name of a set (a, off)"),
        ("sets: {off: }", "sets: found off, expected names of 1 to 64 characters of UTF-8, none of control, not 'off'"),
        ("sets: {a: {cap: {artist: 1}}}", "sets.a: unknown key 'cap', the nearest known key is 'caps'"),
        ("sets: {a: {caps: {artist: 0}}}", "sets.a.caps.artist: found 0, expected a whole number from 1 to 10000"),
        ("sets: {a: {caps: {artist: many}}}", "sets.a.caps.artist: found many, expected a whole number"),
        ("sets: {a: {caps: {artist: [1]}}}", "sets.a.caps.artist: found a list, expected a whole number"),
        (
            "sets: {a: {diversity: {strength: 1.5}}}",
            "sets.a.diversity.strength: found 1.5, expected a number from 0 to 1",
        ),
        ("sets: {a: {diversity: {strength: .nan}}}", "sets.a.diversity.strength: found .nan, expected a number"),
        ("sets: {a: {diversity: {strength: 1, method: dppp}}}", "method: found dppp, expected dpp or mmr"),
        ("sets: {a: {calibration: {strength: 1}}}", "sets.a.calibration.column: found nothing, expected text"),
        ("sets: {a: {boost: {factor: 2}}}", "sets.a.boost: found a mapping, expected a list"),
        (
            "sets: {a: {boost: [{tracks: [t], factor: 0}]}}",
            "boost[0].factor: found 0, expected a number from 1 to 1e+06",
        ),
        (
            "sets: {a: {bury: [{column: genre, factor: 2}]}}",
            "bury[0]: found column, factor, expected column and values",
        ),
        ("sets: {a: {block: [{tracks: []}]}}", "block[0]: found an empty list, expected one entry or more"),
        ("sets: {a: {pin: [{track: t, until: soon}]}}", "pin[0].until: found soon, expected a date such as 2026-12-24"),
        ("sets: {a: {pin: [{position: 1}]}}", "pin[0].track: found nothing, expected text"),
        ("sets: {a: {fresh: {slots: 1}}}", "sets.a.fresh: found neither, expected one of since and within"),
        ("sets: {a: {fresh: {slots: 1, within: -1}}}", "fresh.within: found -1, expected a number from 0"),
        ("sets: {a: {fresh: {slots: 1, since: x}}}", "fresh.since: found x, expected a number"),
        ("sets: {a: {explore: {slots: 1, pool: 1}}}", "explore.pool: found 1, expected a whole number from 2"),
        ("sets: {a: {}, a: {}}", "found the key 'a' again, expected each key once"),
        ("sets: {a: {caps: {~: 1}}}", "sets.a.caps: found ~, expected names as keys"),
        ("sets: [", "expected a YAML file"),
    ],
)
def test_what_a_file_may_not_say_is_refused_by_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "rules.yaml", text)
    with pytest.raises(ConfigError) as error:
        read(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("caps: {mood: 1}", "rules: sets.a.caps: found 'mood', expected a column of the bundle (genre, year)"),
        ("calibration: {column: year}", "rules: sets.a.calibration.column: found year, which is year"),
        ("fresh: {slots: 1, since: 3, column: genre}", "rules: sets.a.fresh.column: found genre, which is categorical"),
        ("block: [{column: year, values: [x]}]", "rules: sets.a.blocks: found 'x', expected numbers, as year is year"),
    ],
)
def test_columns_that_the_bundle_lacks_are_named(tmp_path: Path, rule: str, message: str) -> None:
    sets = read(write(tmp_path / "rules.yaml", f"sets: {{a: {{{rule}}}}}"))
    with pytest.raises(ConfigError) as error:
        sets.check({"genre": "categorical", "year": "year"})
    assert str(error.value).startswith(message)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    write_bundle(folder, B1, n=TRACKS_OF[B1])
    (folder / "CURRENT").write_text(B1 + "\n")
    return folder


def told(server: Server) -> tuple[list[str], str]:
    status = server.status()
    return list(status.rule_sets), status.rules_error


def test_a_change_acts_without_a_restart_and_a_wrong_one_changes_nothing(store: Path, tmp_path: Path) -> None:
    rules, port = write(tmp_path / "rules.yaml", "sets: {one: {caps: {artist: 2}}}"), free_port()
    with running(fake(store, rules=str(rules), metrics_port=port), tmp_path / "log") as server:
        assert told(server) == (["one"], "")
        write(tmp_path / "next", "sets: {one: , two: }")
        os.replace(tmp_path / "next", rules)
        for _ in range(4):  # every worker
            until(lambda: told(server) == (["one", "two"], ""))
        write(rules, "sets: {one: {caps: {artist: none}}}")
        names, error = until(lambda: (found := told(server))[1] and found)
        assert names == ["one", "two"]
        assert error == f"{rules}: sets.one.caps.artist: found none, expected a whole number from 1 to 10000"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            assert "lhydra_rules_failures_total 1.0" in reply.read().decode()
        until(lambda: error in (tmp_path / "log").read_text())
        victim = server.workers()[0]
        os.kill(victim, 9)  # its successor starts with the rules that were sound
        until(lambda: victim not in server.children() and len(server.children()) == 2)
        for _ in range(6):
            assert told(server)[0] == ["one", "two"]
        rules.unlink()
        until(lambda: "no such file" in told(server)[1].lower())
        write(rules, "sets: {three: }")
        until(lambda: told(server) == (["three"], ""))
        with open_stub(server.address) as stub:
            asked = pb.RecommendRequest(user_id="u", k=10, rules=pb.Rules(set="three"))
            assert len(stub.Recommend(asked, timeout=60, wait_for_ready=True).tracks) == 10


def test_a_server_does_not_start_with_wrong_rules(store: Path, tmp_path: Path) -> None:
    rules = write(tmp_path / "rules.yaml", "sets: {a: {caps: 3}}")
    assert refused(fake(store, rules=str(rules))) == f"{rules}: sets.a.caps: found 3, expected a mapping"
    assert "No such file" in refused(fake(store, rules=str(tmp_path / "none.yaml")))
