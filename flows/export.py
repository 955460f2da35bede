"""Write a model's backbone as weights that a learner can begin from: `python -m flows.export model=<uri> out=<folder>`"""

import sys

from flows import cli
from flows.paths import into_place, target_folder

HELP = """python -m flows.export model=<uri> out=<folder>

Writes backbone.json and backbone.safetensors, for `python -m flows.retrain backbone.start=<folder>` or for use elsewhere.
  model    models:/<name>@<alias>, models:/<name>/<version>, or the folder of a learner, such as a teacher's under mlruns/stages/teacher/
  out      a new folder
"""


def export(model: str, out: str) -> None:
    """Read the learner and write its one backbone. Raises InputError where it has several."""
    from components.inputs import require
    from flows import tracking

    target = target_folder(out)
    folder = tracking.model_folder(model)
    from components import backbones
    from components.learners import store
    from components.learning import BackboneSection
    from components.plain import from_plain

    learner, spec, about = store.load(folder)
    spec = spec.get("member", spec)  # of a learner that looks at several views
    require(
        spec["objective"] != "return",
        f"export needs a learner of pictures or vectors, got {model}, a policy, which reads what it believes besides. Choose another.",
    )
    several_norms = {"per_step": "one for every inner step", "task": "that of the task at hand"}
    norm = several_norms.get(spec.get("options", {}).get("norm"))
    require(norm is None, f"export needs one normalisation, got {model}, which has {norm}. Train with learner.options.norm=running.")
    several = f"got {model}, which is {spec['name']} of {len(spec.get('members', []))} learners"
    require("backbone" in spec, f"export needs a learner of one backbone, {several}. Name a teacher or student: a folder under mlruns/stages/.")
    section, shape = from_plain(BackboneSection, spec["backbone"]), tuple(spec["input_shape"])
    with into_place(target) as partial:
        behind = {name: about[name] for name in ("domain", "trained_on", "earlier") if name in about}
        backbones.save(learner.backbone, section, shape, partial, behind if "trained_on" in behind else None)  # type: ignore[arg-type]
    print(f"{section.name} backbone of widths {section.widths} for inputs {list(shape)}: {target}")


if __name__ == "__main__":
    cli.entry(export, sys.argv[1:], HELP)
