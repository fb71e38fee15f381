"""How soon the page of `lhydra web` shows something: `python -m benchmarks.page STORE --listener ID`.

A server of one worker, a gateway before it, and chromium, whose WebGL is computed by the processor here. Each view is
opened in a browser that has nothing of the page yet: told is the time from opening its address until what it shows is
there. A search is told from the request to the whole answer, as the browser sees it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gateway import gateway
from benchmarks.latency.own_server import serve_command, start_server
from benchmarks.machine import core_scaling, machine, versions
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError
from lhydra.files import write_text

CHROMIUM = "/usr/bin/chromium"
# WebGL on the processor, where there is no GPU.
CHROMIUM_FLAGS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
SHOWN = {"listen": ".tracks > li", "map": ".marks .listed", "operations": ".tile.good"}
WORDS = ("the", "lo", "a li", "night", "no more ri")
SEARCH = """async text => {
  const began = performance.now();
  const reply = await fetch("/lhydra.v1.Recommender/SearchTracks", {method: "POST",
    body: JSON.stringify({text, k: 12}), headers: {"content-type": "application/json"}});
  await reply.json();
  return performance.now() - began;
}"""
PAN = """async () => {
  const canvas = document.querySelector(".map canvas");
  const key = name => canvas.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
  const began = performance.now();
  let frames = 0;
  while (performance.now() - began < 2000) {
    key(frames % 2 ? "ArrowLeft" : "ArrowRight");
    await new Promise(requestAnimationFrame);
    frames += 1;
  }
  return frames / 2;
}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a line for each figure.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--listener", required=True, help="id of a stored listener")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "milliseconds"))
        tracks = Manifest.read(args.store / current_bundle_id(args.store)).n_tracks
        before = core_scaling()
        with start_server(serve_command(args.store, 1)) as server, gateway(server.address) as (port, _):
            told, frames = measured(f"http://127.0.0.1:{port}", args.listener, args.repeats)
    except (LhydraError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    document: dict[str, Any] = {
        "benchmark": "page",
        "command": f"python -m benchmarks.page STORE --listener {args.listener} --repeats {args.repeats}",
        "tracks": tracks,
        "machine": machine() | {"core_scaling": [before, core_scaling()]},
        "versions": versions(),
        "milliseconds": told,
        "map_frames_per_s": frames,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, row in told.items():
        print(f"{name}: {json.dumps(row)} ms")
    print(f"map: {frames:g} frames/s")
    return 0


def measured(address: str, listener: str, repeats: int) -> tuple[dict[str, dict[str, float]], float]:
    """Opens views and searches.

    Args:
        address: of the page.
        listener: whose list and map is opened.
        repeats: how often each.

    Returns:
        Milliseconds (median, least, most) of each view and of a search; frames a second of a map that moves.
    """
    from playwright.sync_api import sync_playwright  # which only the group e2e brings

    told: dict[str, list[float]] = {}
    frames = 0.0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        for repeat in range(repeats + 1):  # the first one warms up server and browser
            for view, shown in SHOWN.items():
                context = browser.new_context(viewport={"width": 1280, "height": 800})
                page = context.new_page()
                began = time.perf_counter()
                page.goto(f"{address}/#/{view}?user={listener}", wait_until="commit")
                page.locator(shown).first.wait_for()
                if repeat:
                    told.setdefault(view, []).append((time.perf_counter() - began) * 1000)
                    if view == "listen":
                        told.setdefault("search", []).extend(page.evaluate(SEARCH, word) for word in WORDS)
                if view == "map" and repeat == repeats:
                    frames = float(page.evaluate(PAN))
                context.close()
        browser.close()
    return {
        name: {
            "median": round(statistics.median(all_ms), 1),
            "least": round(min(all_ms), 1),
            "most": round(max(all_ms), 1),
        }
        for name, all_ms in told.items()
    }, frames


if __name__ == "__main__":
    sys.exit(main())
