import json
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient

from product_classificator.errors import DataError
from product_classificator.review import pages
from product_classificator.review.app import create_app
from product_classificator.review.settings import ReviewSettings
from product_classificator.serving.keys import add_key, remove_key
from tests.review.conftest import Browser, fields_of

PATHS = ["/", "/grid", "/progress", "/history", "/retraining", "/why/0"]


def decided(review):
    return review.history.rows("SELECT product, characteristic, label, kind, person FROM live ORDER BY id")


class Inline(HTMLParser):
    """Collects what a strict policy forbids."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        inline = [name for name in names if name.startswith("on") or name == "style"]
        if inline or tag == "style" or (tag == "script" and "src" not in names):
            self.found.append((tag, names))


@pytest.mark.parametrize("path", PATHS)
def test_pages_have_a_strict_policy_and_nothing_inline(browser, path):
    response = browser.get(path)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["cache-control"] == "no-store"
    parser = Inline()
    parser.feed(response.text)
    assert parser.found == []
    assert "http://" not in response.text
    assert "https://" not in response.text


@pytest.mark.parametrize("path", [*PATHS, "/photo/0/0/small", "/export/decisions.csv"])
def test_without_a_session_nothing_is_shown(review, path):
    client = TestClient(create_app(review), base_url="http://127.0.0.1:8100", follow_redirects=False)
    response = client.get(path)
    assert (response.status_code, response.headers["location"]) == (303, "/login")
    assert client.get(path, headers={"HX-Request": "true"}).headers["hx-redirect"] == "/login"
    assert client.get(path, headers={"Cookie": "review_8100=Anna.9999999999.x.y"}).status_code == 303


def test_a_wrong_token_opens_nothing(review):
    client = TestClient(create_app(review), base_url="http://127.0.0.1:8100", follow_redirects=False)
    response = client.post("/login", data={"secret": "x", "name": "Anna"}, headers={"Accept-Language": "ru"})
    assert "Ключ не подходит." in response.text
    assert "set-cookie" not in response.headers
    response = client.post("/login", data={"secret": review.access.token, "name": "Anna"})
    assert re.search("HttpOnly.*SameSite=strict", response.headers["set-cookie"])
    assert review.access.token not in response.headers["set-cookie"]


def test_people_are_called_by_their_keys(open_review, tmp_path):
    secret = add_key(tmp_path / "keys.json", "O.Smith")
    review = open_review(keys=tmp_path / "keys.json")
    with TestClient(create_app(review), base_url="http://127.0.0.1:8100") as client:
        client.post("/login", data={"secret": secret})
        assert "O.Smith" in client.get("/").text
        remove_key(tmp_path / "keys.json", "O.Smith")
        assert "O.Smith" not in client.get("/").text


def test_another_host_is_not_answered(review):
    assert TestClient(create_app(review), base_url="http://evil.example").get("/login").status_code == 400


def test_a_forged_request_changes_nothing(browser, review):
    for path in ("/decide", "/grid", "/pick", "/labels", "/import", "/retraining"):
        data = {**browser.fields, "do": "accept"}
        assert browser.post(path, data=data, headers={"X-CSRF-Token": ""}).status_code == 403
        assert browser.post(path, data=data, headers={"Origin": "http://127.0.0.1:9"}).status_code == 403
        assert browser.post(path, data=data, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert decided(review) == []


def test_accepting_saves_what_is_asked_and_shows_the_next_product(browser, review):
    row = int(browser.fields["row"])
    response = browser.submit(do="accept")
    assert "Saved" in response.text
    saved = decided(review)
    assert {entry["product"] for entry in saved} == {review.products.id(row)}
    assert all(json.loads(entry["label"]) == review.products.predicted(entry["characteristic"], row) for entry in saved)
    assert int(browser.fields["row"]) != row


def test_a_form_that_is_sent_twice_counts_once(browser, review):
    fields = dict(browser.fields)
    browser.submit(do="accept")
    n = len(decided(review))
    assert browser.post("/decide", data={**fields, "do": "accept"}).status_code == 200
    assert len(decided(review)) == n


def test_a_picked_label_is_saved(browser, review):
    row = int(browser.fields["row"])
    other = next(label for label in review.products.labels["kind"] if label != review.products.predicted("kind", row))
    part = browser.submit("/pick", pick=json.dumps({"name": "kind", "label": other})).text
    browser.fields |= fields_of(part)
    assert 'aria-pressed="true"' in part
    browser.submit(do="accept")
    assert (review.products.id(row), "kind", json.dumps(other)) in {tuple(entry)[:3] for entry in decided(review)}


def test_a_product_that_is_opened_again_shows_ones_own_answer_and_to_others_nothing(browser, review):
    row = browser.fields["row"]
    other = next(x for x in review.products.labels["kind"] if x != review.products.predicted("kind", int(row)))
    browser.fields |= fields_of(browser.submit("/pick", pick=json.dumps({"name": "kind", "label": other})).text)
    browser.submit(do="accept")
    assert fields_of(browser.get(f"/?row={row}").text)["v:kind"] == json.dumps(other)
    assert "Anna says" not in Browser(review, "Boris").get(f"/?row={row}").text


def test_a_label_that_only_the_table_has_can_be_picked(shop_files, open_review, tmp_path):
    pd = pytest.importorskip("pandas")
    path = tmp_path / "products.parquet"
    pd.read_parquet(shop_files[0]).assign(kind="scarf").to_parquet(path)
    browser = Browser(open_review(table=path))
    part = browser.submit("/pick", pick=json.dumps({"name": "kind", "label": "scarf"})).text
    assert fields_of(part)["v:kind"] == '"scarf"'
    assert "data-table" in part


def test_a_page_of_another_table_saves_nothing(browser, review):
    response = browser.post("/decide", data={**browser.fields, "products": "x", "do": "accept"})
    assert (response.status_code, "reload it" in response.text) == (409, True)
    assert decided(review) == []


def test_none_of_these_is_saved_as_such(browser, review):
    browser.fields |= fields_of(browser.submit("/pick", pick=json.dumps({"name": "kind", "label": None})).text)
    browser.submit(do="accept")
    assert {entry["characteristic"]: entry["label"] for entry in decided(review)}["kind"] == "null"


def test_undo_shows_the_product_again(browser, review):
    row = browser.fields["row"]
    browser.submit(do="accept")
    response = browser.submit(do="undo")
    assert "Undone" in response.text
    assert browser.fields["row"] == row
    assert decided(review) == []
    browser.submit(do="undo")
    assert "Nothing to undo" in browser.submit(do="undo").text


def test_skipped_products_and_bad_photos_are_noted(browser, review):
    row = browser.fields["row"]
    browser.submit(do="skip")
    browser.submit(do="bad_photo")
    assert [entry["kind"] for entry in decided(review)] == ["skip", "bad_photo"]
    assert browser.fields["row"] != row
    assert browser.post("/decide", data={**browser.fields, "do": "x"}).status_code == 422


def test_one_decision_for_a_group(browser, review):
    sizes = review.products.group_size
    row = int(sizes.argmax())
    if sizes[row] == 1:
        review.products.group[1] = review.products.group[0]
        del review.products.group_size
        row = 0
    browser.fields = fields_of(browser.get(f"/?row={row}").text)
    browser.submit(do="accept", group="1")
    assert len({entry["product"] for entry in decided(review)}) == review.products.group_size[row]


def test_unknown_products_and_labels_are_refused(browser):
    assert browser.get("/?row=99999").status_code == 404
    assert browser.get("/photo/0/9/small").status_code == 404
    assert browser.get("/photo/0/0/huge").status_code == 404
    response = browser.submit("/pick", pick=json.dumps({"name": "kind", "label": "car"}))
    assert response.status_code == 422
    assert "search the labels" in response.text


def test_labels_are_searched(browser, review):
    found = browser.submit("/labels", query="so", active="kind").text
    assert "sock" in found
    assert "cup" not in found


def test_the_grid_saves_all_but_the_marked(browser, review):
    page = browser.get("/grid?characteristic=kind").text
    rows = re.findall('name="rows" value="([0-9]+)"', page)
    label = review.products.predicted("kind", int(rows[0]))
    form = {**fields_of(page), "rows": rows, "wrong": rows[:2], "do": "accept"}
    after = browser.post("/grid", data=form).text
    saved = {entry["product"] for entry in decided(review) if entry["kind"] == "grid"}
    assert saved == {review.products.id(int(row)) for row in rows[2:]}
    assert {entry["label"] for entry in decided(review) if entry["kind"] == "grid"} == {json.dumps(label)}
    browser.post("/grid", data={**fields_of(after), "do": "undo"})
    assert decided(review) == []


def test_only_a_random_sample_estimates_the_precision(open_review):
    browser = Browser(review := open_review(min_precision=0.5))
    for query in ("", "&text=a"):
        browser.fields = fields_of(browser.get(f"/?state=accepted&characteristic=kind{query}").text)
        browser.submit(do="accept")
    assert [entry["kind"] for entry in decided(review)] == ["check", "accept"]


def test_photos_are_decoded_small_and_cached(browser):
    response = browser.get("/photo/0/0/small")
    assert response.headers["content-type"] == "image/jpeg"
    assert "max-age" in response.headers["cache-control"]


def test_disagreements_are_listed_and_resolved(browser, review):
    row = int(browser.fields["row"])
    browser.submit(do="accept")
    boris = Browser(review, "Boris")
    boris.fields = fields_of(boris.get(f"/?row={row}").text)
    label = next(label for label in review.products.labels["kind"] if label != review.products.predicted("kind", row))
    boris.fields |= fields_of(boris.submit("/pick", pick=json.dumps({"name": "kind", "label": label})).text)
    boris.submit(do="accept")
    assert "Anna, Boris" in browser.get("/progress").text
    clara = Browser(review, "Clara")
    page = clara.get(f"/?resolve=1&row={row}&characteristic=kind").text
    assert "Boris says" in page
    clara.fields = fields_of(page)
    clara.submit(do="accept")
    assert all(answer["label"] for answer in review.history.answers())


def test_many_at_once_lose_and_repeat_nothing(review):
    browsers = [Browser(review, name) for name in ("Anna", "Boris", "Clara", "Dora")]

    def work(browser):
        for _ in range(8):
            assert browser.submit(do="accept").status_code == 200

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, browsers))
    answered = [(entry["product"], entry["characteristic"]) for entry in decided(review)]
    assert len(set(answered)) == len(answered)
    assert len({product for product, _ in answered}) == 32


def test_every_word_has_both_languages():
    assert all(len(pair) == 2 and all(pair) for pair in pages.words().values())
    used = {name for path in pages.PAGE.iterdir() if path.name.endswith(".html") for name in words_in(path)}
    assert used <= set(pages.words())


def words_in(path):
    return re.findall(r'\bt\("(\w+)"', path.read_text(encoding="utf-8"))


def test_own_script_and_page_stay_small():
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in pages.PAGE.iterdir()}
    assert lines["page.js"] <= 250
    assert sum(n for name, n in lines.items() if not name.startswith("htmx")) <= 600


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"host": "192.0.2.1"}, "needs a key per person"),
        ({"second_share": 2}, "second_share"),
        ({"min_precision": 1}, "min_precision"),
    ],
)
def test_settings_are_checked(settings, rule):
    with pytest.raises(DataError, match=rule):
        ReviewSettings(**settings)


def test_another_language_stays_on_the_page_and_history_has_the_words_of_people(browser):
    browser.submit(do="accept")
    headers = {"Referer": "http://127.0.0.1:8100/history?x=1"}
    response = browser.post("/language", data={"language": "ru"}, headers=headers, follow_redirects=False)
    assert response.headers["location"] == "/history?x=1"
    response = browser.post("/language", data={"language": "ru"}, follow_redirects=False)
    assert response.headers["location"] == "/"
    page = browser.get("/history").text
    assert "<td>Принять</td>" in page
    assert re.search(r"<td>[\w; ]+</td></tr>", page)
