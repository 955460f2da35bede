"""MLflow's and Prefect's own pages in a headless Chromium: what users see of a pipeline there, read from the page."""

import json
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from served import Server
from workspace import PATIENCE, Workspace, free_port, until

from flows.config import groups
from flows.writes import VIEW_TAG

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ALONE = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

PARENT = "mlflow.parentRunId"
Shown = Callable[[str, str], str]


@pytest.fixture(scope="module")
def pages(finished: Workspace) -> Iterator[dict[str, str]]:
    """Run MLflow as `make ui` does; return the addresses that it prints, `server` the first."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "flows.ui", port], env=finished.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        server = process.stdout.readline().split()[1]
        lists = [one for one in finished.mlflow().search_experiments() if VIEW_TAG in one.tags]
        told = dict(process.stdout.readline().strip().split(": ", 1) for _ in lists)
        until(lambda: urllib.request.urlopen(f"{server}/health", timeout=5).read() == b"OK")
        yield {"server": server, **told}
    finally:
        process.terminate()
        process.wait(PATIENCE)
        until(lambda: not finished.processes("mlflow"))  # none outlives the server


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Open an address, wait until the page holds a text, leave a screenshot, and return the page's text."""
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("screenshots")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ALONE)
        window = browser.new_page(viewport={"width": 1600, "height": 1000})
        assistant = window.locator("[data-component-id='mlflow.assistant.chat_panel.close']")

        def open_page(address: str, wanted: str) -> str:
            window.goto("about:blank")  # the next address may differ behind the # alone
            window.goto(address)
            window.get_by_text(wanted).first.wait_for(timeout=1000 * PATIENCE)
            window.wait_for_timeout(1500)  # the page asks its server again and again: it is never idle
            if assistant.is_visible():  # MLflow opens it at a browser's first visit, over a quarter of the window
                assistant.click()
                window.wait_for_timeout(500)
            window.screenshot(path=folder / f"{len(list(folder.iterdir()))}.png")
            return window.inner_text("body")

        yield open_page
        browser.close()


def test_the_list_of_runs_tells_data_learner_fate_scores_and_size(finished: Workspace, pages: dict[str, str], shown: Shown) -> None:
    client = finished.mlflow()
    runs = client.search_runs([client.get_experiment_by_name("glyphs").experiment_id], "tags.stage = 'retrain'", order_by=["attributes.start_time DESC"])
    # the first on the page that has a score: one that was refused has none, and a sweep's are folded away
    run = next(run for run in runs if "test/5w1s/accuracy" in run.data.metrics and PARENT not in run.data.tags)
    metrics = run.data.metrics
    text = shown(pages["glyphs"], run.info.run_name)
    mean, half = (100 * metrics[f"test/5w1s/accuracy{end}"] for end in ("", "_ci95"))
    for told in (
        f"{mean:.1f} ± {half:.1f}",
        run.data.params["learner.name"],
        run.data.tags["fate"],
        "glyphs (",
        f"{metrics['parameters']:.0f}",
        "5w1s",
    ):
        assert told in text, (told, text)


def test_the_compare_page_has_learners_under_the_same_names(finished: Workspace, pages: dict[str, str], shown: Shown) -> None:
    client = finished.mlflow()
    experiment = client.get_experiment_by_name("glyphs").experiment_id
    runs = [client.search_runs([experiment], f"tags.stage = '{stage}'")[0] for stage in ("teacher", "base")]
    asked = {"runs": json.dumps([run.info.run_id for run in runs]), "experiments": json.dumps([experiment])}
    text = shown(f"{pages['server']}/#/compare-runs?{urllib.parse.urlencode(asked, quote_via=urllib.parse.quote)}", "adapt/seconds")
    table = text[text.rindex("\nMetrics\n") : text.rindex("\nArtifacts\n")].split("\n")[3:]  # names that are in sight, then two values a name
    names = table[: len(table) // 3]
    assert names == sorted(names) and len(table) == 3 * len(names)
    place = len(names) + 2 * names.index("test/5w1s/accuracy")
    assert [float(value) for value in table[place : place + 2]] == pytest.approx([run.data.metrics["test/5w1s/accuracy"] for run in runs], abs=0.001)


def test_the_page_of_a_version_is_its_card(finished: Workspace, pages: dict[str, str], shown: Shown) -> None:
    text = shown(f"{pages['server']}/#/models/glyphs/versions/1", "Intended use.")
    for part in ("Scores.", "Limits.", "Data.", "Lineage.", "there was no champion", "fused"):
        assert part in text, (part, text)
    assert re.search(r"fused\s+\d\d\.\d\d ± ", text), "the table is one, not its Markdown"


def test_a_figure_is_drawn_among_the_artifacts(finished: Workspace, pages: dict[str, str], shown: Shown) -> None:
    client = finished.mlflow()
    experiment = client.get_experiment_by_name("glyphs").experiment_id
    run = client.search_runs([experiment], "tags.stage = 'retrain'")[-1].info.run_id
    text = shown(f"{pages['server']}/#/experiments/{experiment}/runs/{run}/artifacts/figures/trade-off-5w1s.png", "trade-off-5w1s.png")
    assert "Unable" not in text and "Couldn't" not in text


def test_prefects_form_offers_what_can_be_chosen_and_its_run_shows_log_and_result(server: Server, shown: Shown) -> None:
    deployment = server.ask("deployments/name/retrain/manual")["id"]
    place = server.url.removesuffix("/api")
    form = shown(f"{place}/deployments/deployment/{deployment}/run", "How the teacher learns")
    told = [
        "experiment (Optional)",
        "A whole set of values for one domain",
        "learner (Optional)",
        "seed (Optional)",
        "overrides (Optional)",
        "one an entry, such as tasks.way=20",
    ]
    assert [form.index(part) for part in told] == sorted(form.index(part) for part in told), "what is most used comes first"
    schema = server.ask(f"deployments/{deployment}")["parameter_openapi_schema"]["properties"]
    assert schema["experiment"]["enum"] == ["", *groups()["experiment"]] and schema["learner"]["enum"] == ["", *groups()["learner"]]
    refused = server.command("deployment", "run", "retrain/manual", "-p", "experiment=none-such")
    assert refused.returncode != 0 and "none-such" in refused.stdout + refused.stderr
    before = {run["id"] for run in server.flow_runs("manual")}
    made = server.command("deployment", "run", "retrain/manual", "-p", "experiment=smoke", "-p", "student.count=0", "--watch")
    assert made.returncode != 0, "a parameter that the flow does not have"
    made = server.command(
        "deployment", "run", "retrain/manual", "-p", "experiment=smoke", "-p", "learner=ridge", "-p", 'overrides=["student.count=0"]', "--watch"
    )
    assert made.returncode == 0, made.stdout[-2000:] + server.log()
    (run,) = [run for run in server.flow_runs("manual") if run["id"] not in before]
    assert run["name"] == "glyphs-seed0-smoke"
    assert "teacher  epoch 2/2" in shown(f"{place}/runs/flow-run/{run['id']}", "teacher: running (")
    artifact = server.ask("artifacts/filter", {"artifacts": {"key": {"any_": ["result"]}, "flow_run_id": {"any_": [run["id"]]}}})[0]
    page = shown(f"{place}/artifacts/artifact/{artifact['id']}", "Promotion:")
    assert "teacher" in page and "MLflow run" in page and f":{server.mlflow_port}/#/experiments/" in artifact["data"]
