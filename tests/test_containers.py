"""Dockerfile, compose.yaml and the templates of work pools, checked without a container engine.

What the image copies is all that its commands have here; the commands of compose.yaml run as processes, each with the environment that its
container has and no other, hosts and ports apart. Not checked: that the base images exist, that apt and pip run in them.
"""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import concurrently
import psutil
import pytest
import yaml
from postgres import binaries, postgres
from served import unscheduled
from workspace import PATIENCE, SMOKE, Workspace, free_port, until

from flows import deploy
from flows.serve import ask

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
POOLS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "deploy").glob("*.json")}
VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")


def filled(value: Any, given: dict[str, str]) -> Any:
    """Put variables in, as compose does: `${NAME}`, `${NAME:-default}`, `${NAME:?what to do}`."""
    if isinstance(value, dict):
        return {name: filled(one, given) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, given) for one in value]

    def put(found: re.Match[str]) -> str:
        name, sign, more = found.groups()
        if given.get(name):
            return given[name]
        assert sign == ":-", f"{name} must be set: {more}"
        return str(more)

    return VARIABLE.sub(put, value) if isinstance(value, str) else value


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with what they are given."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]  # type: ignore[misc]


def copied() -> list[tuple[list[str], str]]:
    return [(words[:-1], words[-1]) for words in (shlex.split(given) for name, given in instructions() if name == "COPY")]


def variables() -> dict[str, str]:
    """Return the environment that the image gives every container."""
    return dict(pair.split("=", 1) for name, given in instructions() if name == "ENV" for pair in shlex.split(given))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's /opt/fewloop: what the Dockerfile copies, and nothing else."""
    folder = tmp_path_factory.mktemp("image") / "fewloop"
    folder.mkdir()
    for sources, target in copied():
        for source in sources:
            place = folder / target / (source if target == "./" else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, folder / target)
    return folder


def test_the_dockerfile_is_pinned_and_ends_as_no_root() -> None:
    names = [name for name, _ in instructions()]
    assert set(names) <= {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "VOLUME", "USER", "CMD"}, "nothing is exposed, no shell form"
    arguments = dict(given.split("=", 1) for name, given in instructions() if name == "ARG")
    base = filled(next(given for name, given in instructions() if name == "FROM"), arguments)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-\w+-\w+", base) and base.startswith("python:3.11.")
    installs = [given for name, given in instructions() if name == "RUN" and "pip install" in given]
    assert len(installs) == 2 and all("-c constraints.txt" in given for given in installs)
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    user = next(given for name, given in instructions() if name == "USER")
    assert user == "10001:10001"
    assert {spec["securityContext"]["runAsUser"] for spec in [pod(POOLS["kubernetes"])]} == {10001}, "the volume's files are that user's"
    ignored = (ROOT / ".dockerignore").read_text().split()
    for sources, _ in copied():
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source not in ignored
            assert subprocess.run(["git", "ls-files", "--error-unmatch", source], cwd=ROOT, capture_output=True).returncode == 0, f"{source} is not in git"


def test_the_shell_of_the_dockerfile_parses() -> None:
    for name, given in instructions():
        if name == "RUN":
            subprocess.run(["sh", "-n", "-c", given], check=True)


def test_what_the_image_copies_is_enough_for_its_commands(image: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(image), "FEWLOOP_ROOT": str(tmp_path)}
    for module, *arguments in (["flows.retrain", SMOKE, "--cfg", "job"], ["flows.serve", "--help"], ["flows.endpoint", "--help"]):
        ended = subprocess.run([sys.executable, "-m", module, *arguments], cwd=image, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    told = subprocess.run([sys.executable, "-c", "import flows; print(flows.__file__)"], cwd=image, env=environment, capture_output=True, text=True).stdout
    assert told.strip() == str(image / "flows" / "__init__.py")


def test_compose_defines_all_that_it_names() -> None:
    filled(COMPOSE, {"FEWLOOP_DB_PASSWORD": "x"})
    with pytest.raises(AssertionError, match="FEWLOOP_DB_PASSWORD must be set"):
        filled(COMPOSE, {})
    named = set()
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_completed_successfully" or "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            assert target.startswith("/")
            named |= {source} - {source if source.startswith("./") else ""}
            assert not source.startswith("./") or (ROOT / source).is_file(), source
    assert named == set(COMPOSE["volumes"])
    pool = POOLS["docker"]["variables"]["properties"]
    assert pool["volumes"]["default"] == [f"{COMPOSE['name']}_{volume}" for volume in SERVICES["worker"]["volumes"]]
    assert pool["networks"]["default"] == [f"{COMPOSE['name']}_default"]
    assert pool["image"]["default"] == filled(SERVICES["worker"]["image"], {}) == POOLS["kubernetes"]["variables"]["properties"]["image"]["default"]


def test_compose_publishes_on_loopback_alone_and_holds_no_secret() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 2 and all(port.startswith("127.0.0.1:${") for port in published)
    assert "ports" not in SERVICES["postgres"]
    for name, service in SERVICES.items():
        assert "network_mode" not in service and not service.get("privileged") and service["cap_drop"] == ["ALL"], name
        assert name != "postgres" or service["user"] == "postgres"
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|AUTH|SECRET|TOKEN|CONNECTION|STORE_URI|WEBHOOK", key):
                assert value is None or "${FEWLOOP_DB_PASSWORD:?" in value, key
    images = [service["image"] for service in SERVICES.values()]
    assert all(re.search(r":-[\w.:-]*\d+\.\d+[\w.-]*\}$", image) for image in images), "every image has its version"


def test_every_command_of_compose_starts_a_module_that_is_there() -> None:
    for name in set(SERVICES) - {"postgres"}:
        python, flag, module, *_ = SERVICES[name]["command"]
        assert (python, flag) == ("python", "-m")
        assert importlib.util.find_spec(module) is not None, module


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a service as an engine does: it is asked, and after ten seconds all of its container's processes are killed."""
    tree = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(tree, 10)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory, image: Path, finished: Workspace) -> Iterator[tuple[Workspace, dict[str, str]]]:
    """The services of compose.yaml as processes on 127.0.0.1, each begun once what it waits for is well, and one pipeline through the worker."""
    place, ports = tmp_path_factory.mktemp("composed"), {"4200": free_port(), "5000": free_port()}
    workspace, started = Workspace(place / "project", {}, finished.root / "data"), []
    with postgres() as server:
        moved = {"postgres:5432": f"127.0.0.1:{server.port}", "//prefect:": "//127.0.0.1:", "//mlflow:": "//127.0.0.1:", "0.0.0.0": "127.0.0.1"}

        def here(text: str, service: str) -> str:
            for container, own in (moved | {"/var/lib/mlflow": str(place / "artifacts"), "/tmp/prefect": str(place / service)}).items():
                text = text.replace(container, own)
            for port, own in ports.items():
                text = re.sub(rf"\b{port}\b", own, text)
            return sys.executable if text == "python" else text

        def begin(service: str, command: list[str]) -> subprocess.Popen[bytes]:
            told = filled(SERVICES[service].get("environment", {}), {"FEWLOOP_DB_PASSWORD": server.password})
            own = {name: here(str(value), service) for name, value in (variables() | told).items() if value is not None}
            own |= {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(image), *extra]), "FEWLOOP_ROOT": str(workspace.root)}
            with (place / f"{service}.log").open("a") as log:
                return subprocess.Popen([here(word, service) for word in command], cwd=image, env=own, stdout=log, stderr=log)

        def wait(service: str, process: subprocess.Popen[bytes]) -> None:
            look = SERVICES[service]["healthcheck"]["test"][1:]
            until(lambda: process.poll() is not None or begin(service, look).wait(PATIENCE) == 0, every=1)
            assert process.poll() is None, (place / f"{service}.log").read_text()[-3000:]

        extra = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path).resolve() != ROOT]
        try:
            for service in ("prefect", "mlflow", "deployments", "worker"):
                process = begin(service, SERVICES[service]["command"])
                if "restart" in SERVICES[service] and SERVICES[service]["restart"] == "no":
                    assert process.wait(PATIENCE) == 0, (place / f"{service}.log").read_text()
                    continue
                started.append(process)
                if "healthcheck" in SERVICES[service]:
                    wait(service, process)
            found = {"PREFECT_API_URL": f"http://127.0.0.1:{ports['4200']}/api", "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['5000']}"}
            workspace.environment |= found
            unscheduled(found["PREFECT_API_URL"])
            yield workspace, found
        finally:
            for process in reversed(started):
                stop(process)


@pytest.mark.slow
@pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server programs here (initdb, postgres)")
def test_the_services_of_compose_run_a_pipeline(composed: tuple[Workspace, dict[str, str]]) -> None:
    workspace, found = composed
    watched = ["deployment", "run", "retrain/smoke", "-p", 'overrides=["student.count=0"]', "--watch"]
    ended = workspace.run("prefect", "--no-prompt", *watched)
    assert "Completed" in ended.stdout, ended.stdout
    assert concurrently.tracked(workspace, 1).wrong == [] == concurrently.orchestrated(workspace, found["PREFECT_API_URL"]).wrong
    assert not (workspace.root / "mlruns" / "artifacts").exists(), "MLflow's server keeps the artifacts"
    assert "is champion" in workspace.run("flows.promote", "model=glyphs", "version=1").stdout


@pytest.mark.slow
@pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server programs here (initdb, postgres)")
def test_mlflow_answers_its_own_names_alone(composed: tuple[Workspace, dict[str, str]]) -> None:
    _, found = composed
    port = found["MLFLOW_TRACKING_URI"].rpartition(":")[2]

    def status(host: str) -> int:
        asked = urllib.request.Request(f"{found['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
        try:
            return urllib.request.urlopen(asked, timeout=30).status
        except urllib.error.HTTPError as error:
            return error.code

    assert [status(host) for host in (f"mlflow:{port}", f"localhost:{port}", f"elsewhere.example:{port}")] == [200, 200, 403]


def pod(template: dict[str, Any]) -> dict[str, Any]:
    return template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]


def test_the_templates_have_what_prefects_own_have_now() -> None:
    import asyncio

    from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type as default

    assert set(POOLS) == {"process", "docker", "kubernetes"} and deploy.PROCESSES.stem == "process"
    for kind, template in POOLS.items():
        given = asyncio.run(default(kind))
        assert given is not None
        assert template["job_configuration"].keys() == given["job_configuration"].keys(), "what Prefect gives now"
        ours, own = template["variables"]["properties"], given["variables"]["properties"]
        assert set(own) - set(ours) == ({"privileged"} if kind == "docker" else set())
        assert set(ours) - set(own) == ({"gpus", "claim"} if kind == "kubernetes" else set())
    assert POOLS["docker"]["job_configuration"]["privileged"] is False
    assert pod(POOLS["kubernetes"])["securityContext"]["runAsNonRoot"] is True


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(POOLS))
def test_prefects_server_takes_the_template(kind: str, prefect: dict[str, str], tmp_path: Path) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-m", "prefect", "--no-prompt", "work-pool", *words]
        return subprocess.run(call, env=os.environ | prefect, cwd=tmp_path, capture_output=True, text=True)

    file = ROOT / "deploy" / f"{kind}.json"
    made = command("create", f"{kind}-pool", "--type", kind, "--base-job-template", str(file))
    assert made.returncode == 0, made.stdout + made.stderr
    held = ask(f"{prefect['PREFECT_API_URL']}/work_pools/{kind}-pool")
    assert (held["type"], held["base_job_template"]) == (kind, POOLS[kind])
    broken = tmp_path / "broken.json"
    broken.write_text(file.read_text().replace('"{{ env }}"', '"{{ no_such_variable }}"'))
    refused = command("create", f"{kind}-broken", "--type", kind, "--base-job-template", str(broken))
    assert refused.returncode != 0 and "no_such_variable" in refused.stdout + refused.stderr
