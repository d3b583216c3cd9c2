"""The page in Debian's chromium, as people see and use it; skipped without it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from product_classificator.review.app import create_app
from product_classificator.review.history import History
from product_classificator.review.queue import View
from tests.browser import opened_chromium, served

INLINE_SCRIPT = """() => {
  const script = document.createElement("script");
  script.textContent = "window.x = 1";
  document.body.append(script);
}"""
pytestmark = pytest.mark.slow


@pytest.fixture
def url(review):
    with served(create_app(review)) as url:
        yield url


@pytest.fixture(scope="module")
def chromium():
    with opened_chromium() as browser:
        yield browser


@pytest.fixture
def enter(chromium):
    """Opens a page and signs in; `problems` collects what a browser complains about."""
    pages = []

    def start(url, token, name="Anna", width=1280, **options):
        context = chromium.new_context(viewport={"width": width, "height": 800}, **{"locale": "en-US", **options})
        page = context.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text) if is_problem(message) else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith((url, "data:")) or page.problems.append(request.url))
        page.goto(url)
        page.fill("[name=name]", name)
        page.fill("[name=secret]", token)
        page.keyboard.press("Enter")
        page.wait_for_selector("#work")
        pages.append(page)
        return page

    yield start
    for page in pages:
        page.context.close()


def is_problem(message):
    """Some photos of the shop are missing, and a letter ends the search before it, which htmx calls an error."""
    is_expected = any(text in message.text for text in ("404", "htmx:afterRequest", "htmx:sendAbort"))
    return message.type == "error" and not is_expected


def row_of(page):
    return page.get_attribute("#work", "data-row")


def press(page, key):
    """Presses a key and waits for another product; returns the milliseconds that it took."""
    row = row_of(page)
    started = time.perf_counter()
    page.keyboard.press(key)
    page.wait_for_function("row => document.querySelector('#work').dataset.row !== row", arg=row, polling=5)
    return 1000 * (time.perf_counter() - started)


def products_of(history):
    rows = history.rows("SELECT product, characteristic FROM live WHERE kind <> 'skip'")
    assert len({tuple(row) for row in rows}) == len(rows), "something was decided twice"
    return {row["product"] for row in rows}


def test_thirty_products_are_decided_by_keys_alone(url, review, enter):
    page, rows = enter(url, review.access.token), []
    for number in range(30):
        rows.append(int(row_of(page)))
        if number % 5 == 3:  # another label
            page.keyboard.press("2")
            page.wait_for_selector("[name^=t][value='1']", state="attached")
        if number % 7 == 4:
            page.keyboard.press("ArrowDown")
            page.keyboard.press("n")
            page.wait_for_selector(".nothing[aria-pressed=true]")
        if number == 12:
            page.reload()
            page.wait_for_selector("#work")
            assert int(row_of(page)) == rows[-1]
        press(page, "Enter")
    assert len(set(rows)) == 30
    assert products_of(review.history) == {review.products.id(row) for row in rows}
    assert page.problems == []


def test_keys_typed_ahead_are_for_the_pages_that_come(url, review, enter):
    page = enter(url, review.access.token)
    page.route("**/decide", lambda route: (time.sleep(0.2), route.continue_()))
    for key in ("Enter", "2", "Enter", "s", "Enter"):
        page.keyboard.press(key)
    for _ in range(100):
        page.wait_for_timeout(50)
        kinds = [row["kind"] for row in review.history.rows("SELECT kind FROM actions ORDER BY id")]
        if len(kinds) == 4:
            break
    assert kinds == ["accept", "accept", "skip", "accept"]
    assert len(products_of(review.history)) == 3
    assert page.problems == []


def test_undo_skip_search_and_help_by_keys(url, review, enter):
    page = enter(url, review.access.token)
    first = row_of(page)
    press(page, "Enter")
    press(page, "u")
    assert row_of(page) == first
    assert products_of(review.history) == set()
    page.keyboard.press("/")
    page.keyboard.type("so")
    page.wait_for_selector("#found .offer:first-of-type:text-is('sock')")
    page.keyboard.press("Enter")
    page.wait_for_selector("#palette", state="hidden")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    press(page, "s")
    assert review.history.rows("SELECT kind FROM live")[0]["kind"] == "skip"
    assert page.problems == []


def test_the_grid_by_keys(url, review, enter):
    page = enter(url, review.access.token)
    page.goto(f"{url}/grid?characteristic=kind")
    shown = page.locator("[name=rows]").evaluate_all("inputs => inputs.map(input => input.value)")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert page.locator("[name=wrong]:checked").evaluate_all("boxes => boxes.map(box => box.value)") == [shown[1]]
    page.keyboard.press("Enter")
    page.wait_for_function("row => !document.querySelector(`[name=rows][value='${row}']`)", arg=shown[0])
    rows = review.history.rows("SELECT product FROM live WHERE kind = 'grid'")
    assert {row["product"] for row in rows} == {review.products.id(int(row)) for row in shown} - {
        review.products.id(int(shown[1]))
    }
    page.keyboard.press("u")
    page.wait_for_selector(f"[name=rows][value='{shown[0]}']", state="attached")
    assert review.history.current() == []


def test_two_reviewers_at_once(url, review, enter):
    anna, boris = enter(url, review.access.token, "Anna"), enter(url, review.access.token, "Boris")
    seen = {"Anna": [], "Boris": []}
    for _ in range(10):
        for name, page in (("Anna", anna), ("Boris", boris)):
            seen[name].append(row_of(page))
            press(page, "Enter")
    boris.reload()
    assert row_of(boris) not in seen["Anna"] + seen["Boris"]
    assert not {*seen["Anna"]} & {*seen["Boris"]}
    assert len(products_of(review.history)) == 20


@pytest.mark.parametrize(
    ("scheme", "locale", "width"), [("light", "en-US", 1280), ("dark", "ru-RU", 1280), ("light", "ru-RU", 360)]
)
def test_pages_are_accessible_and_fit(url, review, enter, scheme, locale, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = enter(url, review.access.token, width=width, color_scheme=scheme, locale=locale)
    for path in ("/", "/grid", "/progress", "/history"):
        page.goto(url + path)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        serious = [f for f in axe.run(page).response["violations"] if f["impact"] in ("serious", "critical")]
        assert [node["html"] + node["failureSummary"] for finding in serious for node in finding["nodes"]] == []
    assert page.problems == []


def test_an_inline_script_does_not_run(url, review, enter):
    page = enter(url, review.access.token)
    page.evaluate(INLINE_SCRIPT)
    assert page.evaluate("window.x") is None
    assert any("Content Security Policy" in problem for problem in page.problems)


def test_kill_9_loses_no_confirmed_decision(lite_run, tmp_path):
    """The command is killed while two people decide; what was confirmed is there, once."""
    import httpx2 as httpx  # as the client of the service does

    run = shutil.copytree(lite_run[0], tmp_path / "run")
    shop = Path(lite_run[0]).parent
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "product_classificator", "review", str(run), str(shop / "products.parquet")]
    command += ["--images", str(shop / "photos.zip"), "--port", str(port), "--min-precision", "0.999"]
    confirmed = []

    def work(name, token):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True, timeout=30) as client:
            client.post("/login", data={"secret": token, "name": name})
            page = client.get("/").text
            client.headers["X-CSRF-Token"] = re.search(r'"X-CSRF-Token": "(\w+)"', page)[1]
            while True:
                fields = dict(re.findall(r'<input type="hidden" name="([^"]+)"(?: id="\w+")? value="([^"]*)"', page))
                fields = {key: value.replace("&#34;", '"') for key, value in fields.items()}
                try:
                    page = client.post("/decide", data={**fields, "do": "accept"}).text
                except httpx.HTTPError:
                    return
                if "data-row" not in page:
                    return
                confirmed.append(fields["token"])

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        token = next(line for line in process.stdout if line.startswith("token: ")).split()[1]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        threads = [threading.Thread(target=work, args=(name, token)) for name in ("Anna", "Boris")]
        for thread in threads:
            thread.start()
        while len(confirmed) < 6 and any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
    history = History(tmp_path / "run.review/review.sqlite")
    kept = [row["token"] for row in history.rows("SELECT token FROM actions WHERE kind = 'accept'")]
    products_of(history)
    history.close()
    assert len(confirmed) >= 6
    assert {*confirmed} <= {*kept}
    assert len(kept) == len({*kept})


def test_the_next_product_comes_at_once(url, review, enter):
    page = enter(url, review.access.token)
    assert review.queue.count(View()) > 20
    times = sorted(press(page, "Enter") for _ in range(20))
    assert times[10] < 500  # of a busy machine; docs/design/decisions.md has the figure of a quiet one
