"""Redirects, the token that stays at home, and hosts that refuse, have trouble or are not there."""

import email.utils
import http.client
import http.server
import socket
import ssl
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from hub_server import (
    COMMIT,
    MODEL,
    REPO,
    TOKEN,
    Act,
    Hub,
    Waits,
    cut,
    fails,
    pull,
    redirect,
    running,
    status,
    statuses,
)

from minitune.hub import HubError, web
from minitune.hub.web import Web, retry_after_s


def test_the_token_stays_with_the_endpoint(server: Hub, out: Path) -> None:
    with running(MODEL) as elsewhere:
        path = f"/{REPO}/resolve/{COMMIT}/model.safetensors"
        server.acts["model.safetensors"] = [redirect(f"{elsewhere.url}/signed/model.safetensors?key=1"), cut(9)]
        elsewhere.acts["model.safetensors"] = [redirect(f"{server.url}{path}")]
        server.acts["config.json"] = [redirect(f"/moved/{REPO}/config.json", 307)]
        server.acts["tokenizer.json"] = [redirect(f"http://localhost:{server.server_port}/tokenizer.json")]
        waits = Waits()
        pull(server, out, sleep=waits)
        assert elsewhere.requests
        assert all("Authorization" not in headers for _, headers in elsewhere.requests)
    sent = {(path, "Authorization" in headers) for path, headers in server.requests}
    assert (f"/moved/{REPO}/config.json", True) in sent
    assert ("/tokenizer.json", False) in sent  # this machine still, but by another name
    # Led away and back it goes without; asked for directly it goes with.
    assert [("Authorization" in headers) for headers in server.asked("model.safetensors")] == [True, False, True]


def test_a_redirect_in_raw_bytes(server: Hub, out: Path) -> None:
    server.acts["config.json"] = [redirect("/\u00c3\u00a9 x/config.json?a=b#c")]
    pull(server, out)
    assert "/%C3%A9%20x/config.json?a=b" in {path for path, _ in server.requests}


def test_a_link_that_has_run_out(server: Hub, out: Path) -> None:
    with running(MODEL) as elsewhere:
        server.acts["config.json"] = [redirect(f"{elsewhere.url}/config.json")]
        elsewhere.acts["config.json"] = [status(403)]
        fails(server, out, "led there by the hub; run the same command again")


def test_a_resume_along_a_redirect(server: Hub, out: Path) -> None:
    with running(MODEL) as elsewhere:
        target = redirect(f"{elsewhere.url}/model.safetensors")
        server.acts["model.safetensors"] = [target, target]
        elsewhere.acts["model.safetensors"] = [cut(1_200_000)]
        pull(server, out)
        assert [headers.get("Range") for headers in elsewhere.asked("model.safetensors")] == [None, "bytes=1200000-"]


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("/again/config.json", "redirected more than 5 times"),
        ("file:///etc/passwd", "a 'file' address"),
        ("ftp://127.0.0.1/x", "a 'ftp' address"),
        ("javascript:alert(1)", "a 'javascript' address"),
        ("http://user:pw@127.0.0.1/config.json", "not followed"),
        ("http://[::1/config.json", "an address that is none"),
        ("http://127.0.0.1:99999/config.json", "an address that is none"),
        (f"http://{'a' * 70}.test/x", "the address cannot be used"),
        ("", "nowhere"),
    ],
)
def test_a_redirect_nobody_should_follow(server: Hub, out: Path, to: str, words: str) -> None:
    server.acts["config.json"] = [redirect(to) for _ in range(10)]
    fails(server, out, words)
    assert len(server.asked("config.json")) <= 6


def reply(status: int = 200, **headers: str) -> web.Reply:
    """An answer that never was on a wire."""
    with socket.socket() as unused:
        response = http.client.HTTPResponse(unused)
        response.close()
    response.status, response.headers = status, http.client.HTTPMessage()
    for name, value in headers.items():
        response.headers[name] = value
    return web.Reply(response=response, host="hub.test", what="config.json")


def test_https_is_never_given_up() -> None:
    with pytest.raises(HubError, match=r"plain http at cdn\.test, which is not followed") as caught:
        web._redirected("https://hub.test/x", reply(302, Location="http://cdn.test/x?signature=secret"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "url", "sent"),
    [
        ("https://hub.test", "https://hub.test/x", True),
        ("https://hub.test", "https://HUB.test:443/x", True),
        ("https://hub.test", "http://hub.test/x", False),
        ("https://hub.test", "https://hub.test:8443/x", False),
        ("https://hub.test", "https://cdn.hub.test/x", False),
        ("https://hub.test", "https://hub.test.evil/x", False),
        ("https://hub.test", "https://hub.test@evil/x", False),
        ("http://hub.test", "http://hub.test/x", False),
        ("http://10.0.0.1", "http://10.0.0.1/x", False),
        ("http://127.0.0.1.evil", "http://127.0.0.1.evil/x", False),
        ("http://127.0.0.1:80", "http://127.0.0.1/x", True),
        ("http://localhost", "http://localhost/x", True),
        ("http://[::1]:8000", "http://[::1]:8000/x", True),
    ],
)
def test_which_address_the_token_goes_to(endpoint: str, url: str, sent: bool) -> None:
    asked = Web(endpoint=endpoint, token=TOKEN)
    assert asked.headers(url).get("Authorization") == (f"Bearer {TOKEN}" if sent else None)
    assert TOKEN not in repr(asked)


def test_an_ipv6_address_keeps_its_port() -> None:
    parts = urllib.parse.urlsplit("http://[::1]/x")
    assert (web._connection(parts, 1.0).host, web._connection(parts, 1.0).port) == ("::1", 80)


@pytest.mark.parametrize(
    ("act", "with_token", "without"),
    [
        (status(401), "accept the licence on the model's page, or check the token", "may not exist, or needs a token"),
        (status(403), "the token in HF_TOKEN may not read it", "set HF_TOKEN, and accept the licence"),
        (status(404), "no such repository, revision or file", "no such repository, revision or file"),
        (status(404, X_Error_Code="RevisionNotFound"), "no such revision", "no such revision"),
        (status(404, X_Error_Code=f"<{TOKEN}>"), "no such repository, revision", "no such repository, revision"),
        (status(400), "an answer of no use .400 Bad Request", "an answer of no use .400"),
        (status(304), "an answer of no use .304", "an answer of no use"),
        (status(799), "the host has trouble .799", "the host has trouble"),
    ],
)
@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_refusal(server: Hub, out: Path, act: Act, with_token: str, without: str, name: str) -> None:
    server.acts[name] = [act]
    said = fails(server, out, with_token, retries=0)
    assert f"127.0.0.1:{server.server_port}" in said
    assert (name or "the file list of owner/name") in said
    server.acts[name] = [act]
    fails(server, out, without, retries=0, token="")


def test_a_token_withheld_is_said() -> None:
    assert "not sent" in str(Web(endpoint="http://hub.test", token=TOKEN).refusal(reply(401)))


def test_trouble_that_passes(server: Hub, out: Path) -> None:
    server.acts[""] = [status(429, Retry_After="7"), status(503)]
    server.acts["config.json"] = [status(500), status(502), status(504)]
    server.acts["tokenizer.json"] = [lambda handler, data: handler.wfile.write(b"no http\r\n")]
    server.acts["model.safetensors"] = [cut(100), status(429, Retry_After="0"), status(408)]
    waits = Waits()
    pull(server, out, sleep=waits)
    assert waits == [7.0, 2.0, 1.0, 2.0, 4.0, 1.0, 1.0, 0.0, 4.0]
    assert statuses(pull(server, out)) == dict.fromkeys(MODEL, "already there")


def test_trouble_that_stays(server: Hub, out: Path) -> None:
    server.acts[""] = [status(500)] * 9
    waits = Waits()
    fails(server, out, "the host has trouble .500 .*gave up after 4 tries", retries=3, sleep=waits)
    assert waits == [1.0, 2.0, 4.0]
    server.acts[""] = [status(429, Retry_After="86400")]
    fails(server, out, "asks to wait 86400 s")


def test_retry_after() -> None:
    assert retry_after_s("120") == 120
    assert retry_after_s(email.utils.formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=2)
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [retry_after_s(text) for text in ("", "-1", "1e9", "soon", "nan", "9" * 40, "٣")] == [None] * 7


def test_hosts_that_are_not_there(server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    fails(server, out, "no connection .'Connection refused'", endpoint=closed, retries=1)
    fails(
        server, out, "no secure connection .* does --endpoint speak https", endpoint=server.url.replace("http", "https")
    )

    def unknown(*args: object, **named: object) -> list[Any]:
        raise socket.gaierror(number, "no")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    number = socket.EAI_NONAME
    fails(server, out, "hub.test: there is no host of this name", endpoint="https://hub.test")
    number = socket.EAI_AGAIN
    fails(server, out, "cannot be looked up now .*gave up after 3 tries", endpoint="https://hub.test", retries=2)
    assert not out.exists()


def test_a_certificate_nobody_vouches_for() -> None:
    error = ssl.SSLCertVerificationError(1, "no")
    error.verify_message = "self-signed certificate\n"
    words = r"not trusted \('self-signed certificate\\n'\).*SSL_CERT_FILE"
    with pytest.raises(HubError, match=words), web._in_our_words("hub.test", "config.json"):
        raise error


def test_a_proxy_carries_the_connection_and_never_sees_the_token(
    server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", server.url.replace("//", "//me:pw@"))
    fails(server, out, "Tunnel connection failed", endpoint="https://hub.test", retries=0)
    [(asked, headers)] = server.requests
    assert asked == "hub.test:443"
    assert headers["Proxy-Authorization"] == "Basic bWU6cHc="
    assert "Authorization" not in headers
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    fails(server, out, "not an http:// address", endpoint="https://hub.test")
    pull(server, out)  # this machine needs no proxy
