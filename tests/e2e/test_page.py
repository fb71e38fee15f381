"""The page of `lhydra web` in a browser, before a live server with a small real bundle."""

import gzip
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import pytest

from lhydra.bundle.manifest import current_bundle_id
from lhydra.data.dataset import Dataset, user_states
from lhydra.users.store import open_users
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings
from tests.e2e.page_site import BUILT, CHROMIUM, ROOT, SOURCE, Command, browser, of_store, served
from tests.harness import free_port, until

if CHROMIUM is None:
    pytest.skip("E2E TOOLS ABSENT: chromium (Debian's package)", allow_module_level=True)
pytest.importorskip("playwright", reason="E2E TOOLS ABSENT: playwright (make e2e installs it)")
from playwright.sync_api import expect

expect.set_options(timeout=60_000)  # ms, as `until` waits: five seconds are not enough for every machine
AXE = SOURCE / "node_modules" / "axe-core" / "axe.min.js"
BUILDS = (SOURCE / "node_modules" / "vite").is_dir() and shutil.which("npm")
built = pytest.mark.skipif(not BUILDS, reason="E2E TOOLS ABSENT: npm, and what `npm ci` installs in page_source")
WIDTHS = (1280, 820, 360)
ODD = ("<img src=x onerror=alert(1)>", "שלום עולם (متابعة)", "🎧 Café & \u202eReversed")


@pytest.fixture(scope="module")
def store(tiny_dataset: Dataset, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose most played tracks have odd titles."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(tiny_dataset.path, folder / "dataset")
    tracks = pd.read_parquet(folder / "dataset" / "tracks.parquet")
    top = tracks["train_plays"].nlargest(len(ODD)).index
    tracks.loc[top, "name"] = list(ODD)
    tracks.to_parquet(folder / "dataset" / "tracks.parquet")
    for seed in (0, 1):
        settings = RebuildSettings(recall_users=20, gate_users=20, seed=seed)
        rebuild(tiny_model, Dataset.open(folder / "dataset"), folder / "store", settings)
    users = open_users(None, folder / "store")
    users.load(user_states(tiny_dataset, "now"))
    users.close()
    return folder / "store"


@pytest.fixture(scope="module")
def site(store: Path) -> Iterator[tuple[str, Command]]:
    with served(store, "--allow-plays", serve=("--metrics-port", str(free_port()))) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@contextmanager
def opened(chromium: Any, address: str, width: int = 1280, *, gone: bool = False) -> Iterator[Any]:
    """A page that has said nothing amiss when it closes: no error, no breach of its policy."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
    page, said = context.new_page(), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.goto(address)
    yield page
    network = re.compile("Failed to load resource: (the server responded|net::)")
    assert [one for one in said if not (gone and network.match(one))] == []
    context.close()


def rows(page: Any) -> list[str]:
    """The tracks of the list, once it is whole."""
    expect(page.locator(".tracks > li")).to_have_count(10)
    return [str(one.get_attribute("data-id")) for one in page.locator(".tracks > li").all()]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_listener_s_list_moves(site: tuple[str, Command], chromium: Any, width: int) -> None:
    with opened(chromium, f"{site[0]}/#/listen?user=U000001", width) as page:
        before = rows(page)
        expect(page.locator(".status .tier")).to_have_text("personal")
        page.get_by_role("button", name=re.compile("^Exclude:")).first.click()
        expect(page.locator(f'.tracks > li[data-id="{before[0]}"]')).to_have_count(0)
        assert rows(page)[:9] == before[1:]
        expect(page.locator(".tracks .move.up")).to_have_count(9)
        expect(page.locator(".tracks .move.new")).to_have_count(1)
        page.get_by_role("button", name=re.compile("^Play:")).first.click()
        expect(page.locator(f'.tracks > li[data-id="{before[1]}"]')).to_have_count(0)  # it is heard now
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_rules_and_why_not(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, f"{site[0]}/#/listen?user=U000002") as page:
        listed = rows(page)
        page.locator(".tracks .what").nth(2).click()
        expect(page.locator(".why .verdict")).to_have_text("Place 3 of 10")
        expect(page.locator(".why .step.passed")).to_have_count(4)
        page.get_by_label("Tracks", exact=True).fill("3")
        page.keyboard.press("Enter")
        expect(page.locator(".tracks > li")).to_have_count(3)
        page.goto(f"{site[0]}/#/listen?user=U000002&ask=%7B%22k%22%3A3%7D&why={listed[5]}")
        expect(page.locator(".why .verdict")).to_have_text("Not in the list: others score higher")
        page.locator(".why .bring-in button").first.click()
        expect(page.locator(".why .verdict")).to_have_text(re.compile("^Place"))
        page.keyboard.press("Escape")
        nothing = urlencode({"user": "U000002", "ask": '{"filter": {"genres": ["none"]}}', "why": listed[5]})
        page.goto(f"{site[0]}/#/listen?{nothing}")
        expect(page.locator(".why .step.unreached")).to_have_count(3)  # dim, not hidden
        assert min(page.locator(".why .step").evaluate_all("steps => steps.map(step => step.clientHeight)")) > 20


def test_the_genres_of_the_catalogue_are_offered(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, f"{site[0]}/#/listen?user=U000001") as page:
        rows(page)
        until(lambda: page.locator("datalist option").count() > 3)
        offered = page.locator("datalist option").evaluate_all("options => options.map(option => option.value)")
        page.get_by_label("Genre", exact=True).fill(offered[0])
        page.keyboard.press("Enter")
        expect(page.locator(".shape .chips").first).to_have_text(offered[0])
        expect(page.locator(".tracks > li").first).to_be_visible()


def test_artists_are_offered_and_found_in_any_case(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, f"{site[0]}/#/listen?user=U000001") as page:
        rows(page)
        artist = page.locator(".tracks .artist").last.inner_text()
        field = page.get_by_label("Artist", exact=True)
        field.press_sequentially(artist.upper())
        offered = page.locator("datalist option").evaluate_all
        until(lambda: artist in offered("options => options.map(option => option.value)"))
        field.press("Enter")
        expect(page.locator(".shape .chips").first).to_have_text(artist)
        expect(page.locator(".tracks > li .artist", has_not_text=artist)).to_have_count(0)  # once the list is there
        expect(page.locator(".tracks > li .artist", has_text=artist).first).to_be_visible()


def test_what_is_chosen_while_an_artist_is_looked_up_stays(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, f"{site[0]}/#/listen?user=U000001") as page:
        rows(page)
        artist, held = page.locator(".tracks .artist").last.inner_text(), []

        def hold(route: Any) -> None:
            held.append(route)

        page.route("**/SearchTracks", hold)
        page.get_by_label("Artist", exact=True).fill(artist)
        page.keyboard.press("Enter")
        page.get_by_label("Tracks", exact=True).fill("3")
        page.keyboard.press("Enter")
        expect(page.locator(".tracks > li")).to_have_count(3)
        for route in held:
            route.continue_()
        expect(page.locator(".shape .chips").first).to_have_text(artist)
        expect(page.get_by_label("Tracks", exact=True)).to_have_value("3")


def test_what_is_typed_stays_when_an_answer_arrives(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, f"{site[0]}/#/listen?user=U000001") as page:
        rows(page)
        held: list[Any] = []
        page.route("**/Recommend", lambda route: held.append(route))
        with page.expect_request("**/Recommend"):
            page.get_by_label("Heard tracks return").select_option("like any other")
        page.get_by_label("Tracks", exact=True).fill("3")  # and Enter is not pressed yet
        before = page.locator(".tracks").inner_text()
        for route in held:
            route.continue_()
        until(lambda: page.locator(".tracks").inner_text() != before)
        expect(page.get_by_label("Tracks", exact=True)).to_have_value("3")
        page.unroute("**/Recommend")
        page.keyboard.press("Enter")
        expect(page.locator(".tracks > li")).to_have_count(3)


def test_what_keeps_a_track_out_is_said_in_plain_words(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, f"{site[0]}/#/listen?user=U000002", gone=True) as page:
        listed = rows(page)
        never = urlencode({"user": "U000002", "ask": '{"filter": {"minYear": 2999}}', "why": listed[5]})
        page.goto(f"{site[0]}/#/listen?{never}")
        expect(page.locator(".why .step.stopped .body").first).to_have_text("the years")
        turned = urlencode({"user": "U000002", "ask": '{"filter": {"minYear": 2999, "maxYear": 1}}'})
        page.goto(f"{site[0]}/#/listen?{turned}")
        expect(page.locator(".failure").first).to_contain_text("the years")
        assert "filter." not in page.locator("main").inner_text()


def test_rule_sets_go_by_their_names(store: Path, chromium: Any, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("sets: {radio: {caps: {artist: 1}}}")
    flags = ("--rules", str(tmp_path / "rules.yaml"))
    with served(store, serve=flags) as (address, _), opened(chromium, f"{address}/#/listen?user=U000001") as page:
        rows(page)
        page.get_by_label("Rule set").select_option("radio")
        page.get_by_label("Tracks", exact=True).fill("30")
        page.keyboard.press("Enter")
        until(lambda: page.locator(".tracks > li").count() > 10)
        artists = [one.inner_text() for one in page.locator(".tracks > li .artist").all()]
        assert len(set(artists)) == len(artists)
        page.get_by_label("Rule set").select_option("none")
        until(lambda: len({one.inner_text() for one in page.locator(".tracks > li .artist").all()}) < 30)


@contextmanager
def asking(address: str) -> Iterator[None]:
    """Four callers of this host that ask all the time: they take what is refilled before the page can."""
    done = threading.Event()

    def ask() -> None:
        calling = HTTPConnection(address.removeprefix("http://"), timeout=60)
        while not done.is_set():
            calling.request("GET", "/about")
            calling.getresponse().read()
        calling.close()

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        try:
            yield
        finally:
            done.set()
        for one in asked:
            one.result()


def test_who_asks_too_often_is_told_to_wait(store: Path, chromium: Any) -> None:
    with (
        served(store, "--rate", "25") as (address, _),
        opened(chromium, f"{address}/#/listen?user=U000001", gone=True) as page,
    ):
        rows(page)
        tried = cycle(range(11, 50))

        def refused() -> bool:
            page.get_by_label("Tracks", exact=True).fill(k := str(next(tried)))
            page.keyboard.press("Enter")
            failure = page.locator(".failure", has_text="Try again in")
            expect(failure.or_(page.locator(f".tracks > li:nth-child({k})")).first).to_be_visible()
            return bool(failure.count())

        with asking(address):
            until(refused)


def test_the_button_of_colours_changes_them(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, site[0]) as page:
        seen = []
        for name in ("light", "dark"):
            page.get_by_role("button", name=re.compile("^Colours:")).click()
            expect(page.locator("html")).to_have_css("color-scheme", name)
            seen.append(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
        assert seen[0] != seen[1]


def test_titles_are_text(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, f"{site[0]}/#/listen") as page:
        expect(page.locator(".status .tier")).to_have_text("popular")
        rows(page)
        search = page.get_by_role("combobox", name="Why is a track not here?")
        for title, word in zip(ODD, ("onerror", "שלום", "Café"), strict=True):
            search.fill(word)
            expect(page.get_by_role("option").first.locator(".title")).to_have_text(title)
        search.press("Enter")
        expect(page.locator(".why h2")).to_have_text(ODD[-1])


VIEWS = {
    "listen?user=U000001": ".tracks > li",
    "listen?user=U000001&why=T0000010": ".why .path",
    "listen": ".tracks > li",
    "similar?user=U000001&seed=T0000010": ".tracks > li",
    "compare?user=U000001": ".tracks > li",
    "map?user=U000001": ".marks .listed",
    "operations": ".table .badge",
}


@pytest.mark.parametrize("width", WIDTHS)
def test_every_view_is_there_and_may_be_used_by_all(site: tuple[str, Command], chromium: Any, width: int) -> None:
    """By whoever reads it aloud, uses the keyboard alone or a phone, in dark and in light."""
    with opened(chromium, f"{site[0]}/#/listen", width) as page:
        for at, (view, shown) in enumerate(VIEWS.items()):
            page.emulate_media(color_scheme=("dark", "light")[(at + WIDTHS.index(width)) % 2], reduced_motion="reduce")
            page.goto(f"{site[0]}/#/{view}")
            expect(page.locator(shown).first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
            if AXE.exists():
                page.evaluate(AXE.read_text())  # not a script of the page, whose policy would refuse it
                faults = page.evaluate("axe.run({resultTypes: ['violations']}).then(found => found.violations)")
                serious = [one for one in faults if one["impact"] in ("serious", "critical")]
                said = [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in serious]
                assert said == [], (view, width, said)


def test_similar_tracks_by_keyboard(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, f"{site[0]}/#/similar") as page:
        page.get_by_role("combobox", name="Like these", exact=True).fill("the")
        expect(page.get_by_role("option").first).to_be_visible()
        page.keyboard.press("Enter")
        before = rows(page)
        page.get_by_role("button", name=re.compile("^Unlike this")).first.focus()
        page.keyboard.press("Enter")
        expect(page.locator(f'.tracks > li[data-id="{before[0]}"]')).to_have_count(0)
        assert set(rows(page)) != set(before)
        expect(page.locator(".chip.against")).to_have_count(1)
        page.go_back()
        expect(page.locator(".chip.against")).to_have_count(0)
        expect(page.locator(".tracks > li").first).to_have_attribute("data-id", before[0])
        assert rows(page) == before


def test_the_map_finds_tracks_under_the_pointer(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, f"{site[0]}/#/map?user=U000001") as page:
        mark = page.locator(".marks .listed").first
        expect(mark).to_be_visible()

        def pointed_at() -> bool:  # marks come to their places with the first drawing
            where = mark.bounding_box()
            page.mouse.move(where["x"] + where["width"] / 2 - 1, where["y"] + where["height"] / 2)
            page.mouse.move(where["x"] + where["width"] / 2, where["y"] + where["height"] / 2)
            return bool(page.locator(".tip .title").count())

        until(pointed_at)
        expect(page.locator(".tip .title")).not_to_be_empty()
        where = mark.bounding_box()
        page.locator(".map canvas").focus()
        page.keyboard.press("+")
        until(lambda: mark.bounding_box() != where)
        page.keyboard.press("0")
        until(lambda: mark.bounding_box() == where)


def test_operations_counts_what_was_asked(site: tuple[str, Command], chromium: Any) -> None:
    with opened(chromium, f"{site[0]}/#/operations") as page:
        expect(page.locator(".tile").first).to_contain_text("serving")
        row = page.locator(".times tr", has=page.get_by_role("rowheader", name="Recommend", exact=True))
        expect(row.locator("td").first).not_to_have_text("0")
        expect(page.locator(".badge", has_text="serving")).to_have_count(1)
        page.locator(".gate summary").first.click()
        expect(page.locator(".gate li").first).to_contain_text("passed")
        before = row.locator("td").first.inner_text()
        page.evaluate(
            """() => fetch("/lhydra.v1.Recommender/Recommend", {method: "POST", body: '{"userId": "x", "k": 3}',
                headers: {"content-type": "application/json"}})"""
        )
        expect(row.locator("td").first).not_to_have_text(before, timeout=15_000)  # by itself


def test_two_bundles_lie_side_by_side(store: Path, chromium: Any) -> None:
    """With a server that the gateway started by itself, and a second one of the bundle before."""
    with of_store(store, "--compare", "previous") as address:
        with opened(chromium, f"{address}/#/compare?user=U000001") as page:
            expect(page.locator(".tracks")).to_have_count(2)
            expect(page.locator(".compare .note b").first).to_be_visible()
            bundles = [one.get_attribute("title") for one in page.locator(".list .summary").all()]
            assert sorted(map(str, bundles)) == sorted(
                one.name for one in store.iterdir() if (one / "manifest.json").exists()
            )
            here, there = (
                [str(row.get_attribute("data-id")) for row in one.locator("> li").all()]
                for one in page.locator(".tracks").all()
            )
            expect(page.locator(".move.new")).to_have_count(2 * len(set(here) - set(there)))
        with opened(chromium, f"{address}/#/operations") as page:  # such a server counts by itself
            expect(page.get_by_role("rowheader", name="Recommend", exact=True)).to_be_visible()


def test_a_token_comes_by_a_form(store: Path, chromium: Any, tmp_path: Path) -> None:
    admin, reads = "a" * 32, "r" * 32
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{reads} read reader\n{admin} admin admin\n")
    tokens.chmod(0o600)
    flags = ("--token-file", str(tokens))
    with served(store, serve=flags) as (address, _), opened(chromium, f"{address}/#/listen", gone=True) as page:
        page.get_by_label("Token").fill("wrong" * 6)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator(".login .failure")).to_contain_text("request")
        page.get_by_label("Token").fill(reads)
        page.get_by_role("button", name="Log in").click()
        rows(page)
        page.goto(f"{address}/#/listen?user=U000001")
        expect(page.locator(".listener")).to_contain_text("needs the right admin")
        page.goto(f"{address}/#/operations")
        expect(page.locator(".failure")).to_contain_text("The token does not allow this")
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()


def test_the_server_goes_away_and_comes_back_with_another_bundle(store: Path, chromium: Any) -> None:
    with served(store) as (address, server), opened(chromium, f"{address}/#/listen?user=U000003", gone=True) as page:
        before = rows(page)
        page.get_by_role("button", name=re.compile("^Play:")).first.click()  # it only reads: the play goes along
        expect(page.locator(".plays .tag").first).to_have_text("not recorded")
        server.stop()
        expect(page.locator(".banner.gone")).to_be_visible(timeout=30_000)
        server.start()
        expect(page.locator(".banner.gone")).to_have_count(0, timeout=60_000)
        assert before[0] not in rows(page)
        now = current_bundle_id(store)
        other = next(one.name for one in store.iterdir() if one.name != now and (one / "manifest.json").exists())
        (store / "CURRENT.new").write_text(f"{other}\n")
        (store / "CURRENT.new").replace(store / "CURRENT")
        until(lambda: page.locator(".bundle").get_attribute("title") == other)
        (store / "CURRENT.new").write_text(f"{now}\n")
        (store / "CURRENT.new").replace(store / "CURRENT")


def test_the_page_is_small() -> None:
    sizes = [
        min(one.stat().st_size for one in (path, path.with_name(path.name + ".br")) if one.exists())
        for path in BUILT.rglob("*")
        if path.is_file() and path.suffix not in (".br", ".gz")
    ]
    assert sum(sizes) <= 300_000


@built
def test_what_is_served_is_what_the_source_builds(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    subprocess.run(["npx", "tsc", "--noEmit"], cwd=SOURCE, check=True, timeout=120)
    argv = ["npx", "vite", "build", "--outDir", str(folder), "--logLevel", "error"]
    subprocess.run(argv, cwd=SOURCE, check=True, timeout=120)
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.suffix not in (".br", ".gz")}
    assert names == {path.relative_to(BUILT) for path in BUILT.rglob("*") if path.suffix not in (".br", ".gz")}
    for name in (name for name in names if (folder / name).is_file()):
        assert (folder / name).read_bytes() == (BUILT / name).read_bytes(), name
        packed = BUILT / f"{name}.gz"
        assert not packed.exists() or gzip.decompress(packed.read_bytes()) == (BUILT / name).read_bytes(), name


@built
def test_a_renamed_field_does_not_compile(tmp_path: Path) -> None:
    """The types are those of the .proto, so a page that is out of step is red before anybody opens it."""
    types = ROOT / "protos" / "lhydra_protos" / "v1" / "recommender.ts"
    renamed = tmp_path / "recommender.ts"
    renamed.write_text(types.read_text().replace("stoppedBy?:", "stoppedFor?:"))
    config = tmp_path / "tsconfig.json"
    paths = f'{{"#api": ["{renamed}"]}}'
    config.write_text(
        f'{{"extends": "{SOURCE}/tsconfig.json", "include": ["{SOURCE}/src"], "compilerOptions": {{"paths": {paths}, '
        f'"typeRoots": ["{SOURCE}/node_modules"]}}}}'
    )
    found = subprocess.run(["npx", "tsc", "-p", str(config)], cwd=SOURCE, capture_output=True, text=True, timeout=120)
    assert "Property 'stoppedBy' does not exist" in found.stdout
