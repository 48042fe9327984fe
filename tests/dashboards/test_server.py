"""The live page's server, over real connections."""

import gzip
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from cser_ray.store.write import Store
from dashboards.server import is_loopback, make_server
from tests.dashboards import studies
from tests.tuning.rows_factory import run


class Client:
    """Asks one server; each request on a connection of its own."""

    def __init__(self, host: str, port: int):
        self.host, self.port = host, port

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
        """The answer and its body. Underscores in the names of headers stand for hyphens."""
        connection = HTTPConnection(self.host, self.port, timeout=20)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A small study; tests add to it, and leave it as whole as they found it."""
    return studies.write(str(tmp_path_factory.mktemp("study") / "results"))


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[Client]:
    """A server of the study, on a free port of this machine."""
    server = make_server(store.uri, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Client("127.0.0.1", server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_page_comes_with_its_policy(client: Client) -> None:
    """The header forbids what the page's own element forbids, and framing besides."""
    answer, body = client.get("/")
    assert answer.status == 200
    header = str(answer.headers["Content-Security-Policy"])
    assert header.endswith("frame-ancestors 'none'")
    assert header.removesuffix("; frame-ancestors 'none'") in body.decode()
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("prefix", ["", "/proxy/8799", "/a/b/c"])
def test_any_prefix_leads_to_the_page_and_its_data(client: Client, prefix: str) -> None:
    """The page asks for data.json beside itself, so a reverse proxy may put it anywhere."""
    page, html = client.get(f"{prefix}/")
    data, body = client.get(f"{prefix}/data.json")
    assert (page.status, data.status) == (200, 200)
    assert b'<meta name="live" content="data.json">' in html
    assert json.loads(body)["study"]["name"] == "small"


def test_a_prefix_without_its_slash_is_sent_there(client: Client) -> None:
    """Relative addresses need the slash; the redirection is relative too."""
    answer, _ = client.get("/proxy/cser")
    assert (answer.status, answer.headers["Location"]) == (308, "cser/")


def test_there_is_nothing_else(client: Client) -> None:
    """No file of the machine can be asked for."""
    for path in ("/../../etc/passwd.txt", "/study.json", "/trials/x.parquet"):
        assert client.get(path)[0].status == 404


def test_new_rows_are_in_the_next_answer(client: Client, store: Store) -> None:
    """What a trial has written is on the page at its next poll; unchanged rows are not sent again."""
    first, before = client.get("/data.json")
    again, body = client.get("/data.json", If_None_Match=str(first.headers["ETag"]))
    assert (again.status, body) == (304, b"")
    row = run("cser-release", run_id="new", trial_id="new")
    with store.trial("new", 0) as writer:
        writer.runs([row])
    start = time.monotonic()
    answer, after = client.get("/data.json", If_None_Match=str(first.headers["ETag"]))
    assert answer.status == 200
    assert time.monotonic() - start < 5
    assert "new" in json.loads(after)["trials"]["run_id"]
    assert "new" not in json.loads(before)["trials"]["run_id"]


def test_data_is_packed_for_who_unpacks_it(client: Client) -> None:
    """Through `ssh -L` a tenth of the bytes travels."""
    plain = client.get("/data.json")[1]
    answer, packed = client.get("/data.json", Accept_Encoding="gzip, br")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == plain
    assert len(packed) < len(plain) / 4


def test_head_has_the_headers_alone(client: Client) -> None:
    """HEAD says how long the page is and sends none of it."""
    answer, body = client.get("/", "HEAD")
    assert (answer.status, body) == (200, b"")
    assert int(str(answer.headers["Content-Length"])) == len(client.get("/")[1])


@pytest.mark.parametrize("name", ["evil.example", "evil.example:8799", "127.0.0.1.evil.example", "[", ""])
def test_another_name_for_this_machine_is_refused(client: Client, name: str) -> None:
    """A page of another site that gives its own name our address (DNS rebinding) reads nothing."""
    answer, body = client.get("/data.json", Host=name)
    assert answer.status == 421
    assert b"localhost" in body


@pytest.mark.parametrize("name", ["localhost:1234", "127.0.0.1", "[::1]:8799"])
def test_a_tunnel_may_have_another_port(client: Client, name: str) -> None:
    """What `ssh -L` or a proxy on this machine sends as Host is taken."""
    assert client.get("/data.json", Host=name)[0].status == 200


def test_a_vanished_folder_is_said_and_comes_back(client: Client, store: Store, tmp_path: Path) -> None:
    """The server survives its folder, and shows it again when it is back."""
    shutil.move(store.uri, tmp_path / "away")
    answer, body = client.get("/data.json")
    assert answer.status == 503
    assert b"no study at" in body
    shutil.move(tmp_path / "away", store.uri)
    assert client.get("/data.json")[0].status == 200


def test_many_who_ask_share_one_computation(client: Client) -> None:
    """Eight browsers get the same bytes."""
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(client.get("/data.json")[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_taken_port_is_an_error_with_the_way_out(store: Store) -> None:
    """The message names the port and --port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=rf"port {taken.getsockname()[1]} .*--port"):
            make_server(store.uri, "127.0.0.1", taken.getsockname()[1])


def test_only_loopback_addresses_are_loopback() -> None:
    """What the warning, and the check of names, depend on."""
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5
