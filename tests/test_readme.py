"""Every command of the README is run by a test, and the README stays short."""

import re
import subprocess
from pathlib import Path

import pytest
from workspace import SMOKE, Workspace

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("  #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line.strip()]
PYTHON = [c.removeprefix(".venv/bin/python -m ") for c in COMMANDS if c.startswith(".venv/bin/python")]
# Run with a server by test_deployments.py, with its own ports and names.
SERVED = [c for c in COMMANDS if c.startswith(".venv/bin/prefect ")]
MAKE = [c for c in COMMANDS if c.startswith("make ")]


def test_the_readme_stays_short_and_every_command_has_its_test() -> None:
    assert len(README.splitlines()) <= 150
    assert set(COMMANDS) == {*MAKE, *SERVED, *(f".venv/bin/python -m {c}" for c in PYTHON)}
    told = (ROOT / "tests" / "test_deployments.py").read_text()
    for command in SERVED:
        for word in command.replace("--no-prompt", "").split()[1:3]:
            assert word.strip("'") in told, command


@pytest.mark.parametrize("command", [*MAKE, "make ui", "make check", "make test-all", "make bench", "make chaos", "make concurrent", "make gc", "make help"])
def test_make_knows_the_command(command: str) -> None:
    subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, check=True, capture_output=True)


def test_links_and_files_named_in_the_readme_exist() -> None:
    for name in re.findall(r"`((?:flows|components|conf|tests|benchmarks|mlruns|docs)/[\w./]*|prefect\.yaml|data\.dvc)`", README):
        assert (ROOT / name).exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("command", PYTHON)
def test_a_command_of_the_readme_runs(finished: Workspace, command: str) -> None:
    module, *arguments = command.split()
    finished.draw_examples()
    if "<run" in command:
        client = finished.mlflow()
        runs = client.search_runs([client.get_experiment_by_name("glyphs").experiment_id])
        run = next(r.info.run_id for r in runs if r.data.tags["stage"] == "retrain" and "data.md5" in r.data.tags)
        arguments = [f"data.pin={run}", SMOKE]
    assert finished.run(module, *arguments).stdout


def test_every_learner_is_documented() -> None:
    from components.learners.options import FAMILIES

    told = (ROOT / "docs" / "learners.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", told, re.M)) == set(FAMILIES)
    assert {p.stem for p in (ROOT / "conf" / "learner").glob("*.yaml")} == set(FAMILIES)


def test_every_domain_is_documented() -> None:
    told = set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in (ROOT / "docs" / "domains.md").read_text().splitlines() if line.startswith("| `")))
    )
    domains = {p.stem for p in (ROOT / "conf" / "domain").glob("*.yaml")}
    assert told == {name for name in domains if not name.endswith("_evaluation")}
