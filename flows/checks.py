"""Combinations of sections that cannot work, each told in one line before anything is built."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts import Config, TrainerSection
from components.domains.options import OPTIONS, OwnFiles
from components.inputs import require
from components.learners.options import FAMILIES, family
from components.learning import SHARD, BackboneSection, LearnerSection
from components.plain import describe, narrow

if TYPE_CHECKING:
    from flows.plan import Outside


def check(config: Config) -> None:
    """Raise InputError for combinations of sections that cannot work, before anything is built."""
    domain = config.domain
    drawn = "size" in domain.source
    shape = (3 if domain.source.get("colour") else 1, domain.source["size"], domain.source["size"]) if drawn else (1,)
    config.backbone.check_reads(shape)
    for i in range(config.student.count):
        config.student.backbone(i, config.backbone).check_reads(shape, "student")
    for name, turns in (("base.turns", config.base.turns), ("tasks.turns", config.tasks.turns)):
        told = f"{name} must be 1 in domain {domain.name}, whose items are no pictures, got {turns}. Use {name}=1."
        require(drawn or turns == 1, told)
    cut = any(recipe.cutmix for recipe in (config.student.recipe, *config.student.recipes().values()))
    require(drawn or not cut, f"student.recipe.cutmix joins pictures, which domain {domain.name} lacks. Set it to 0.")
    bent = [f"domain.augment.{name}" for name, value in vars(domain.augment).items() if value and not drawn]
    told = f"base.label_smoothing must be 0 in domain {domain.name}, whose items have no classes, got {config.base.label_smoothing}. Set it to 0."
    require(domain.objective == "cross_entropy" or not config.base.label_smoothing, told)
    require(not bent, f"{', '.join(bent)} must be 0 in domain {domain.name}, whose items are no pictures. Set them to 0.")
    for where, section in (("learner", config.learner), ("student.learner", config.student.learner)):
        _check_learner(where, section, config)
    _check_source(config)
    _check_played(config)
    _check_backbone(config)
    _check_recipes(config)
    _check_fusion(config)
    _check_challenge(config)
    _check_nodes(config.trainer)
    played = domain.objective == "return"
    shards = max(1, config.base.batch // (config.tasks.query if played else SHARD))  # equal parts that a step of the base is made of
    odd = 0 if played else config.base.batch % shards  # episodes are played in whole tasks, some fewer than asked
    require(odd == 0, f"base.batch must split into {shards} equal parts, got {config.base.batch}. Use {config.base.batch - odd}.")
    sizes = {"base.batch": shards, "learner.tasks_per_step": config.learner.tasks_per_step}
    if config.student.count:
        sizes["student.learner.tasks_per_step"] = config.student.learner.tasks_per_step
        sizes |= {"fusion.tasks_per_step": config.fusion.tasks_per_step} if config.fusion.fits() else {}
    for name, size in sizes.items():
        parts = config.trainer.accumulate * config.trainer.devices * config.trainer.nodes
        told = f"{name} must split into trainer.accumulate x trainer.devices x trainer.nodes = {parts} equal parts"
        require(size % parts == 0, f"{told}, got {size}. Change one of them.")


def _check_nodes(trainer: TrainerSection) -> None:
    """Look for where the other machines are to come."""
    if trainer.nodes == 1:
        return
    host, _, port = (trainer.rendezvous or "").rpartition(":")
    told = "trainer.rendezvous must be host:port of this machine, as the other ones reach it, where trainer.nodes is above 1"
    require(bool(host) and port.isdecimal(), f"{told}, got {trainer.rendezvous or 'none'}. Use trainer.rendezvous=<host>:29500.")
    told = "trainer.runner must be sequential where trainer.nodes is above 1: the machines train one learner at a time"
    require(trainer.runner == "sequential", f"{told}, got {trainer.runner}. Use trainer.runner=sequential.")


def _check_source(config: Config) -> None:
    """Look for the user's own files, unless a version of them that DVC keeps is asked for."""
    options = OPTIONS[config.domain.name](**config.domain.source)
    if config.data.pin is None and isinstance(options, OwnFiles) and options.given:
        _ = options.place
    for key, query in (("tasks.query", config.tasks.query), ("evaluation.query", config.evaluation.query)):
        told = f"{key} must be at least 2 for domain {config.domain.name}, whose tasks ask for an order, got {query}. Raise it."
        require(config.domain.objective != "ranking" or query >= 2, told)
    source, query = config.domain.source, config.evaluation.query
    cells, beside = source.get("cells", 0), source["negatives"] if source.get("rating", "") is None else 0
    told = f"domain.source.cells must be at least {-(-query // (1 + beside))} for evaluation.query={query}, or 0, got {cells}"
    require(not cells or cells * (1 + beside) >= query, f"{told}. Raise it, or lower the query.")


def _check_played(config: Config) -> None:
    """Look at what environments cannot have."""
    of = config.domain.name
    if config.domain.objective != "return":
        return
    mode = config.fusion.mode
    require(mode in ("average", "weights"), f"fusion.mode must be average or weights in domain {of}, whose policies act as one, got {mode}. Change it.")
    require(config.trainer.accelerator == "cpu", f"trainer.accelerator must be cpu in domain {of}, which plays on the processor. Use trainer=cpu.")
    told = f"trainer.accumulate must be 1 in domain {of}, where what is played serves several steps"
    require(config.trainer.accumulate == 1, f"{told}, got {config.trainer.accumulate}. Play fewer tasks a step instead: learner.tasks_per_step.")
    for recipe in (config.student.recipe, *config.student.recipes().values()):
        parts = {k: v for k, v in vars(recipe).items() if k not in ("soft_weight", "temperature") and v}
        require(not parts, f"student.recipe takes soft_weight alone in domain {of}, got {', '.join(parts)} too. Set them to 0.")
    own, taught, world = config.learner, config.student.learner, config.trainer.devices * config.trainer.nodes
    each = config.base.batch // config.tasks.query // world
    told = f"base.batch must be at least {2 * world} times tasks.query={config.tasks.query}, since half of the environments are told what is hidden"
    require(each > 1, f"{told}, got {config.base.batch}. Raise it.")
    fits = {"base": (config.base.fit, config.base.policy), "learner": (own.fit, own.options), "student.learner": (taught.fit, taught.options)}
    for where, (fit, options) in (fits | {"fusion.again": (config.fusion.again, taught.options)}).items():
        told = f"{where}.fit.epoch_steps must be a multiple of the policy's updates={options['updates']}"
        require(fit.steps == 0 or fit.epoch_steps % options["updates"] == 0, f"{told}, got {fit.epoch_steps}. Change one of them.")
    for where, section in (("learner", own), ("student.learner", taught)):
        need = -(-config.tasks.shot // section.options["episodes"]) + 1
        told = f"tasks.query must be at least {need}, an episode before each round of {where} and one more"
        require(config.tasks.query >= need, f"{told}, got {config.tasks.query}. Raise it, or {where}.options.episodes.")
        each = section.tasks_per_step // world
        told = f"{where}.tasks_per_step must be at least 2 a process, since what is believed is compared between tasks"
        require(each > 1 or not section.options["belief"], f"{told}, got {each}. Raise it.")


def _check_backbone(config: Config) -> None:
    """Read the weights that the backbone is to begin from; whether the domain has such inputs is `check_pool`'s."""
    own, learner = config.backbone, config.learner
    played = own.start is not None and config.domain.objective == "return"
    require(not played, f"backbone.start has no context to act by, which domain {config.domain.name} asks for, got {own.start}. Use backbone.start=null.")
    if own.start is not None:
        from components import backbones  # torch, which nothing else here needs

        backbones.load(own.start, own, None)
    require(not own.frozen or own.start is not None, "backbone.frozen=true keeps weights as they are, got backbone.start=null. Name a folder of weights.")
    others = not (own.frozen and learner.start.startswith("models:/"))
    require(others, f"backbone.frozen=true keeps backbone.start, got learner.start={learner.start}, which brings other weights. Use learner.start=pretrained.")
    able = ", ".join(name for name, of in FAMILIES.items() if of.beside_start and config.domain.objective in of.objectives)
    told = f"learner={learner.name} learns nothing but where weights start, which backbone.frozen=true keeps"
    require(not own.frozen or family(learner.name).beside_start, f"{told}. Choose one of {able}.")


def check_pool(config: Config, pool: str) -> None:
    """Raise InputError for what the pool in folder `pool` cannot give: inputs of the backbone's weights, shots of a lesson, runs of a look-alike."""
    own, challenge = config.student, config.evaluation.challenge
    shots = max(r.teacher_shots for r in (own.recipe, *own.recipes().values())) if own.count else 0
    if config.backbone.start is None and not shots and challenge != "lookalike":
        return  # nothing that needs to be opened
    from components.domains.pool import check_shots, open_pool

    opened = open_pool(pool)
    if config.backbone.start is not None:
        from components import backbones

        backbones.load(config.backbone.start, config.backbone, opened.input_shape)
    if shots:
        check_shots(opened, config.tasks.shot, config.tasks.query, shots)
    if challenge == "lookalike":
        from components.domains.oneshot import large_groups

        large_groups(opened, "test")


def check_new(config: Config, pool: Path) -> None:
    """Raise InputError where a new version of the data, in folder `pool`, cannot give the tasks that are asked for."""
    from components.domains.pool import open_pool
    from components.tasksets import check as check_table
    from components.tasksets import specs, tuning_specs

    opened = open_pool(pool)
    for spec in [*specs(config.tasks, config.evaluation, opened.cells), *(tuning_specs(config.evaluation) if opened.targets is not None else [])]:
        check_table(spec, opened)
    check_pool(config, str(pool))


def check_devices(config: Config) -> None:
    """Raise InputError where a GPU is asked for and none is there: on the machine that trains, which need not be the one that asks."""
    if config.trainer.accelerator != "gpu":
        return
    import torch

    there = torch.cuda.is_available() or torch.backends.mps.is_available()
    require(there, f"trainer.accelerator={config.trainer.accelerator} needs a GPU that torch can use, got none. Use trainer=cpu, or install a CUDA build.")


def check_outside(config: Config, pool: str, outside: "Outside") -> None:
    """Raise InputError where a model from outside, to start from or to be taught by, takes other inputs than the pool in folder `pool` has."""
    starts = {f"learner.start={config.learner.start}": outside.start[0]} if outside.start else {}
    teachers = {f"student.teacher={name}": folder for name, (folder, _) in outside.teachers.items()}
    if not starts and not teachers:
        return
    from components.domains.pool import Pool, open_pool
    from components.domains.seen import misfit, view
    from components.learners import past

    opened = open_pool(pool)
    for where, folder in (starts | teachers).items():
        told = json.loads((Path(folder) / "learner.json").read_text())
        spec = past.specification(told["spec"])
        if where in starts:  # weights can begin anywhere
            seen: Pool | None = opened
            reason = misfit(spec, spec["objective"], opened)
            own = spec.get("member", spec).get("backbone")  # a learner that looks at several views has a member
            asked = vars(narrow(config.backbone, BackboneSection))
            if not reason and own != asked:
                reason = f"The model has backbone {own}, where the config asks for {asked}"
            names = [kept["names"] for kept in (told["about"].get("columns"), opened.kept.get("columns")) if kept]
            if not reason and len(names) == 2 and names[0] != names[1]:
                reason = f"The model reads columns {describe(names[0])}, but the data have {describe(names[1])}, in this order"
        else:  # a teacher must read what it is shown
            seen, reason = view(opened, folder, spec, told["about"], config.domain.objective)
            if not reason and not _encodes(spec) and _asks_features(config):
                reason = f"{FEATURES}, which {spec['name']} lacks"
        require(not reason, f"{where} must name a model of such inputs. {reason}. Choose another.")
        learned = f"{where} must name a model of this version of domain {opened.domain}, got one of other columns, scales or factors"
        require(seen is opened, f"{learned}. Retrain it on these data, or begin from it: learner.start.")


FEATURES = "class_weight, feature_weight and relation_weight need one encoder for all tasks"


def _asks_features(config: Config) -> bool:
    recipes = (config.student.recipe, *config.student.recipes().values())
    return any(recipe.class_weight or recipe.feature_weight or recipe.relation_weight for recipe in recipes)


def _encodes(spec: dict[str, Any]) -> bool:
    """Say whether a stored learner has one encoder for all tasks."""
    inner = [spec["member"]] if "member" in spec else spec.get("members", [])
    return all(map(_encodes, inner)) if inner else spec["name"] in ("theta*", "linear") or family(spec["name"]).encodes


def _check_recipes(config: Config) -> None:
    own, classes = config.student, config.domain.objective == "cross_entropy"
    learners = {"student.learner": own.learner.name, "learner": config.learner.name}
    if "teacher" not in own.teachers():
        del learners["learner"]
    for recipe in (own.recipe, *own.recipes().values()):
        even = classes or recipe.temperature == 1 or config.domain.objective == "return"
        told = f"student.recipe.temperature softens distributions, which tasks of domain {config.domain.name} do not have, got {recipe.temperature:g}"
        require(even, f"{told}. Set it to 1, and leave it out of student.sweep.")
        require(
            classes or not recipe.class_weight, f"student.recipe.class_weight needs training classes, which domain {config.domain.name} lacks. Set it to 0."
        )
    for where, name in learners.items() if _asks_features(config) else ():
        require(family(name).encodes, f"{FEATURES}, which {where}={name} lacks. Set them to 0, or choose a learner such as protonet or ridge.")


def _check_fusion(config: Config) -> None:
    own, mode = config.fusion, config.fusion.mode
    every = {"students": config.student.learner.name, "teacher": config.learner.name, "base": "base"}
    names = {kind: every[kind] for kind in own.members if kind != "linear"}
    classes, values = config.domain.objective == "cross_entropy", config.domain.objective == "squared_error"
    told = f"fusion.members=linear is a model of values, got objective {config.domain.objective}. Leave it out."
    require(values or len(names) == len(own.members), told)
    require(len(names) > 0, f"fusion.members takes a learner beside linear, got {own.members}. Use fusion.members=[students,linear].")
    if own.adapt == "joint":
        inner = {family(name).inner for name in names.values()} | ({False} if len(names) < len(own.members) else set())
        told = "fusion.adapt=joint takes steps on all members as one"
        require(len(inner) == 1, f"{told}, got members that take steps and others that do not. Use fusion.adapt=members.")
        views = max(config.student.learner.views, config.learner.views if "teacher" in own.members else 1)
        require(views == 1, f"{told}, which copies of pictures that are averaged hide, got views={views}. Use fusion.adapt=members, or views=1.")
        fits = mode != "conditioned" and config.domain.objective != "return"
        require(fits, f"{told}, which mode {mode} in domain {config.domain.name} does not have. Use fusion.adapt=members.")
    options = {"students": config.student.learner.options, "teacher": config.learner.options}
    curved = [kind for kind, of in options.items() if of.get("distance", "cosine") != "cosine"]  # by other distances than the one that joins them
    odd = [name for kind, name in names.items() if not family(name).centroids or not classes or kind in curved]
    require(
        mode not in ("concat", "whitened") or not odd,
        f"fusion.mode={mode} needs members with a shared encoder and one mean a class, got {', '.join(odd)}. Use fusion.mode=weights.",
    )
    encode = all(family(name).encodes for name in names.values())
    for where, asked in (("lessons", "taught" in own.fits()), ("again", own.again.steps > 0)):
        fits = not asked or encode or not _asks_features(config)
        require(fits, f"fusion.{where} is taught with what not all members have: {FEATURES}. Set fusion.{where}.steps=0.")
    encoders = encode and config.backbone.name == "conv"
    require(
        own.views == 1 or config.domain.augment.bends,
        f"fusion.views={own.views} averages bent copies of a picture, got domain.augment of zeros. Set fusion.views=1.",
    )
    require(own.views == 1 or encoders, f"fusion.views={own.views} average features of pictures, which not all members make. Set fusion.views=1.")
    single = mode != "greedy" or config.domain.objective != "ranking"
    require(single, f"fusion.mode=greedy needs a loss of single answers, got domain {config.domain.name}, which asks for an order. Use fusion.mode=average.")
    require(mode != "soup" or config.student.count > 1, f"fusion.mode=soup needs two students at least, got {config.student.count}. Raise student.count.")
    measured = encode or config.backbone.name == "mlp" or config.backbone.norm != "batch"
    told = f"fusion.mode=soup measures the statistics of a mean of networks anew, which students of {config.student.learner.name} share with no encoder"
    require(mode != "soup" or measured, f"{told}. Use fusion.mode=average, or backbone.norm=group.")
    require(mode != "conditioned" or classes, f"fusion.mode=conditioned needs classes, got domain {config.domain.name}. Use fusion.mode=weights.")
    require(
        mode != "soup" or (config.student.same_start and own.members == ["students"]),
        "fusion.mode=soup needs members that began at the same weights: the mean of networks trained from different starts is no network. "
        "Use student.same_start=true with fusion.members=[students], or fusion.mode=weights.",
    )


def _check_challenge(config: Config) -> None:
    asked, domain = config.evaluation.challenge, config.domain
    if asked is None:
        return
    pictures = domain.objective == "cross_entropy" and config.backbone.name == "conv" and not domain.source.get("colour")
    require(pictures, f"evaluation.challenge asks for grey pictures of classes, got domain {domain.name}. Leave it out, or use domain=omniglot.")
    if asked == "lookalike":
        require(domain.name.startswith("omniglot"), f"evaluation.challenge=lookalike needs original drawings, got domain {domain.name}. Use domain=omniglot.")
        return
    found = Path(asked).is_dir() and any(Path(asked).glob("*/class_labels.txt"))
    require(found, f"evaluation.challenge must be a folder of <run>/class_labels.txt, or lookalike, got {asked!r}. Unpack the runs there.")
    from components.domains.oneshot import check_pictures, check_runs

    check_runs(asked)
    check_pictures(asked)


def _check_learner(where: str, section: LearnerSection, config: Config) -> None:
    of, domain = family(section.name), config.domain
    drawn = where == "learner" or section.start == "scratch"
    require(drawn, f"{where}.start must be scratch, got {section.start}: students have networks of their own sizes. Use student.teacher to learn from a model.")
    able = ", ".join(name for name, one in FAMILIES.items() if domain.objective in one.objectives)
    told = f"{where}={section.name} cannot learn domain {domain.name}, which asks for {domain.objective}" + (f": {of.why}" if of.why else "")
    require(domain.objective in of.objectives, f"{told}. Choose one of {able}.")
    norm, brought = section.options.get("norm"), where == "learner" and config.backbone.start is not None
    require(
        section.start != "scratch" or norm != "running" or config.backbone.name == "mlp" or config.backbone.norm != "batch" or brought,
        f"{where}.start=scratch needs {where}.options.norm other than running (there are no statistics yet), got running. Change one of them.",
    )
    several = config.trainer.devices * config.trainer.nodes > 1
    require(
        not (norm == "per_step" and (section.checkpoint_inner or several)),
        f"{where}.options.norm=per_step counts statistics once a step and on one device, got checkpoint_inner or several devices. Set them back.",
    )
    require(
        section.options.get("inner_steps") != 0 or not several,
        f"{where}.options.inner_steps=0 leaves rates untrained, which several devices do not take. Use trainer.devices=1.",
    )
    require(
        where == "learner" or section.name not in ("reptile", "imaml"),
        f"student.learner={section.name} has a rule for its own loss, and students learn by their teachers'. Choose another: learner@student.learner=<name>.",
    )
    told = f"{where}.views={section.views} average the features of pictures by one encoder for all tasks"
    require(section.views == 1 or (of.encodes and config.backbone.name == "conv"), f"{told}, got {where}={section.name}. Set {where}.views=1.")
    told = f"{where}.views={section.views} averages bent copies of a picture, got domain.augment of zeros"
    require(section.views == 1 or domain.augment.bends, f"{told}. Set {where}.views=1.")
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
