"""What searching titles costs, by sorted words and by SQLite's FTS5: `python -m benchmarks.search --out FILE.json`.

The tracks are made up, titles and artists as `lhydra synth` draws them, and every tenth title ends in a word of
its own, as real titles have them. Texts are beginnings of titles and artists as people type them, and hostile
ones: single letters, several of them, as many words as a request may have. FTS5 holds the same words, folded by
`words_of`, in a table that keeps nothing else, with an index of prefixes of one and two letters or without. One
thread, no server; each way says the best 10 and how many there are. All find the same, or the run fails.
"""

import argparse
import json
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.machine import core_scaling, machine, versions
from lhydra.bundle.strings import StringColumn
from lhydra.bundle.title_words import TitleWords, words_of
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.names import artist_names, every_title, track_titles
from lhydra.errors import LhydraError
from lhydra.files import write_text

K, WORDS = 10, 32


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a line for each way and kind of text.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=100_000)
    parser.add_argument("--texts", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of tracks and texts")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "ways"))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    titles, artists = made_up(args.tracks, args.seed)
    asked = texts(titles, artists, args.texts, args.seed)
    before = core_scaling()
    with TemporaryDirectory() as folder:
        ways, found = {}, {}
        for name, way in (("sorted words", sorted_words), ("FTS5", fts(())), ("FTS5, prefixes", fts((1, 2)))):
            began_s = time.process_time()
            ask, size = way(titles, artists, Path(folder) / f"{name}.db")
            made_s = time.process_time() - began_s
            ways[name], found[name] = measured(ask, asked)
            ways[name] |= {"bytes_per_track": round(size / args.tracks, 1), "made_s": round(made_s, 2)}
    first, *others = found.values()
    assert all(other == first for other in others), "they find different tracks"
    document: dict[str, Any] = {
        "benchmark": "search",
        "command": f"python -m benchmarks.search --tracks {args.tracks} --texts {args.texts} --seed {args.seed}",
        "machine": machine() | {"core_scaling": [before, core_scaling()]},
        "versions": versions() | {"sqlite": sqlite3.sqlite_version},
        "ways": ways,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, told in ways.items():
        print(name, json.dumps(told))
    return 0


def made_up(n: int, seed: int) -> tuple[list[str], list[str]]:
    """Makes tracks up.

    Args:
        n: how many.
        seed: of the draws.

    Returns:
        n titles and n artists.
    """
    rng = np.random.default_rng(seed)
    every = every_title().to_pylist()
    titles = [every[i] for i in track_titles(n, rng).tolist()]
    letters = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 8 * n).tolist())
    titles = [f"{title} {letters[8 * i : 8 * i + 8]}" if i % 10 == 0 else title for i, title in enumerate(titles)]
    of = rng.integers(max(1, n // 10), size=n).tolist()
    names = artist_names(max(1, n // 10), rng).to_pylist()
    return titles, [names[i] for i in of]


def texts(titles: Sequence[str], artists: Sequence[str], n: int, seed: int) -> dict[str, list[str]]:
    """Draws what is asked.

    Args:
        titles: of the tracks.
        artists: of the tracks.
        n: texts of each kind.
        seed: of the draws.

    Returns:
        Texts by kind.
    """
    drawn = random.Random(seed)
    some = [drawn.randrange(len(titles)) for _ in range(n)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    return {
        "title": [titles[i] for i in some],
        "title, half typed": [titles[i][: drawn.randint(3, 8)] for i in some],
        "artist and title": [f"{artists[i]} {titles[i][:4]}" for i in some],
        "one letter": [drawn.choice(letters) for _ in some],
        "letters": [" ".join(drawn.sample(letters, 5)) for _ in some],
        "most words": [" ".join(drawn.choice(letters) + drawn.choice(letters) for _ in range(WORDS)) for _ in some],
    }


Answer = tuple[list[int], int]
Ask = Callable[[str], Answer]


def sorted_words(titles: Sequence[str], artists: Sequence[str], path: Path) -> tuple[Ask, int]:
    """Makes `TitleWords`.

    Args:
        titles: of the tracks.
        artists: of the tracks.
        path: not used.

    Returns:
        What answers a text, and bytes.
    """
    words = TitleWords.of(StringColumn.of(titles), StringColumn.of(artists))
    popular, allowed = np.arange(len(titles), dtype=np.int32), np.ones(len(titles), bool)

    def ask(text: str) -> Answer:
        found = words.find(words_of(text), allowed, popular, lambda: None)
        return found[:K].tolist(), len(found)

    parts = words.words.data, words.words.offsets, words.offsets, words.rows
    return ask, sum(part.nbytes for part in parts)


def fts(prefixes: tuple[int, ...]) -> Callable[[Sequence[str], Sequence[str], Path], tuple[Ask, int]]:
    """Makes a maker of FTS5 tables.

    Args:
        prefixes: lengths that have an index of their own.

    Returns:
        Takes what `sorted_words` does, and writes a database.
    """

    def make(titles: Sequence[str], artists: Sequence[str], path: Path) -> tuple[Ask, int]:
        db = sqlite3.connect(path)
        more = f", prefix='{' '.join(map(str, prefixes))}'" if prefixes else ""
        db.execute(f"CREATE VIRTUAL TABLE t USING fts5(words, content='', detail=none{more})")
        both = enumerate(zip(titles, artists, strict=True))
        own = ((row, " ".join({*words_of(title), *words_of(artist)})) for row, (title, artist) in both)
        db.executemany("INSERT INTO t(rowid, words) VALUES (?, ?)", own)
        db.execute("INSERT INTO t(t) VALUES ('optimize')")
        db.commit()

        def rows(words: Sequence[str], end: str) -> list[int]:
            query = " AND ".join(f'"{word}"{end}' for word in words)
            return [row for (row,) in db.execute("SELECT rowid FROM t WHERE t MATCH ?", (query,))]

        def ask(text: str) -> Answer:
            words = list(dict.fromkeys(words_of(text)))
            found, whole = np.array(rows(words, "*"), np.int64), np.zeros(len(titles), np.uint8)
            for word in words:
                whole[rows([word], "")] += 1
            best = found[np.argsort(len(words) - whole[found], kind="stable")]
            return best[:K].tolist(), len(best)

        return ask, path.stat().st_size

    return make


def measured(ask: Ask, asked: dict[str, list[str]]) -> tuple[dict[str, Any], list[Answer]]:
    """Asks every text.

    Args:
        ask: answers one.
        asked: texts by kind.

    Returns:
        Milliseconds by kind, median, 99th percentile and most; and the answers.
    """
    told: dict[str, Any] = {}
    answers: list[Answer] = []
    for kind, some in asked.items():
        took_ms = []
        for text in some:
            began_ns = time.perf_counter_ns()
            answers.append(ask(text))
            took_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
        p50, p99, most = np.percentile(took_ms, [50, 99, 100]).round(2).tolist()
        told[kind] = {"p50_ms": p50, "p99_ms": p99, "max_ms": most}
    return told, answers


if __name__ == "__main__":
    sys.exit(main())
