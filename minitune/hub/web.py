"""Asking a host for something over HTTP: redirects by hand, the token kept at home, every failure in one line.

The token goes to the scheme, host and port of the endpoint and nowhere else: not along a redirect, and not over plain
HTTP unless the endpoint is this machine itself.
"""

import base64
import contextlib
import datetime
import email.utils
import http.client
import ipaddress
import re
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from minitune import __version__
from minitune.errors import MinituneError

MAX_REDIRECTS = 5
MAX_WAIT_S = 30.0
MAX_RETRY_AFTER_S = 120.0
_PIECE_BYTES = 1 << 18
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_MISSING = {  # what the X-Error-Code of a 404 says; a host that is not in the mood sends none
    "RepoNotFound": "there is no such repository",
    "RevisionNotFound": "there is no such revision",
    "EntryNotFound": "there is no such file",
}


class HubError(MinituneError):
    """A pull that cannot start or cannot go on; the message says what was asked of which host and what to do."""


class TryAgain(HubError):
    """A failure that another try may mend. ``after_s`` is the wait the host asked for, where it asked for one."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer that is not a redirect: its status and headers, and its body piece by piece."""

    response: http.client.HTTPResponse
    host: str
    what: str

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.response.status

    @property
    def length(self) -> int | None:
        """How many bytes the body is announced to have, where that is known."""
        return self.response.length

    def header(self, name: str) -> str:
        """A header's value, or nothing."""
        return self.response.headers.get(name, "")

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes; TryAgain when it breaks or stalls. A body that ends early is for the caller to see."""
        encoding = self.header("Content-Encoding")
        if encoding.lower() not in ("", "identity"):
            raise HubError(
                f"{self.what} from {self.host}: comes compressed although plain bytes were asked for; something "
                "between here and the host changes answers, use another --endpoint or network"
            )
        while True:
            # read1, not read: read(n) waits for all n bytes, so a cut would lose those that did come.
            with _in_our_words(self.host, self.what, reading=True):
                piece = self.response.read1(_PIECE_BYTES)
            if not piece:
                return
            yield piece


@dataclass(frozen=True, kw_only=True)
class Web:
    """One endpoint, the token that belongs to it, and how patient to be."""

    endpoint: str
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0
    retries: int = 5
    sleep: Callable[[float], None] = time.sleep
    note: Callable[[str], None] = lambda text: None

    def headers(self, url: str) -> dict[str, str]:
        """The headers for a request to ``url``, with the token only where it may go."""
        headers = {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": f"minitune/{__version__}"}
        if self.token and _origin(url) == _origin(self.endpoint) and not self.withheld:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    @property
    def withheld(self) -> bool:
        """Whether the endpoint is one that no token is sent to: plain HTTP to another machine."""
        url = urllib.parse.urlsplit(self.endpoint)
        return url.scheme != "https" and not is_loopback(url.hostname or "")

    @contextlib.contextmanager
    def get(self, url: str, what: str, extra: Mapping[str, str] | None = None) -> Iterator[Reply]:
        """The answer to a GET of ``url`` after its redirects; HubError or TryAgain where there is none."""
        trusted = True
        for _ in range(MAX_REDIRECTS + 1):
            # Once away from the endpoint the token stays away, even if a redirect leads back.
            trusted = trusted and _origin(url) == _origin(self.endpoint)
            headers = self.headers(url) | dict(extra or {})
            if not trusted:
                headers.pop("Authorization", None)
            with self._exchange(url, what, headers) as reply:
                if reply.status not in _REDIRECTS:
                    yield reply
                    return
                url = _redirected(url, reply)
        raise HubError(
            f"{what} from {shown_host(url)}: redirected more than {MAX_REDIRECTS} times; use another --endpoint"
        )

    @contextlib.contextmanager
    def _exchange(self, url: str, what: str, headers: Mapping[str, str]) -> Iterator[Reply]:
        host = shown_host(url)
        with contextlib.ExitStack() as stack:
            with _in_our_words(host, what):
                parts = urllib.parse.urlsplit(url)
                connection = _connection(parts, self.timeout_s)
                stack.callback(connection.close)
                path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
                # A Location may carry raw bytes, which http.client reads as Latin-1; a request line may not.
                path = urllib.parse.quote(path.encode("latin-1"), safe="/?%:@!$&'()*+,;=~[]")
                connection.request("GET", path, headers=dict(headers))
                response = connection.getresponse()
                stack.callback(response.close)
            yield Reply(response=response, host=host, what=what)

    def refusal(self, reply: Reply) -> HubError:
        """The error for an answer that is not the thing asked for, by its status."""
        asked = f"{reply.what} from {reply.host}"
        status, phrase = reply.status, http.client.responses.get(reply.status, "no known status")
        if status in (401, 403):
            advice = (
                "the token in HF_TOKEN may not read it: accept the licence on the model's page, or check the token"
                if self.token
                else "it may not exist, or needs a token: set HF_TOKEN, and accept the licence on the model's page"
            )
            if reply.host != shown_host(self.endpoint):  # a signed link that has run out, mostly
                advice = "it was led there by the hub; run the same command again, or use another --endpoint"
            elif self.token and self.withheld:
                advice = "HF_TOKEN was not sent, since this --endpoint is plain http; use one with https"
            return HubError(f"{asked}: refused ({status} {phrase}); {advice}")
        if status == 404:
            why = _MISSING.get(reply.header("X-Error-Code"), "there is no such repository, revision or file there")
            return HubError(f"{asked}: not found ({status}): {why}; check REPO, --revision and --endpoint")
        if status == 416:
            return HubError(f"{asked}: the host refuses to send it ({status} {phrase}); use another --endpoint")
        if status in (408, 429) or status >= 500:
            busy = "too many requests" if status == 429 else "the host has trouble"
            return TryAgain(f"{asked}: {busy} ({status} {phrase})", retry_after_s(reply.header("Retry-After")))
        return HubError(f"{asked}: an answer of no use ({status} {phrase}); check --endpoint")

    def pause(self, problem: TryAgain, failures: int) -> None:
        """Wait before the next try, longer each time; HubError when the tries, or the patience, are used up."""
        wait = min(2.0 ** (failures - 1), MAX_WAIT_S) if problem.after_s is None else problem.after_s
        advice = "try later, or use another --endpoint"
        if failures > self.retries:
            raise HubError(f"{problem}; gave up after {failures} tries in a row; {advice}") from None
        if wait > MAX_RETRY_AFTER_S:
            raise HubError(f"{problem}; the host asks to wait {wait:.0f} s; {advice}") from None
        self.note(f"{problem}; trying again in {wait:.0f} s")
        self.sleep(wait)

    def read(self, url: str, what: str, limit_bytes: int) -> bytes:
        """A small document, whole, in memory; HubError where it cannot be had or is larger than ``limit_bytes``."""
        failures = 0
        while True:
            try:
                return self._read_once(url, what, limit_bytes)
            except TryAgain as problem:
                failures += 1
                self.pause(problem, failures)

    def _read_once(self, url: str, what: str, limit_bytes: int) -> bytes:
        data = bytearray()
        with self.get(url, what) as reply:
            if reply.status != 200:
                raise self.refusal(reply)
            announced = reply.length
            for piece in reply.pieces():
                data += piece
                if len(data) > limit_bytes:
                    raise HubError(
                        f"{what} from {reply.host}: longer than {limit_bytes} bytes, which such a thing never is; "
                        "check --endpoint"
                    )
        if announced is not None and len(data) < announced:
            raise TryAgain(f"{what} from {reply.host}: cut off after {len(data)} of {announced} bytes")
        return bytes(data)


def check_endpoint(text: str) -> str:
    """``text`` as an address to ask, without a slash at its end; HubError where it is none."""
    advice = "expected an address such as https://hub.example.org"
    try:
        url = urllib.parse.urlsplit(text)
        host, secret, _ = url.hostname, url.username or url.password, url.port
    except ValueError:
        raise HubError(f"--endpoint or HF_ENDPOINT: not an address; {advice}") from None
    if secret:  # not repeated: it is one
        raise HubError("--endpoint or HF_ENDPOINT: has a user name or password in it; a token goes into HF_TOKEN")
    if url.scheme not in ("http", "https") or not host or url.query or url.fragment:
        raise HubError(f"--endpoint or HF_ENDPOINT: {shown(text)} is not an address of a hub; {advice}")
    if not re.fullmatch(r"[!-~]+", text):
        raise HubError(f"--endpoint or HF_ENDPOINT: {shown(text)} has characters that an address never has; {advice}")
    return text.rstrip("/")


def check_token(text: str | None) -> str | None:
    """The token without the space around it, None where there is none; HubError, without it, for what cannot be one."""
    token = (text or "").strip()
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]*", token):
        raise HubError("HF_TOKEN: has characters that no token has; copy it again")
    return token or None


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine itself, by its name alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def retry_after_s(value: str) -> float | None:
    """The seconds a Retry-After header asks for, given as a number or a date; None where it says nothing of use."""
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())


def shown(text: object, limit: int = 120) -> str:
    """Text from elsewhere, quoted, so that it can neither break the line nor steer the terminal."""
    quoted = ascii(text)
    return quoted if len(quoted) <= limit else quoted[: limit - 3] + "..."


def shown_host(url: str) -> str:
    """The host, and port where it is given, of an address: what a message may tell, signed links being secrets."""
    netloc = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
    return netloc if re.fullmatch(r"[!-~]{1,100}", netloc) else shown(netloc)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _redirected(url: str, reply: Reply) -> str:
    """Where a redirect leads; HubError where nobody should follow."""
    location = reply.header("Location")
    refused = f"{reply.what} from {reply.host}: redirected to "
    try:
        target = urllib.parse.urljoin(url, location)
        parts = urllib.parse.urlsplit(target)
        host, secret, _ = parts.hostname, parts.username or parts.password, parts.port
    except ValueError:
        raise HubError(f"{refused}an address that is none; use another --endpoint") from None
    if not location or parts.scheme not in ("http", "https") or not host or secret:
        kind = f"a {shown(parts.scheme)} address" if location and parts.scheme else "nowhere"
        raise HubError(f"{refused}{kind}, which is not followed; use another --endpoint")
    if parts.scheme == "http" and urllib.parse.urlsplit(url).scheme == "https":
        raise HubError(f"{refused}plain http at {shown_host(target)}, which is not followed; use another --endpoint")
    return target


def _connection(url: urllib.parse.SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    """A connection, not yet open, to the host of ``url``: for https through the proxy of the environment, if any."""
    # The port is given in any case: without one, http.client would take the end of an IPv6 address for it.
    host, port = url.hostname or "", url.port or _PORTS[url.scheme]
    if url.scheme != "https":
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    context = ssl.create_default_context()
    address = urllib.request.getproxies().get("https")
    if not address or is_loopback(host) or urllib.request.proxy_bypass(host):
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    proxy = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise HubError("the proxy in HTTPS_PROXY is not an http:// address, which is the only kind that can be used")
    headers = {}
    if proxy.username:
        pair = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    connection = http.client.HTTPSConnection(proxy.hostname, proxy.port or 80, timeout=timeout_s, context=context)
    connection.set_tunnel(host, port, headers)
    return connection


@contextlib.contextmanager
def _in_our_words(host: str, what: str, *, reading: bool = False) -> Iterator[None]:
    """Turn what goes wrong between machines into one line: HubError for what stays wrong, else TryAgain."""
    asked = f"{what} from {host}"
    try:
        yield
    except HubError:  # a ValueError too, and one of ours already
        raise
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise TryAgain(f"{asked}: the name of the host cannot be looked up now (is there a network?)") from None
        raise HubError(f"{asked}: there is no host of this name; check --endpoint and the network") from None
    except ssl.SSLCertVerificationError as error:
        raise HubError(
            f"{asked}: its certificate is not trusted ({shown(error.verify_message)}); use another --endpoint, or set "
            "SSL_CERT_FILE to the certificates of your network"
        ) from None
    except TimeoutError:
        raise TryAgain(f"{asked}: no answer in time") from None
    except ssl.SSLError as error:
        kind = HubError if not reading and not isinstance(error, ssl.SSLEOFError) else TryAgain
        reason = f"no secure connection ({shown(error.reason or 'broken off')})"
        raise kind(f"{asked}: {reason}; does --endpoint speak https?") from None
    except OSError as error:
        raise TryAgain(f"{asked}: no connection ({shown(error.strerror or str(error))})") from None
    except http.client.InvalidURL:
        raise HubError(f"{asked}: the address has characters that none may have; use another --endpoint") from None
    except http.client.HTTPException as error:
        raise TryAgain(f"{asked}: the answer broke off or is no HTTP ({type(error).__name__})") from None
    except ValueError as error:  # an address that http.client or the name lookup cannot take
        raise HubError(f"{asked}: the address cannot be used ({type(error).__name__}); check --endpoint") from None
