"""Who may see and change what: a token or named keys, signed cookies, and tokens against forged requests."""

import hmac
import secrets
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote

from starlette.requests import Request

from product_classificator.serving.app import PAGE_HEADERS
from product_classificator.serving.call import RefusedError
from product_classificator.serving.keys import KeyRing

_SESSION_S = 30 * 86_400
_LANGUAGES = ("en", "ru")
_POLICY = PAGE_HEADERS["Content-Security-Policy"].replace("form-action 'none'", "form-action 'self'")
HEADERS = PAGE_HEADERS | {"Content-Security-Policy": _POLICY, "Referrer-Policy": "same-origin"}
"""Those of the page of the service, but forms may be sent to the page itself, and say where they come from."""


@dataclass(frozen=True)
class Session:
    """A person at a browser; `csrf` is in every page and comes back with every change."""

    person: str
    csrf: str


class Access:
    """Opens and checks sessions.

    Args:
        folder: of the review; keeps the secret that signs cookies, which only its owner may read.
        keys: file of API keys: every person has one, and is called by its name. `None`: one token for all, who
            give their names.

    Attributes:
        token: "" if people have keys.
    """

    def __init__(self, folder: Path, keys: Path | None = None) -> None:
        path = folder / "secret"
        if not path.is_file():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(32), encoding="ascii")
        self._secret = path.read_bytes()
        self._keys = KeyRing(keys) if keys else None
        self.token = "" if keys else self._sign("token")[:32]

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), sha256).hexdigest()

    def enter(self, secret: str, name: str) -> str:
        """Return the cookie of a new session; a wrong secret or an empty name is refused (401, 422)."""
        if self._keys:
            self._keys.reload()
            key = self._keys.find(secret.strip())
            name = key.name if key else ""
        if not (name if self._keys else hmac.compare_digest(secret.strip().encode(), self.token.encode())):
            raise RefusedError(401, "wrong_token")
        if not (name := " ".join(name.split())[:60]):
            raise RefusedError(422, "name_needed")
        content = f"{quote(name, safe='')}.{int(time.time() + _SESSION_S)}.{secrets.token_urlsafe(12)}"
        return f"{content}.{self._sign(content)}"

    def session(self, request: Request) -> Session | None:
        """Return the session of a request, `None` without a valid cookie."""
        content, _, signature = request.cookies.get(cookie_name(request), "").rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(content).encode()):
            return None
        quoted, until, _ = content.rsplit(".", 2)
        name = unquote(quoted)
        if self._keys:
            self._keys.reload()
        is_valid = int(until) > time.time() and (not self._keys or name in self._keys.names)
        return Session(name, self._sign(f"csrf {content}")) if is_valid else None

    def check_change(self, request: Request, session: Session) -> None:
        """Refuse (403) a change that another page has sent, or that lacks the token of the page."""
        check_origin(request)
        if not hmac.compare_digest(request.headers.get("x-csrf-token", "").encode(), session.csrf.encode()):
            raise RefusedError(403, "forged")


def check_origin(request: Request) -> None:
    """Refuse (403) a request that a page from elsewhere has sent."""
    origin = request.headers.get("origin")
    is_own = origin is None or origin.partition("://")[2] == request.headers.get("host")
    if not is_own or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise RefusedError(403, "forged")


def cookie_name(request: Request) -> str:
    """Return the name of the session's cookie: browsers send cookies to all ports."""
    return f"review_{request.url.port or 80}"


def language_of(request: Request) -> str:
    """Return "ru" or "en": what was chosen, or what the browser prefers."""
    chosen = request.cookies.get("language") or request.headers.get("accept-language", "en")[:2].lower()
    return chosen if chosen in _LANGUAGES else "en"
