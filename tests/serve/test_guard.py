"""Who may call the server: keys, hosts and origins; and what the page comes with."""

import httpx
import pytest

from dllm.serve import api
from dllm.serve.settings import Settings
from tests.live_server import engine_of, served

MODELS = "/v1/models"


@pytest.fixture(scope="module")
def guarded():
    with served(engine_of(), api_keys=("one", "two")) as found:
        yield found


def get(server, path=MODELS, **headers):
    return httpx.get(server.url + path, headers=headers)


def code(response):
    return response.status_code, response.json()["error"]["code"]


def test_keys(guarded):
    for key in ("one", "two"):
        assert get(guarded, Authorization=f"Bearer {key}").is_success
        assert get(guarded, Authorization=f"bearer {key}").is_success
    for wrong in ("Bearer three", "Bearer", "Bearer one two", "one", "Basic one", b"Bearer \xc3\xb6ne"):
        assert code(get(guarded, Authorization=wrong)) == (401, "invalid_api_key")
    for path in (MODELS, "/metrics", "/v1/chat/completions", "/nowhere"):
        assert code(get(guarded, path)) == (401, "invalid_api_key")
    assert get(guarded).headers["WWW-Authenticate"] == "Bearer"
    for path in ("/health/live", "/health/ready"):
        assert get(guarded, path).json()["status"] == path.rpartition("/")[2]


def test_hosts_and_origins(server):
    for host in ("localhost", "localhost:80", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"):
        assert get(server, Host=host).is_success
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::1", "a@localhost@evil"):
        assert code(get(server, Host=host)) == (403, "host_not_allowed")
    own = server.url.removeprefix("http://")
    assert get(server, Origin=server.url, Host=own).is_success
    for origin in (
        "http://evil.example",
        "null",
        f"http://127.0.0.1:{server.port + 1}",
        "http://[",
        f"{server.url}.evil",
    ):
        assert code(get(server, Origin=origin)) == (403, "origin_not_allowed")
    answer = httpx.options(server.url + MODELS, headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_any_host_where_none_is_named():
    with served(engine_of(), hosts=None) as server:
        assert get(server, Host="behind.example").is_success
        assert get(server, Host="behind.example", Origin="https://behind.example").is_success
        assert code(get(server, Host="behind.example", Origin="https://other.example")) == (403, "origin_not_allowed")


def test_the_page(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("<title>here</title>", encoding="utf-8")
    monkeypatch.setattr(api, "PAGE", page)
    with served(engine_of(), api_keys=("one",)) as server:
        found = get(server, "/")
        assert found.text == page.read_text() and "text/html" in found.headers["Content-Type"]
        assert found.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "connect-src 'self'" in found.headers["Content-Security-Policy"]
    with served(engine_of(), page=False) as server:
        assert get(server, "/").status_code == 404


def test_settings_that_cannot_be():
    for wrong in (dict(rows=0), dict(max_queue=0), dict(max_in_flight=0), dict(timeout=-1), dict(grace=-1)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)
    with pytest.raises(ValueError, match="above 0"):
        Settings(timeout=0)
    for key in ("", "schlüssel", "a\nb", 5):
        with pytest.raises(ValueError, match="printable ASCII"):
            Settings(api_keys=(key,))
