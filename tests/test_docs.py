"""The documentation: it builds without a warning, what it names exists, and its commands run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from workspace import SMOKE, Workspace

ROOT = Path(__file__).parent.parent
NAVIGATION = re.findall(r": ([\w.]+)\.md", (ROOT / "mkdocs.yml").read_text())
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in NAVIGATION}  # in the order in which they are read
SHELL = [line.strip() for text in PAGES.values() for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines() if line.strip()]


def test_every_page_is_in_the_navigation() -> None:
    assert sorted(NAVIGATION) == sorted(page.stem for page in (ROOT / "docs").glob("*.md"))


def test_every_test_and_file_that_a_page_names_exists() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    for page, text in PAGES.items():
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in tests, (page, name)
        for name in re.findall(r"`((?:flows|components|conf|tests|benchmarks|docs|deploy)/[\w./-]*)`", text):
            assert (ROOT / name).exists(), (page, name)


def test_the_chinese_readme_has_the_commands_of_the_english_one() -> None:
    english, chinese = (re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(), re.S) for name in ("README.md", "README.zh.md"))
    commands = [[[line.split("  #")[0].strip() for line in block.splitlines()] for block in blocks] for blocks in (english, chinese)]
    assert commands[0] == commands[1]
    assert all((ROOT / name).exists() for name in re.findall(r"\]\(((?:docs/)?[\w.]+\.md)", (ROOT / "README.zh.md").read_text()))


def test_the_learner_that_is_shown_is_the_one_that_runs() -> None:
    shown = re.search(r"```python\n(class ProtoNet.*?)```", PAGES["guides"], re.S)
    assert shown is not None and shown[1] in (ROOT / "components" / "learners" / "metric.py").read_text()


def test_commands_are_python_or_make() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for command in SHELL:
        assert command.startswith(".venv/bin/python -m ") or (command.split()[0] == "make" and command.split()[1] in targets), command


@pytest.mark.slow
def test_the_commands_of_the_documents_run_one_after_the_other(finished: Workspace) -> None:
    told = []
    finished.draw_examples()
    for command in (c.removeprefix(".venv/bin/python -m ") for c in SHELL if c.startswith(".venv")):
        told.append(finished.run(*shlex.split(command)).stdout)
        assert told[-1], command
    assert SHELL[1].endswith(SMOKE) and SHELL[2] == SHELL[1], "the tutorial comes first; its first run has run"
    assert "is champion: there was no champion" in finished.first.stdout and "ran: nothing" in told[1]
    assert (finished.root / "named.csv").read_text().count("\n") == 2


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"})
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    reference = (tmp_path / "site" / "reference.html").read_text()
    for name in ("components.learners.learner.Learner", "components.contracts.TasksSection", "flows.retrain.retrain"):
        assert f'id="{name}"' in reference, name
    assert not re.findall(r'(?:src|href)="https?://(?!github|arxiv)[^"]+\.(?:js|css|woff2?)', reference), "nothing is fetched from elsewhere"
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text().replace("!!python", "#"))["theme"]["font"] is False


def test_the_hooks_before_a_commit_are_what_make_check_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    told = subprocess.run(["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [hook["entry"] for hook in hooks] == [line for line in told.splitlines() if line.startswith((".venv/bin/ruff", ".venv/bin/mypy"))]
