"""One command from nothing to a running system, again when a part has died, and an end that leaves nothing."""

import contextlib
import http.server
import signal
import socket
import threading
import urllib.error
import urllib.request

import pytest
from served import Server
from workspace import Workspace

from flows.serve import ask


@pytest.mark.slow
def test_everything_is_up_and_a_second_call_says_so(server: Server) -> None:
    told = server.first.stdout
    assert server.url.removesuffix("/api") in told and f"http://127.0.0.1:{server.mlflow_port}" in told
    assert urllib.request.urlopen(f"{server.url}/health", timeout=10).status == 200
    assert urllib.request.urlopen(f"http://127.0.0.1:{server.mlflow_port}/health", timeout=10).status == 200
    parts = ("worker start ", "server start ", "mlflow server ")
    before = {p.pid for part in parts for p in server.processes(part)}
    again = server.serve()
    assert "everything was running already" in again.stdout and "(started)" not in again.stdout
    assert {p.pid for part in parts for p in server.processes(part)} == before
    elsewhere = server.serve(PREFECT_SERVER_API_PORT="1")  # it is found where it is, whatever is asked for now
    assert server.url.removesuffix("/api") in elsewhere.stdout


@pytest.mark.slow
def test_nothing_listens_beyond_loopback(server: Server) -> None:
    heard = [c.laddr for p in server.processes() for c in p.net_connections("inet") if c.status == "LISTEN"]
    assert {str(port) for _, port in heard} >= {server.url.rpartition(":")[2].removesuffix("/api"), server.mlflow_port}
    assert {ip for ip, _ in heard} == {"127.0.0.1"}


@pytest.mark.slow
def test_pages_of_the_web_are_not_answered(server: Server) -> None:
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    address = f"{server.url}/deployments/filter"
    for origin, allowed in ((asked["Origin"], None), (server.url.removesuffix("/api"), server.url.removesuffix("/api"))):
        request = urllib.request.Request(address, method="OPTIONS", headers=asked | {"Origin": origin})
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed
            continue
        assert allowed is None, "it is refused"


@pytest.mark.slow
@pytest.mark.parametrize("died", ["worker start", "server start", "mlflow server"])
def test_what_was_killed_is_started_again_and_the_rest_is_left_alone(server: Server, died: str) -> None:
    (victim,) = [p for p in server.processes(f"{died} ")]
    others = {p.pid for word in ("worker start", "server start", "mlflow server") if word != died for p in server.processes(f"{word} ")}
    victim.send_signal(signal.SIGKILL)
    again = server.serve()
    assert again.stdout.count("(started)") == 1
    (started,) = [p for p in server.processes(f"{died} ")]
    assert started.pid != victim.pid
    assert others <= {p.pid for p in server.processes()}


@pytest.mark.slow
def test_a_deployment_that_was_removed_is_made_again(server: Server) -> None:
    asked = {"deployments": {"name": {"any_": ["nightly"]}}}
    (there,) = ask(f"{server.url}/deployments/filter", asked)
    ask(f"{server.url}/deployments/{there['id']}", method="DELETE")
    assert ask(f"{server.url}/deployments/filter", asked) == []
    assert "(made)" in server.serve().stdout and len(ask(f"{server.url}/deployments/filter", asked)) == 1
    assert "(already there)" in server.serve().stdout


@pytest.mark.slow
def test_stop_leaves_nothing_and_says_when_there_is_nothing(server: Server) -> None:
    assert server.processes()
    assert server.stop().startswith("stopped mlflow, prefect-server, worker-local")
    assert server.processes() == []
    assert not [p for p in (server.workspace.root / "mlruns").rglob("*pid*") if "artifacts" not in p.parts]
    assert server.stop() == "nothing was running\n"


def test_a_port_that_is_taken_and_words_that_are_unknown(new_workspace, own_prefect: dict[str, str]) -> None:
    workspace: Workspace = new_workspace(own_prefect)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = workspace.run("flows.serve", expect=2, MLFLOW_PORT=port, PREFECT_SERVER_API_PORT="1")
        assert ended.stderr.splitlines()[-1].startswith("error: Port")
        ended = workspace.run("flows.serve", expect=2, PREFECT_SERVER_API_PORT=port)
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"error: Port {port} of 127.0.0.1 must be free for prefect-server") and "PREFECT_SERVER_API_PORT=" in line
    (line,) = workspace.run("flows.serve", expect=2, PREFECT_SERVER_API_PORT="many").stderr.splitlines()
    assert "must be a number" in line
    (line,) = workspace.run("flows.serve", "halt", expect=2).stderr.splitlines()
    assert "takes nothing, or stop" in line


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not() -> None:
    told = [503, 503, 200, 404]

    class Busy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(told.pop(0))
            self.end_headers()
            self.wfile.write(b'{"status": "well"}')

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Busy) as busy:
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        try:
            assert ask(f"http://127.0.0.1:{busy.server_port}/") == {"status": "well"} and told == [404]
            with pytest.raises(urllib.error.HTTPError):
                ask(f"http://127.0.0.1:{busy.server_port}/")
        finally:
            busy.shutdown()
    assert not told
