"""Combinations of sections that cannot work, each told in one line before anything is built."""

from pathlib import Path

from components.contracts import Config, LearnerSection, require
from components.learners.options import family


def check(config: Config) -> None:
    """Raise InputError for combinations of sections that cannot work, before anything is built."""
    domain = config.domain
    for where, section in (("learner", config.learner), ("student.learner", config.student.learner)):
        _check_learner(where, section, config)
    require(
        domain.objective == "cross_entropy" or config.base.turns == 1,
        f"base.turns must be 1 in domain {domain.name}, whose items are no pictures, got {config.base.turns}. Use base.turns=1.",
    )
    centroids = config.student.learner.name in ("protonet", "base") and domain.objective == "cross_entropy"
    require(
        config.fusion.mode != "concat" or centroids,
        f"fusion.mode=concat needs students with a shared encoder and one mean a class, got {config.student.learner.name}. Use fusion.mode=weights.",
    )
    _check_challenge(config)
    for name, size in (("base.batch", max(1, config.base.batch // 32)), ("learner.tasks_per_step", config.learner.tasks_per_step)):
        parts = config.trainer.accumulate * config.trainer.devices
        require(size % parts == 0, f"{name} must split into trainer.accumulate x trainer.devices = {parts} equal parts, got {size}. Change one of them.")


def _check_challenge(config: Config) -> None:
    asked, domain = config.evaluation.challenge, config.domain
    if asked is None:
        return
    pictures = domain.objective == "cross_entropy" and config.backbone.name == "conv"
    require(pictures, f"evaluation.challenge asks for pictures of classes, got domain {domain.name}. Leave it out, or use domain=omniglot.")
    if asked == "lookalike":
        require(domain.name.startswith("omniglot"), f"evaluation.challenge=lookalike needs original drawings, got domain {domain.name}. Use domain=omniglot.")
        return
    found = Path(asked).is_dir() and any(Path(asked).glob("*/class_labels.txt"))
    require(found, f"evaluation.challenge must be a folder of <run>/class_labels.txt, or lookalike, got {asked!r}. Unpack the runs there.")


def _check_learner(where: str, section: LearnerSection, config: Config) -> None:
    of, domain = family(section.name), config.domain
    require(
        domain.objective in of.objectives,
        f"{where}={section.name} cannot learn domain {domain.name}, which asks for {domain.objective}: {of.why}. Choose a learner such as ridge or maml.",
    )
    norm = section.options["norm"]
    require(
        section.start != "scratch" or norm != "running" or config.backbone.name == "mlp" or config.backbone.norm != "batch",
        f"{where}.start=scratch needs {where}.options.norm other than running (there are no statistics yet), got running. Change one of them.",
    )
    require(
        section.name != "local" or config.backbone.name == "conv", f"{where}=local needs feature maps, got backbone={config.backbone.name}. Use backbone=conv4."
    )
    require(
        not section.checkpoint_inner or of.inner, f"{where}.checkpoint_inner is for learners with an inner loop, got {where}={section.name}. Set it to false."
    )
    require(
        not (section.checkpoint_inner and section.options.get("multi_step_loss")),
        f"{where}.checkpoint_inner keeps no losses between, got multi_step_loss. Set {where}.options.multi_step_loss=false.",
    )
