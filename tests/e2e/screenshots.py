"""Screenshots of every view of the page, dark and light, wide and narrow: `python -m tests.e2e.screenshots STORE OUT`.

Of the demo's store with `--listener U000003` comes the picture of README.md: OUT/listen-1280-light.png.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.e2e.page_site import browser, served
from tests.harness import free_port

SIZES = ((1280, 800), (360, 780))
VIEWS = {  # what shows that a view is whole
    "listen": ".stored summary",
    "why": ".path .step",
    "new": ".tracks > li",
    "similar": ".tracks > li",
    "compare": ".tracks > li",
    "map": ".marks .listed",
    "operations": ".times th[scope=row]",
}


def main() -> None:
    """Serves the store and looks at it."""
    parser = argparse.ArgumentParser(description="screenshots of every view of the page")
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--listener", default="U000003")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    flags = ("--metrics-port", str(free_port()))
    with served(args.store, "--allow-plays", serve=flags) as (address, _), browser() as chromium:
        for width, height in SIZES:
            for scheme in ("light", "dark"):
                context = chromium.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
                )
                page = context.new_page()
                for view, whole in VIEWS.items():
                    look(page, address, view, args.listener)
                    page.locator(whole).first.wait_for()
                    page.wait_for_load_state("networkidle") if view != "operations" else None
                    page.screenshot(path=args.out / f"{view}-{width}-{scheme}.png")
                context.close()


def look(page: Any, address: str, view: str, listener: str) -> None:
    """Opens a view, with something to see in it."""
    page.goto(f"{address}/#/listen?{urlencode({'user': listener})}")
    page.locator(".tracks > li").first.wait_for()
    ids = [str(one.get_attribute("data-id")) for one in page.locator(".tracks > li").all()]
    params = {
        "listen": {"user": listener},
        "why": {"user": listener, "ask": json.dumps({"diversity": {"maxPerArtist": 1}}), "why": ids[-1]},
        "new": {"ask": json.dumps({"history": {"entries": [{"trackId": one} for one in ids[:3]]}})},
        "similar": {"seed": ids[0], "not": ids[5], "user": listener, "own": "no"},
        "compare": {"user": listener},
        "map": {"user": listener},
        "operations": {},
    }[view]
    path = "listen" if view in ("why", "new") else view
    page.goto(f"{address}/#/{path}?{urlencode(params)}")
    if view == "listen":  # a list that moves: one play that goes along
        session = {"session": {"entries": [{"trackId": ids[1]}]}}
        page.goto(f"{address}/#/listen?{urlencode(params | {'ask': json.dumps(session)})}")
        page.locator(".move:not(:empty)").first.wait_for()
        page.locator(f".tracks > li[data-id='{ids[1]}']").wait_for(state="detached")
    page.wait_for_url(re.compile(path))


if __name__ == "__main__":
    main()
