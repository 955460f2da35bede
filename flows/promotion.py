"""Promotion: the pipeline's learner becomes challenger, and champion when there is none or when it has earned it on the gate split."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from prefect import task

from components.contracts import RegistrySection, StageRef
from components.lineage import trained_on
from components.plain import fingerprint, to_plain
from components.scores import SCORES
from flows import registry, tracking
from flows.plan import Outside
from flows.stages import Pipeline
from flows.versions import Pinned

BEFORE = "decided before: "
BY_HAND = "promote by hand with python -m flows.promote"


@dataclass(frozen=True)
class Decision:
    """What became of the learner: its registered version, whether it is champion, and why."""

    model: str
    version: str
    champion: bool
    reason: str

    @property
    def told(self) -> str:
        """The decision in one line."""
        if not self.version:
            return f"{self.model}: {self.reason}"
        return f"{self.model} version {self.version} {'is champion' if self.champion else 'stays challenger'}: {self.reason}"


def waiting(line: Pipeline) -> Decision:
    """Return what stands in a decision's place for one run of a sweep: judged by gate tasks each, of twenty no better ones the luckiest would win."""
    return Decision(line.config.registry.model, "", False, "of a sweep's runs, the best by validation tasks contends when all have ended")


def judge(metrics: dict[str, float], champion: bool, met: int, margin: float) -> tuple[bool, str]:
    """Decide by the paired difference on the gate split: its whole 95 % interval must lie above the margin.

    `champion` says whether there is one, `met` how many of its training classes are among the gate and test classes. Where less of a
    score is better, the difference counts the other way round.
    """
    if not champion:
        return True, "there was no champion"
    if met:
        return False, f"the champion was trained on {met} of the gate and test classes: not compared; {BY_HAND}"
    name = next((n for n in metrics if n.startswith("gate/") and n.count("/") == 2 and "-minus-champion/" in n and not n.endswith("_ci95")), None)
    if name is None:
        return False, f"the champion takes other inputs than these data have: not compared; {BY_HAND}"
    label, score = name.split("/")[1].replace("-minus-", " - "), SCORES[name.rpartition("/")[2]]
    mean, half = score.sign * metrics[name], metrics[f"{name}_ci95"]
    better = "" if score.sign > 0 else " (less is better)"
    gap, around, least = (f"{score.factor * value:{sign}.{score.digits}f}" for value, sign in ((metrics[name], "+"), (half, ""), (margin, "")))
    shown = f"{label} on the gate split {gap} +- {around}{better}, margin {least}"
    return mean - half > margin, shown + (": better by it" if mean - half > margin else ": not better by it")


def rails(metrics: dict[str, float], ours: str, limits: RegistrySection) -> list[str]:
    """Return every guard rail that the learner `ours` runs into, in words; none where it keeps within them all."""
    found = []
    for name, most in (("parameters", limits.max_parameters), ("flops", limits.max_flops)):
        if most is not None and metrics[f"{ours}/{name}"] > most:
            found.append(f"{metrics[f'{ours}/{name}']:,.0f} {name} exceed registry.max_{name}={most:,.0f}")
    for key, before in metrics.items():
        if key.startswith("gate/") and key.endswith("/champion/ece") and limits.max_ece_rise is not None:
            setting, now = key.split("/")[1], metrics[key.replace("/champion/", f"/{ours}/")]
            if now - before > limits.max_ece_rise:
                found.append(
                    f"ECE on the gate split, {setting}, {now:.3f} exceeds the champion's {before:.3f} by more than registry.max_ece_rise={limits.max_ece_rise}"
                )
    return found


@task(name="promote", task_run_name="promote")
def promote(line: Pipeline, pool: Pinned, ours: StageRef, evaluation: StageRef, outside: Outside) -> Decision:
    """evaluation -> registry alias. Registers a learner once; running it again on the same terms decides nothing new."""
    tracking.settle()
    run_id = tracking.known(ours.run_id)  # a store may have never known it, or lost it: the output is there all the same
    line = dataclasses.replace(line, run_id=tracking.known(line.run_id))  # opened while MLflow did not answer, it had another name
    ours = dataclasses.replace(ours, run_id=run_id if tracking.has_run(run_id) else line.run_id)
    with registry.alone(line.config.registry.model):
        return _promote(line, pool, ours, evaluation, outside)


def _promote(line: Pipeline, pool: Pinned, ours: StageRef, evaluation: StageRef, outside: Outside) -> Decision:
    model, store = line.config.registry.model, tracking.store()
    known = tracking.version_with(model, "fingerprint", ours.fingerprint)
    beaten = outside.champion[1] if outside.champion else "none"
    terms = fingerprint({"incumbent": beaten, "limits": to_plain(line.config.registry)})
    if known is not None and _stands(known.tags, terms):
        champion = tracking.alias(model, "champion")
        holds = champion is not None and champion.version == known.version
        return Decision(model, str(known.version), holds, f"{BEFORE}{known.tags['decision']}")
    tags = {"fingerprint": ours.fingerprint, "digest": ours.digest, "data.md5": line.tags["data.md5"]}
    tags |= {"retrain.run_id": line.run_id, "evaluation": evaluation.fingerprint}
    tags |= {"started": outside.started} if outside.started else {}
    version = str(known.version) if known is not None else tracking.register(ours.run_id, model, ours.path, pool.path, tags)
    store.set_registered_model_alias(model, "challenger", version)
    met = _met(outside.champion[0], pool) if outside.champion else 0
    wins, reason = judge(evaluation.metrics, outside.champion is not None, met, line.config.registry.margin)
    if own := _met(ours.path, pool):
        wins, reason = False, f"it began from what was trained on {own} of the gate and test classes: its scores are not those of new ones; {BY_HAND}"
    refused = rails(evaluation.metrics, ours.name, line.config.registry)
    if refused:
        wins, reason = False, f"{reason}; refused: {'; '.join(refused)}"
        for set_tag, where in ((store.set_model_version_tag, (model, version)), (store.set_tag, (line.run_id,))):
            set_tag(*where, "refused", "; ".join(refused))
    if known is not None and "decision" in known.tags:  # of other terms: beside the new ones it would pass for theirs
        store.delete_model_version_tag(model, version, "decision")
    store.set_model_version_tag(model, version, "terms", terms)
    store.set_model_version_tag(model, version, "incumbent", beaten)  # before the alias: killed between the two, the next run decides the same
    standing = tracking.alias(model, "champion")
    if wins and standing is not None and standing.tags.get("fingerprint") not in (ours.fingerprint, beaten):
        reason = f"version {standing.version} became champion meanwhile: not compared with it; run the same command again"
        store.set_tag(line.run_id, "promotion", reason)
        return Decision(model, version, False, reason)  # no decision is kept, so that the next run makes one
    if wins:
        store.set_registered_model_alias(model, "champion", version)
    store.set_model_version_tag(model, version, "decision", ("champion: " if wins else "challenger: ") + reason)
    store.set_tag(line.run_id, "promotion", reason)
    return Decision(model, version, wins, reason)


def _stands(tags: dict[str, str], terms: str) -> bool:
    """Tell whether a version's decision is one for these terms.

    Who became champion once, and was set aside by hand, does not come back by itself; who stayed challenger is judged anew by other limits, or beside
    another champion.
    """
    decision = tags.get("decision", "")
    return decision.startswith("champion:") or (bool(decision) and tags.get("terms", terms) == terms)


def _met(learner: str, pool: Pinned) -> int:
    """Count the training classes of the learner in a folder, and of what it began from, that are gate or test classes now."""
    import pyarrow.parquet as pq

    table = pq.read_table(Path(pool.path) / "classes.parquet")
    held_out = {n for n, s in zip(table["name"].to_pylist(), table["split"].to_pylist(), strict=True) if s in ("gate", "test")}
    told = json.loads((Path(learner) / "learner.json").read_text())["about"]
    return len(held_out & trained_on(told, pool.domain))
