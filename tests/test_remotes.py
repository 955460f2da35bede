"""Data versions on remotes of other kinds than a folder: a real S3 server and a real SSH server, on this machine."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_versions import domain
from workspace import free_port, until

from components.inputs import InputError
from flows.versions import pin_data, tree_md5

SECRET = "not-to-be-told"


def project(root: Path, remote: dict[str, str], secret: dict[str, str]) -> Path:
    """Make an empty project whose DVC remote is `remote`; what nobody else may know stands in the file that git ignores."""
    (root / ".dvc").mkdir(parents=True)
    lines = [f"    {name} = {value}" for name, value in remote.items()]
    (root / ".dvc" / "config").write_text("\n".join(["[core]", "    analytics = false", "    remote = store", "['remote \"store\"']", *lines, ""]))
    if secret:
        (root / ".dvc" / "config.local").write_text("\n".join(["['remote \"store\"']", *(f"    {name} = {value}" for name, value in secret.items()), ""]))
    return root


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with a bucket of a S3 server."""
    import boto3

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for name, value in {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    try:
        until(lambda: urllib.request.urlopen(f"{url}/moto-api/", timeout=5).status == 200)
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="fewloop")
        yield project(tmp_path / "project", {"url": "s3://fewloop/data", "endpointurl": url}, {})
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A project with a folder of a SSH server that asks for a password."""
    import asyncssh

    class Server(asyncssh.SSHServer):
        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == ("me", SECRET)

    (tmp_path / "far").mkdir()
    loop, port = asyncio.new_event_loop(), int(free_port())

    def sftp(channel: asyncssh.SSHServerChannel) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=os.fsencode(tmp_path / "far"))

    key = asyncssh.generate_private_key("ssh-ed25519")

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen("127.0.0.1", port, server_factory=Server, server_host_keys=[key], sftp_factory=sftp)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    remote = {"url": f"ssh://127.0.0.1:{port}/data", "user": "me", "allow_agent": "false"}
    yield project(tmp_path / "project", remote, {"password": SECRET})
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bucket", "host"])
def test_a_version_goes_there_and_comes_back(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    root: Path = request.getfixturevalue(kind)
    monkeypatch.setenv("FEWLOOP_ROOT", str(root))
    first = pin_data(domain(), None, True, None)
    assert first.new and first.md5 == tree_md5(root / "data" / "glyphs")
    for lost in ("data", ".dvc/cache"):
        shutil.rmtree(root / lost)
    again = pin_data(domain(), None, True, None)
    assert (again.how, again.md5) == ("restored by DVC", first.md5)
    assert tree_md5(root / "data" / "glyphs") == first.md5
    told = [p for p in root.rglob("*") if p.is_file() and p.name != "config.local" and SECRET.encode() in p.read_bytes()]
    assert not told


@pytest.mark.slow
@pytest.mark.parametrize("remote", [{"url": "s3://nobodys/data", "endpointurl": "http://127.0.0.1:9"}, {"url": "ssh://127.0.0.1:9/data", "user": "me"}])
def test_a_remote_that_does_not_answer_is_told_in_one_line(remote: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("FEWLOOP_ROOT", str(project(tmp_path / "project", remote, {})))
    with pytest.raises(InputError, match=r"^The DVC remote store .* must take the data, got: .*") as ended:
        pin_data(domain(), None, True, None)
    assert "\n" not in str(ended.value) and SECRET not in str(ended.value)
