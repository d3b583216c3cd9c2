"""The page in Debian's chromium, as people see and use it; skipped without it."""

from base64 import b64encode
from pathlib import Path

import pytest

from product_classificator.runs import Run
from product_classificator.serving.app import create_app
from product_classificator.serving.model import ModelSource
from product_classificator.serving.settings import ServeSettings
from tests.browser import opened_chromium, served
from tests.fakes import jpeg
from tests.serving.conftest import tiny_model

PAGE = Path(__file__).parents[2] / "product_classificator/serving/page"
DROP = """
([data]) => {
  const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "cup.jpg", { type: "image/jpeg" }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}
"""


def test_page_and_script_have_at_most_300_lines():
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in PAGE.iterdir()) <= 300


def test_the_page_needs_nothing_from_elsewhere(client):
    for path in ("/", "/page.js", "/page.css", "/docs"):
        response = client.get(path)
        assert response.status_code == 200
        assert "http://" not in response.text
        assert "https://" not in response.text
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
    assert client.get("/docs/swagger-ui-bundle.js").status_code == 200
    assert "/v1/classify" in client.get("/openapi.json").json()["paths"]


@pytest.fixture
def url(bundle, tiny_training):
    """The tiny model, served on a port."""
    run = Run.load(tiny_training.run.folder)
    app = create_app(ModelSource(Path("tiny")), ServeSettings(), lambda *_: tiny_model(bundle, run=run))
    with served(app) as url:
        yield url


@pytest.fixture
def browser():
    with opened_chromium() as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "locale", "width"), [("light", "en-US", 1200), ("dark", "ru-RU", 1200), ("light", "ru-RU", 360)]
)
def test_a_dropped_photo_is_classified(url, browser, tmp_path, scheme, locale, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page(color_scheme=scheme, locale=locale, viewport={"width": width, "height": 900})
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith((url, "blob:", "data:")) or problems.append(request.url))
    page.goto(url)
    page.keyboard.press("Tab")
    page.evaluate(DROP, [b64encode(jpeg("red", (300, 400))).decode()])
    page.fill("#text", "A nice cup")
    page.focus("#text")
    page.focus("#send")
    page.keyboard.press("Enter")
    page.wait_for_selector("article meter")
    assert "kind: cup" in page.inner_text("#results")
    page.click("article summary")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert problems == []
    findings = axe.run(page).response["violations"]
    serious = [finding for finding in findings if finding["impact"] in ("serious", "critical")]
    assert [node["html"] + node["failureSummary"] for finding in serious for node in finding["nodes"]] == []
    page.click("#language")
    assert page.inner_text("#send") == ("Определить" if locale == "en-US" else "Classify")
    page.click("#clear")
    page.click("#send")
    page.wait_for_selector("#message.error")
    page.close()
