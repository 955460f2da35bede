"""The page of results says what the pipelines printed."""

import re

import pytest
from workspace import SMOKE, Workspace


@pytest.mark.slow
def test_the_page_holds_the_table_that_was_printed_with_its_command_and_hardware(finished: Workspace) -> None:
    finished.retrain(SMOKE, "seed=0", "fusion.mode=average")
    finished.run("flows.retrain", SMOKE, "student.count=0", "seed=0,1", "--multirun")
    said = finished.run("flows.results", "out=results.md", "model=glyphs").stdout
    text = (finished.root / "results.md").read_text()
    sections = dict(re.findall(r"### `(.*?)`\n\n(.*?)(?=\n##|\Z)", text, re.S))
    assert re.fullmatch(rf"results.md: {len(sections)} results of glyphs\n", said)
    first = sections["python -m flows.retrain experiment=smoke"]
    printed = {row.split()[0]: re.findall(r"\d+\.\d+ ± \d+\.\d+", row) for row in finished.first.stdout.splitlines() if re.match(r" \w\S* +\d+\.\d+ ± ", row)}
    for name in ("pixels", "base", "teacher", "student-0", "fused", "students-mean"):
        (row,) = re.findall(rf"^\| {name} \|.*$", first, re.M)
        assert re.findall(r"\d+\.\d+ ± \d+\.\d+", row) == printed[name], name
    assert re.search(r"\d min \d\d s, \d+ cores \(.+\), \d+ GiB, code `[0-9a-f]{12}`, data `[0-9a-f]{12}`", first)
    assert "version" not in first, "its fate was that of a day"
    assert "python -m flows.retrain experiment=smoke seed=0 fusion.mode=average" in sections
    of_sweep = "python -m flows.retrain experiment=smoke student.count=0 seed=0,1 --multirun"
    assert "seed" in sections[of_sweep]
    about = re.search(r"\d min \d\d s, \d+ cores \(.+\), \d+ GiB, code `[0-9a-f]{12}`, data `[0-9a-f]{12}`", sections[of_sweep])
    assert about, sections[of_sweep]
    finished.run("flows.retrain", SMOKE, "student.count=0", "seed=0,1", "--multirun")
    finished.run("flows.results", "out=again.md", "model=glyphs")
    assert about[0] in (finished.root / "again.md").read_text(), "a sweep that only finds its runs is told by the one that made them"
    assert not [command for command in sections if command.endswith("student.count=0 seed=0")], "what a sweep ran is told by the sweep"


@pytest.mark.slow
def test_what_is_not_there_is_told(finished: Workspace, new_workspace) -> None:
    told = finished.run("flows.results", "out=x.md", "model=other", expect=2).stderr
    assert re.fullmatch(r"error: There must be finished runs of other, got glyphs(, \w+)*\. Run make retrain\.\n", told), told
    assert "got no MLflow database" in new_workspace().run("flows.results", "out=x.md", expect=2).stderr
