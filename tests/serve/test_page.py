"""The search page in a real browser, over a real server."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from browser import Tab, chromium
from matplotlib.image import imread
from serving import Built, Live, build, live
from tiny import DOCUMENTS, Tiny

from shortlist.data.formats import write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")]

KEY = "a-key-of-some-length"
QUESTION = "which colour has the apple"
EVIL = "<img src=x onerror=alert(1)> & <b>apple</b>"
RESULTS = "document.querySelectorAll('#results li').length"
STATUS = "document.getElementById('status').textContent"
MARKED = "[...document.querySelectorAll('mark')].map((part) => part.textContent)"


@pytest.fixture(scope="module")
def server(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Over the tiny collection, of which one document holds HTML."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(tiny.collection, folder / "collection")
    first = DOCUMENTS[0]._replace(title=EVIL, url="https://example.org/apple")
    documents = [first, DOCUMENTS[1]._replace(url="javascript:alert(1)"), *DOCUMENTS[2:]]
    write_corpus(folder / "collection" / "corpus.jsonl", documents)
    built: Built = build(tiny._replace(collection=folder / "collection"), folder)
    with live(built.names, folder / "stderr") as server:
        yield server


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(autouse=True)
def no_complaints(tab: Tab) -> Iterator[None]:
    tab.complaints.clear()
    yield
    tab.run("1")  # so that what is on its way has come
    assert tab.complaints == []


def shown(tab: Tab) -> list[str]:
    """What is told of each result beside its text."""
    return tab.run("[...document.querySelectorAll('.places')].map((line) => line.textContent)")


def search(tab: Tab, server: Live, text: str) -> None:
    tab.open(server.url)
    tab.wait("document.querySelector('input[name=stage]') !== null")
    tab.type(text)
    tab.press("Enter")


def test_typing_a_query_shows_results_scores_movement_and_times(tab: Tab, server: Live, tmp_path: Path):
    search(tab, server, QUESTION)
    tab.wait(f"{RESULTS} === 10")
    assert tab.run(STATUS) == "10 results"
    for line in shown(tab):
        assert "dense #" in line
        assert "hybrid #" in line
        assert "reranker #" in line
    labels = tab.run("[...document.querySelectorAll('.moved')].map((part) => part.getAttribute('aria-label'))")
    assert any(label.startswith("moved up ") for label in labels)
    assert any(label.startswith("moved down ") for label in labels)
    times = tab.run("document.getElementById('times').textContent")
    assert all(f"{stage} " in times for stage in ("bm25", "dense", "documents", "reranker", "other work"))
    parts = tab.run("[...document.querySelectorAll('#times span')].map((part) => part.textContent)")
    total = float(tab.run("document.querySelector('#times summary').textContent").removesuffix(" s"))
    assert sum(float(part.split()[-2]) for part in parts) == pytest.approx(1000 * total, abs=6)
    assert "colour" in tab.run(MARKED)
    assert tab.run("document.querySelectorAll('#results details[open]').length") == 0
    picture = imread(tab.shoot(tmp_path / "light.png"))
    assert picture[..., :3].std() > 0.05  # something is drawn


def test_what_moved_is_the_difference_of_both_ranks(tab: Tab, server: Live):
    search(tab, server, QUESTION)
    tab.wait(f"{RESULTS} === 10")
    moved = tab.run(
        "[...document.querySelectorAll('.places')].map((line) => ["
        "line.querySelector('[data-stage=hybrid]').textContent, "
        "line.querySelector('[data-stage=reranker]').textContent, line.querySelector('.moved').textContent])"
    )
    for before, after, told in moved:
        ranks = [int(place.split("#")[1].split(" ")[0]) for place in (before, after)]
        sign = {"▲": 1, "▼": -1, "=": 0}[told[0]]
        assert sign * int(told[1:] or 0) == ranks[0] - ranks[1]


def test_switching_the_stage_searches_again_and_the_link_tells_it(tab: Tab, server: Live):
    search(tab, server, QUESTION)
    tab.wait(f"{RESULTS} === 10")
    tab.run("document.querySelector('input[value=bm25]').click()")
    tab.wait(f"{RESULTS} > 0 && !document.querySelector('[data-stage=dense]')")
    tab.run("document.getElementById('rerank').click()")
    tab.wait(f"{RESULTS} > 0 && !document.querySelector('[data-stage=reranker]')")
    assert {*tab.run(MARKED)} == {"colour", "apple"}
    wanted = {"q": [QUESTION], "stage": ["bm25"], "k": ["10"], "rerank": ["0"]}
    assert parse_qs(urlsplit(tab.run("location.href")).query) == wanted
    assert tab.run("document.title") == f"{QUESTION} - Search"


def test_a_link_makes_the_same_search_and_back_goes_back(tab: Tab, server: Live):
    tab.open(f"{server.url}/?q=apple&stage=dense&k=5&rerank=0")
    tab.wait(f"{RESULTS} === 5")
    first = shown(tab)
    assert all("dense #" in line and "reranker" not in line and "hybrid" not in line for line in first)
    tab.run("document.getElementById('k').value = '20'")
    tab.run("document.getElementById('k').dispatchEvent(new Event('change', {bubbles: true}))")
    tab.wait(f"{RESULTS} === 12")
    tab.run("history.back()")
    tab.wait(f"{RESULTS} === 5")
    assert shown(tab) == first
    assert tab.run("document.getElementById('query').value") == "apple"


def test_texts_are_shown_as_they_are_and_never_run(tab: Tab, server: Live):
    tab.open(f"{server.url}/?{urlencode({'q': f'apple {EVIL}', 'k': 20})}")
    tab.wait(f"{RESULTS} === 12")
    titles = tab.run("[...document.querySelectorAll('h2')].map((title) => title.textContent)")
    assert any(title.endswith(EVIL) for title in titles)
    assert tab.run("document.querySelectorAll('main img, main b').length") == 0
    assert tab.run("[...document.querySelectorAll('main a')].map((link) => link.href)") == ["https://example.org/apple"]


def test_nothing_typed_and_nothing_found_are_said(tab: Tab, server: Live):
    tab.open(server.url)
    tab.wait(f"{STATUS} === 'Type a query.'")
    tab.open(f"{server.url}/?q=zebra&stage=bm25")
    tab.wait(f"{STATUS} === 'Nothing found.'")
    assert tab.run(RESULTS) == 0


def test_the_keyboard_reaches_query_and_results(tab: Tab, server: Live):
    search(tab, server, QUESTION)
    tab.wait(f"{RESULTS} === 10")
    tab.run("document.activeElement.blur()")
    place = "[...document.querySelectorAll('#results li')].indexOf(document.activeElement)"
    for key, expected in (("j", 0), ("j", 1), ("k", 0)):
        tab.press(key)
        assert tab.run(place) == expected
    tab.press("/")
    assert tab.run("document.activeElement.id") == "query"
    assert tab.run("document.getElementById('query').value") == QUESTION


def test_everything_to_operate_has_a_name_for_screen_readers(tab: Tab, server: Live):
    search(tab, server, QUESTION)
    tab.wait(f"{RESULTS} === 10")
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    operated = {"searchbox", "button", "radio", "checkbox", "combobox", "list", "status", "search"}
    names = {(role, name.strip()) for role, name in found if role in operated}
    assert {("searchbox", "Query"), ("button", "Search"), ("radio", "bm25"), ("checkbox", "rerank")} <= names
    assert ("list", "Results") in names
    assert not {role for role, name in names if not name} & {"searchbox", "button", "radio", "checkbox", "combobox"}


def test_narrow_screens_and_dark_ones(tab: Tab, server: Live, tmp_path: Path):
    search(tab, server, QUESTION)
    tab.wait(f"{RESULTS} === 10")
    tab.send("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=True)
    assert tab.run("document.documentElement.scrollWidth") <= 320
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab.send("Emulation.setEmulatedMedia", features=features)
    picture = imread(tab.shoot(tmp_path / "dark.png"))
    assert picture[2, 2, :3].max() < 0.2
    tab.send("Emulation.setEmulatedMedia", features=[])
    tab.send("Emulation.clearDeviceMetricsOverride")


def test_a_key_is_asked_for_and_errors_are_shown(tab: Tab, built: Built, tmp_path: Path):
    (tmp_path / "key").write_text(KEY)
    with live({**built.names, "api_key_file": tmp_path / "key"}, tmp_path / "stderr") as server:
        tab.open(f"{server.url}/?q=apple")
        tab.wait("!document.getElementById('locked').hidden && document.activeElement.id === 'key'")
        assert "a key is needed" in tab.run("document.getElementById('error').textContent")
        tab.type(KEY)
        tab.press("Enter")
        tab.wait(f"{RESULTS} === 10")
        assert tab.run("document.getElementById('locked').hidden && document.getElementById('error').hidden")
        assert KEY not in json.dumps(tab.run("[location.href, {...localStorage}, {...sessionStorage}]"))
    tab.run("document.getElementById('rerank').click()")
    tab.wait("document.getElementById('error').textContent === 'The server does not answer.'")
    tab.complaints.clear()  # the browser's own, about 401 and the connection


def test_fields_of_results_can_be_clicked_and_a_citation_copied(tab: Tab, tiny: Tiny, tmp_path: Path):
    shutil.copytree(tiny.collection, tmp_path / "collection")
    places = {"document": "a.md", "page": 3, "begin": 0, "end": 9}
    documents = [
        document._replace(
            title="Part > Section", metadata={"lang": "d'e" if i % 2 else "en", "tags": ["x"] * (i > 8)} | places
        )
        for i, document in enumerate(DOCUMENTS)
    ]
    write_corpus(tmp_path / "collection" / "corpus.jsonl", documents)
    built: Built = build(tiny._replace(collection=tmp_path / "collection"), tmp_path)
    with live(built.names, tmp_path / "stderr") as server:
        tab.open(f"{server.url}/?q=apple&k=20")
        tab.wait(f"{RESULTS} === 12")
        facets = "[...document.querySelectorAll('#facets button')].map((one) => one.textContent)"
        assert {*tab.run(facets)} == {"d'e (6)", "en (6)", "x (3)"}
        tab.run(
            "[...document.querySelectorAll('#facets button')].find((one) => one.textContent.startsWith('d')).click()"
        )
        tab.wait(f"{RESULTS} === 6")
        tab.run(
            "[...document.querySelectorAll('#facets button')].find((one) => one.textContent.startsWith('x')).click()"
        )
        tab.wait(f"{RESULTS} === 2")
        assert parse_qs(urlsplit(tab.run("location.href")).query)["where"] == ["lang = 'd''e' and tags has 'x'"]
        assert "a.md, page 3characters 0 to 9" in tab.run("document.querySelector('.source').textContent")
        tab.run("navigator.clipboard.writeText = (text) => { window.copied = text; }")
        tab.run("document.querySelector('.source button').click()")
        tab.wait("window.copied !== undefined")
        assert tab.run("window.copied") == "Part > Section, a.md, page 3"
        tab.run("document.getElementById('where').value = 'lang ='")
        tab.run("document.getElementById('form').requestSubmit()")
        tab.wait("!document.getElementById('error').hidden")
        assert "at character 6" in tab.run("document.getElementById('error').textContent")
        tab.complaints.clear()  # the browser's own, about 400
