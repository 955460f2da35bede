"""Of a sweep's runs, the one that validation tasks call the best is judged against the champion, when all have ended."""

from collections.abc import Sequence

from flows import cards, promotion, registry, runlist, stages, tracking
from flows.caching import lookup
from flows.config import load
from flows.plan import contender
from flows.turns import turn
from flows.versions import pinned


def contend(overrides: Sequence[str], run_id: str) -> str:
    """Judge what the pipeline of these overrides made, in its own MLflow run; return the decision in one line."""
    config = load(overrides)
    with turn(config.domain.name), pinned(config.domain, config.data.pin, config.data.write_pin, config.mirror) as pool:
        plan, outside = registry.planned(config, pool.md5)
        if any(lookup(key) is None for key in plan.values()):  # since then another pipeline has made a champion, say
            return f"{config.registry.model}: what it would be judged by has changed meanwhile; run the same command again"
        made = {name: stages.as_ref(key, True) for name, key in plan.items()}
        ours, evaluation = made[contender(plan)], made["evaluation"]
        models = {name: ref for name, ref in made.items() if not name.startswith(("tasksets", "evaluation"))}
        tags = stages.environment_tags(None) | {"data.md5": pool.data_md5}
        line = stages.Pipeline(config, tracking.open_store(config.registry.model), run_id, tags)
        decision = promotion.promote.fn(line, pool, ours, evaluation, outside)  # of no flow: the pipeline that it is of has ended
        cards.write(line, pool, ours, models, evaluation, decision)
        runlist.summarise(line, ours, evaluation, decision)
        return decision.told
