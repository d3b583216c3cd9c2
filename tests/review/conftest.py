import re

import pytest
from fastapi.testclient import TestClient

from product_classificator.catalog import read_catalog
from product_classificator.review.app import create_app
from product_classificator.review.review import Review
from product_classificator.review.settings import ReviewSettings

COLUMNS = {"text": "description", "characteristics": ["kind", "colour"]}


@pytest.fixture(scope="session")
def unlabelled(shop_files, tmp_path_factory):
    """The table of the shop without its labels, so that all that is not accepted is open."""
    pd = pytest.importorskip("pandas")
    path = tmp_path_factory.mktemp("unlabelled") / "products.parquet"
    pd.read_parquet(shop_files[0]).assign(kind=None, colour=None).astype({"kind": str, "colour": str}).to_parquet(path)
    return path


@pytest.fixture
def open_review(tiny_training, shop_files, unlabelled, tmp_path):
    """Opens a review of the shop: `open_review(labelled=False, folder="review", **settings)`."""
    opened = []

    def start(*, labelled=False, table=None, folder="review", command=(), **settings):
        catalog = read_catalog(table or (shop_files[0] if labelled else unlabelled), shop_files[1], **COLUMNS)
        settings = ReviewSettings(**{"second_share": 0.0, "min_precision": 0.999, **settings})
        opened.append(Review(tiny_training.run, catalog, tmp_path / folder, settings, command))
        return opened[-1]

    yield start
    for review in opened:
        review.close()


class Browser(TestClient):
    """A client that signs in and sends what the page would send."""

    def __init__(self, review, name="Anna"):
        super().__init__(create_app(review), base_url="http://127.0.0.1:8100", raise_server_exceptions=True)
        self.post("/login", data={"secret": review.access.token, "name": name})
        page = self.get("/").text
        self.headers["X-CSRF-Token"] = re.search(r'"X-CSRF-Token": "(\w+)"', page)[1]
        self.fields = fields_of(page)

    def submit(self, path="/decide", **more):
        """Sends the form that is shown, and shows what comes back."""
        response = self.post(path, data={**self.fields, **more})
        if response.status_code == 200 and path == "/decide":
            self.fields = fields_of(response.text)
        return response


def fields_of(page):
    """The hidden fields of a page."""
    found = re.findall(r'<input type="hidden" name="([^"]+)"(?: id="\w+")? value="([^"]*)"', page)
    return {name: value.replace("&#34;", '"') for name, value in found}


@pytest.fixture
def review(open_review):
    return open_review()


@pytest.fixture
def browser(review):
    return Browser(review)
