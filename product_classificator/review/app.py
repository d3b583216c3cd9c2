"""The pages of a review, as a FastAPI application; every change is on the disk before it is confirmed."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from markupsafe import Markup
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from product_classificator.errors import DataError
from product_classificator.review import exchange, pages
from product_classificator.review.access import HEADERS, Session, check_origin, cookie_name, language_of
from product_classificator.review.choices import Values
from product_classificator.review.history import ACTIONS, Decision, Kind
from product_classificator.review.loop import progress_of
from product_classificator.review.queue import ACCEPTED, SKIPPED, UNMARKED, View
from product_classificator.review.review import Review
from product_classificator.serving.call import RefusedError
from product_classificator.serving.settings import MEGABYTE, is_loopback

_STATIC = {"page.css": "text/css", "page.js": "text/javascript", "htmx.min.js": "text/javascript"}
_STATES = {"": "state_open", ACCEPTED: "state_accepted", SKIPPED: "state_skipped"}
_DONE: Mapping[str, str] = {"accept": "saved", "skip": "skipped", "bad_photo": "bad_photo_saved"}
_MAX_BODY_BYTES, _MAX_FIELDS = 64 * MEGABYTE, 10_000
_GRID, _SHOWN_ACTIONS, _MAX_SECONDS = 50, 100, 300.0


def create_app(review: Review) -> FastAPI:
    """Return the application of a review; other machines reach it only if it listens at another address."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        review.close()

    app = FastAPI(title="review", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.review = review
    for error in (HTTPException, DataError):  # anything else is logged, and answered as 500
        app.add_exception_handler(error, _refused)
    for add in (_add_sessions, _add_products, _add_changes, _add_grid, _add_overview, _add_files):
        add(app, review)

    @app.middleware("http")
    async def safe(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        for name, value in (HEADERS | {"Cache-Control": "no-store"}).items():
            response.headers.setdefault(name, value)
        return response

    hosts = ["127.0.0.1", "localhost", "[::1]"] if is_loopback(review.settings.host) else ["*"]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)  # no other name may be made to mean this machine
    return app


async def _signed_in(request: Request) -> Session:
    """Return the session of a request; who has none is sent to the page that opens one."""
    session: Session | None = request.app.state.review.access.session(request)
    if session is None:
        raise HTTPException(401)
    return session


async def _sent_form(request: Request) -> FormData:
    if int(request.headers.get("content-length") or _MAX_BODY_BYTES + 1) > _MAX_BODY_BYTES:
        raise RefusedError(413, f"a form has at most {_MAX_BODY_BYTES} bytes")
    return await request.form(max_fields=_MAX_FIELDS)


Person = Annotated[Session, Depends(_signed_in)]
Form = Annotated[FormData, Depends(_sent_form)]


async def _change(request: Request, session: Person) -> Session:
    """Return the session of a change that our page has sent."""
    request.app.state.review.access.check_change(request, session)
    return session


Changer = Annotated[Session, Depends(_change)]
"""Goes before the form, so that no body of a stranger is read."""


def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 401:
        is_part = "hx-request" in request.headers
        return Response(None, 401, {"HX-Redirect": "/login"}) if is_part else RedirectResponse("/login", 303)
    status, message = (error.status_code, error.detail) if isinstance(error, HTTPException) else (422, str(error))
    return PlainTextResponse(pages.translate(language_of(request), message), status)


def _page(request: Request, template: str, **values: Any) -> HTMLResponse:
    values["session"] = request.app.state.review.access.session(request)
    values["products"] = request.app.state.review.products.key
    return HTMLResponse(pages.render(template, language_of(request), **values))


def _add_sessions(app: FastAPI, review: Review) -> None:
    @app.get("/login")
    def ask(request: Request) -> Response:
        return _page(request, "login.html", has_names=not review.access.token, problem="")

    @app.post("/login")
    def enter(request: Request, form: Form) -> Response:
        check_origin(request)
        try:
            cookie = review.access.enter(str(form.get("secret", "")), str(form.get("name", "")))
        except RefusedError as refusal:
            return _page(request, "login.html", has_names=not review.access.token, problem=refusal.detail)
        response, is_secure = RedirectResponse("/", 303), request.url.scheme == "https"
        response.set_cookie(cookie_name(request), cookie, httponly=True, samesite="strict", secure=is_secure)
        return response

    @app.post("/language")
    def choose(request: Request, form: Form) -> Response:
        check_origin(request)
        page = urlsplit(request.headers.get("referer", ""))
        response = RedirectResponse(
            f"/{page.path.lstrip('/')}{'?' * bool(page.query)}{page.query}", 303
        )  # a page of this host
        response.set_cookie("language", "ru" if form.get("language") == "ru" else "en", samesite="strict")
        return response

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise HTTPException(404, "there is no such page")
        return Response((pages.PAGE / name).read_bytes(), 200, {"Cache-Control": "max-age=86400"}, _STATIC[name])


def _field(form: FormData, name: str, read: Callable[[str], Any] = str) -> Any:
    """Return a field as `read` reads it; 422 for what our page does not send."""
    try:
        return read(str(form[name]))
    except (KeyError, ValueError):
        raise RefusedError(422, "forged") from None


def _row(review: Review, value: object) -> int:
    if not (text := str(value)).isdigit() or int(text) >= len(review.products):
        raise RefusedError(404, "there is no such product")
    return int(text)


def _product(
    request: Request, view: View, session: Session, said: str = "", row: int | None = None, kind: str = ""
) -> HTMLResponse:
    """Return the part of the page with a product: that of a row, or the next one; the one after it is prepared."""
    review: Review = request.app.state.review
    rows = review.queue.take(view, session.person, 2)
    rows = rows if row is None else [row, *(other for other in rows if other != row)]
    values: dict[str, Any] = {"view": view, "said": said, "left": review.queue.count(view), "kind": kind, "row": None}
    if rows:
        values |= {
            "row": rows[0],
            "ahead": rows[1] if len(rows) > 1 else None,
            **review.shown(rows[0], view, session.person, kind),
        }
        for number in rows:
            review.showing.prepare(number)
    return _page(request, "product.html", **values)


def _values(review: Review, form: FormData) -> tuple[Values, list[str], list[str]]:
    """Return the chosen labels of a form, the characteristics to be confirmed, and those that were touched."""
    names = review.products.names
    values: Values = {name: _field(form, f"v:{name}", json.loads) for name in names if f"v:{name}" in form}
    for name, label in values.items():
        review.choices.check(name, label)
    questions, touched = ([name for name in names if form.get(f"{kind}:{name}")] for kind in "qt")
    return values, questions, touched


def _sent(review: Review, form: FormData) -> tuple[View, str, float]:
    """Return the view and the token of a form of these products, and for how many seconds it was shown."""
    if form.get("products") != review.products.key:
        raise RefusedError(409, "stale")
    seconds = time.time() - _field(form, "shown", float)
    return View.of(form, review.products), _field(form, "token")[:64], min(max(seconds, 0.0), _MAX_SECONDS)


def _add_products(app: FastAPI, review: Review) -> None:
    @app.get("/")
    def work(request: Request, session: Person) -> Response:
        view, query, queue = View.of(request.query_params, review.products), request.query_params, review.queue
        row, kind = _row(review, query["row"]) if "row" in query else None, "resolve" if "resolve" in query else ""
        part = Markup(bytes(_product(request, view, session, "", row, kind).body).decode())  # noqa: S704 - escaped
        counts = {
            "names": {name: queue.count(View(characteristic=name)) for name in review.products.names},
            "labels": queue.counts(view.characteristic) if view.characteristic else {},
            "findings": {finding: queue.count(View(finding=finding)) for finding in review.products.findings},
        }
        return _page(request, "work.html", part=part, view=view, filters=counts, states=_STATES, left=queue.count(view))

    @app.get("/why/{row}")
    def why(request: Request, row: int, _: Person) -> Response:
        reasons = review.showing.why(_row(review, row))
        nearest = next((reason.nearest for reason in reasons.values()), ())
        rows = review.products.rows_of([item.id for item in nearest]).tolist()
        return _page(request, "why.html", reasons=reasons, nearest=[*zip(nearest, rows, strict=True)])

    @app.get("/photo/{row}/{index}/{size}")
    def photo(row: int, index: int, size: str, _: Person) -> Response:
        data = review.showing.photo(_row(review, row), index, size) if size in pages.SIZES_PX else None
        if data is None:
            raise HTTPException(404, "there is no such photo")
        return Response(data, 200, {"Cache-Control": "private, max-age=3600"}, "image/jpeg")


def _answer(request: Request, form: FormData, view: View, row: int) -> tuple[Kind, list[Decision]]:
    """Return the kind of an answer, and what it decides."""
    review: Review = request.app.state.review
    rows = review.products.rows_of_group(row) if form.get("group") else [row]
    values, questions, touched = _values(review, form)
    if missing := [name for name in questions if values.get(name) is None and name not in touched]:
        raise DataError(f"{pages.translate(language_of(request), 'choose_first')} {', '.join(missing)}")
    kind: Kind = "resolve" if form.get("kind") == "resolve" else "accept"
    decisions = review.decisions(rows, {name: values.get(name) for name in {*questions, *touched}})
    if kind == "accept" and not form.get("group") and view == View(view.characteristic, state=ACCEPTED):
        # Only the questions are a random sample, which estimates a precision.
        return "check", [d if d.characteristic in questions else d._replace(kind="accept") for d in decisions]
    return kind, decisions


def _add_changes(app: FastAPI, review: Review) -> None:
    @app.post("/labels")
    def labels(request: Request, _: Changer, form: Form) -> Response:
        name, values = _field(form, "active"), _values(review, form)[0]
        found = review.choices.search(name, str(form.get("query", ""))[:100], values)
        return _page(request, "labels.html", found=found, name=name)

    @app.post("/pick")
    def pick(request: Request, _: Changer, form: Form) -> Response:
        values, questions, touched = _values(review, form)
        row, chosen = _row(review, _field(form, "row")), _field(form, "pick", json.loads)
        name = str(chosen["name"])
        tops = {one: review.products.top(one, row) for one in review.products.names}
        picked = review.choices.pick(values, name, chosen["label"], tops)
        changed = [one for one in picked if picked[one] != values.get(one) and one != name]
        cleared = [one for one in changed if picked[one] is None]  # the new parent has no label that was offered
        touched = [one for one in [*touched, name, *changed] if one not in cleared]
        questions += cleared
        return _page(request, "answers.html", **review.answers(row, picked, questions, touched, name))

    @app.post("/decide")
    def decide(request: Request, session: Changer, form: Form) -> Response:
        (view, token, seconds), row = _sent(review, form), _row(review, _field(form, "row"))
        if _field(form, "do") == "undo":
            rows = review.queue.undo(token, session.person)
            said = "undone" if rows else "nothing_to_undo"
            return _product(request, view, session, said, rows[0] if rows else None)
        kind, decisions = _field(form, "do"), [Decision(review.products.id(row))]
        said = _field(form, "do", _DONE.__getitem__)
        if kind == "accept":
            kind, decisions = _answer(request, form, view, row)
        review.queue.act(kind, token, session.person, decisions, seconds)
        return _product(request, view, session, said)


def _add_grid(app: FastAPI, review: Review) -> None:
    def shown(view: View, session: Session, said: str = "") -> dict[str, Any]:
        labels = review.queue.counts(name := view.characteristic or review.products.names[0], UNMARKED)
        view = View(characteristic=name, label=view.label or next(iter(labels), ""), state=UNMARKED)
        rows = review.queue.take(view, session.person, _GRID) if view.label else []
        texts = {row: review.products.facts(row)["text"].partition("\n")[0][:80] for row in rows}
        return {"view": view, "labels": labels, "texts": texts, "said": said, "names": review.products.names}

    @app.get("/grid")
    def grid(request: Request, session: Person) -> Response:
        return _page(request, "grid.html", **shown(View.of(request.query_params, review.products), session))

    @app.post("/grid")
    def decide(request: Request, session: Changer, form: Form) -> Response:
        view, token, seconds = _sent(review, form)
        if _field(form, "do") == "undo":
            said = "undone" if review.queue.undo(token, session.person) else "nothing_to_undo"
            return _page(request, "tiles.html", **shown(view, session, said))
        rows, wrong = ([_row(review, row) for row in form.getlist(name)] for name in ("rows", "wrong"))
        name, label = view.characteristic, view.label
        decisions = review.decisions([row for row in rows if row not in wrong], {name: label})
        decisions += [Decision(review.products.id(row), name, None, label, "wrong") for row in wrong]
        review.queue.act("grid", token, session.person, decisions, seconds)
        return _page(request, "tiles.html", **shown(view, session, "saved"))


def _add_overview(app: FastAPI, review: Review) -> None:
    def with_rows(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        rows = review.products.rows_of([entry["product"] or "" for entry in entries]).tolist()
        return [{**entry, "row": row} for entry, row in zip(entries, rows, strict=True)]

    @app.get("/progress")
    def overview(request: Request, _: Person) -> Response:
        progress = progress_of(review.products, review.queue, review.history, review.settings.min_precision)
        disputed = with_rows(progress["disagreements"][:_SHOWN_ACTIONS])
        shown = {"disputed": disputed, "formats": exchange.FORMATS, "training": review.retraining}
        return _page(request, "progress.html", progress=progress, **shown)

    @app.get("/history")
    def history(request: Request, _: Person) -> Response:
        return _page(request, "history.html", actions=with_rows(review.history.rows(ACTIONS, _SHOWN_ACTIONS)))

    @app.get("/retraining")
    def state(request: Request, _: Person) -> Response:
        return _page(request, "retraining.html", training=review.retraining)

    @app.post("/retraining")
    def retrain(request: Request, _: Changer) -> Response:
        review.retraining.start(review.run)
        return _page(request, "retraining.html", training=review.retraining)


def _add_files(app: FastAPI, review: Review) -> None:
    @app.get("/export/{name}")
    def export(name: str, session: Person) -> Response:
        makers: dict[str, Callable[[], bytes]] = {
            "label-studio.json": lambda: review.tasks(session.person),
            "label-studio.xml": lambda: exchange.label_studio_config(review.products).encode(),
        }
        makers |= {f"decisions.{kind}": partial(exchange.export, review.history, kind) for kind in exchange.FORMATS}
        if name not in makers:
            raise HTTPException(404, "there is no such file")
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(makers[name](), 200, headers, "application/octet-stream")

    @app.post("/import")
    def take_in(request: Request, session: Changer, form: Form) -> Response:
        if not isinstance(file := form.get("file"), UploadFile):
            raise DataError("choose a file first")
        n = review.take_in(file.file.read(), file.filename or "", session.person)
        return PlainTextResponse(pages.translate(language_of(request), "imported", n=n))
