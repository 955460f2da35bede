"""Deployments on a real Prefect server with a real process worker, from a directory that is not the checkout.

Two version conflicts break only this: with SQLAlchemy 2.1 the scheduler never creates a run, with fastapi 0.151 `deploy` stops after its
first deployment.
"""

import importlib

import pytest
import yaml
from served import Server
from workspace import free_port, until

from components.inputs import InputError
from flows import deploy, paths
from flows.config import load


def deployments() -> dict[str, dict]:
    return {d["name"]: d for d in yaml.safe_load((paths.CODE / "prefect.yaml").read_text())["deployments"]}


def test_the_deployments_are_the_named_ones_and_compose() -> None:
    found = deployments()
    assert set(found) == {"nightly", "on-new-data", "data-watcher", "on-drift", "smoke", "gpu", "manual"}
    for deployment in found.values():
        module, _, name = deployment["entrypoint"].partition(":")
        assert hasattr(importlib.import_module(module), name)
        assert load(deployment["parameters"]["preset"]).data.write_pin is False  # deployed runs never touch the checkout
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        for schedule in deployment.get("schedules", []):
            assert schedule["cron"] and schedule["timezone"]
    assert {name for name, one in found.items() if one.get("schedules")} == {"nightly", "data-watcher", "on-drift"}
    assert found["gpu"]["work_pool"]["name"] != found["nightly"]["work_pool"]["name"]


def test_a_server_that_does_not_answer_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("foo/api", "http://me:S3cret@localhost/api", "http://localhost:42x0/api", f"http://me:S3cret@127.0.0.1:{free_port()}/api"):
        monkeypatch.setenv("PREFECT_API_URL", address)
        with pytest.raises(InputError, match=r"A Prefect server must answer at .* set another PREFECT_API_URL") as told:
            deploy.deploy()
        assert "S3cret" not in str(told.value) and "\n" not in str(told.value)


def test_what_a_server_holds_is_of_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    here = deploy.digest()
    monkeypatch.setattr(paths, "CODE", paths.CODE / "elsewhere")
    assert deploy.digest() != here


def test_all_deployments_are_there(server: Server) -> None:
    listed = server.command("deployment", "ls").stdout
    for name, told in deployments().items():
        assert name in listed
        held = server.ask(f"deployments/name/{told['entrypoint'].partition(':')[2]}/{name}")["schedules"]
        assert [one["schedule"]["cron"] for one in held] == [one["cron"] for one in told.get("schedules", [])]


@pytest.mark.slow
def test_a_worker_runs_smoke_from_elsewhere_and_leaves_the_checkout_alone(server: Server) -> None:
    pin, before = (server.workspace.root / "data.dvc").read_bytes(), {run["id"] for run in server.flow_runs("smoke")}
    ended = server.command("deployment", "run", "retrain/smoke", "-p", 'overrides=["registry.model=elsewhere"]', "--watch")
    assert ended.returncode == 0, ended.stdout + ended.stderr + server.log()
    (run,) = [run for run in server.flow_runs("smoke") if run["id"] not in before]
    assert run["state_type"] == "COMPLETED"
    client = server.workspace.mlflow()
    runs = client.search_runs([client.get_experiment_by_name("elsewhere").experiment_id], f"tags.`prefect.flow_run_id` = '{run['id']}'")
    (parent,) = [r for r in runs if r.data.tags["stage"] == "retrain"]
    assert (parent.data.params["experiment"], parent.data.params["registry.model"]) == ("smoke", "elsewhere")
    assert (server.workspace.root / "data.dvc").read_bytes() == pin


@pytest.mark.slow
def test_a_wrong_parameter_is_refused_before_a_run_is_made(server: Server) -> None:
    before = len(server.flow_runs("smoke"))
    ended = server.command("deployment", "run", "retrain/smoke", "-p", "overrides=5")
    assert ended.returncode != 0
    assert len(server.flow_runs("smoke")) == before


@pytest.mark.slow
def test_a_schedule_of_every_minute_fires(server: Server) -> None:
    before = {run["id"] for run in server.flow_runs("smoke")}
    made = server.command("deployment", "schedule", "create", "retrain/smoke", "--cron", "* * * * *", "--timezone", "UTC")
    assert made.returncode == 0, made.stdout + made.stderr

    def fired() -> bool:
        new = [run for run in server.flow_runs("smoke") if run["id"] not in before]
        assert not [run for run in new if run["state_type"] in ("FAILED", "CRASHED")], new
        return any(run["state_type"] == "COMPLETED" for run in new)

    try:
        until(fired, every=0.5)
    finally:  # or it goes on firing beside all tests that follow
        server.command("deployment", "schedule", "clear", "retrain/smoke", "--accept-yes")
    assert not server.ask("deployments/name/retrain/smoke")["schedules"]
