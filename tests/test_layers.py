"""The shape of the house: who may import whom, read from the source."""

import ast
import dataclasses
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"contracts", "learning", "inputs", "scores", "plain", "notices", "tasks", "networks", "draws", "objectives"}
    | {"gradients", "descent", "environments", "figures"},
    {"domains", "learners"},
    {"tasksets", "batches", "validation", "distillation", "mixing", "fusion", "task_figures"},
    {"goals", "training", "evaluation", "drift", "curves", "looking", "serving", "examination", "challenge"},
    {"launch"},
]
OWN = ("components.contracts", "components.learning", "components.inputs")  # they need nothing beyond either
FILES = sorted([*ROOT.glob("components/**/*.py"), *ROOT.glob("flows/*.py")])


def imports(path: Path, top_level_only: bool = False) -> list[str]:
    """Return the modules that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def layer(module: str) -> int | None:
    name = module.split(".")[1] if module.count(".") else ""
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


@pytest.mark.parametrize("path", sorted(ROOT.glob("components/**/*.py")), ids=str)
def test_components_never_look_up(path: Path) -> None:
    own = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        assert module.split(".")[0] not in ("flows", "prefect", "hydra", "omegaconf", "dvc"), module
        if module.startswith("components.") and own is not None and layer(module) is not None:
            assert layer(module) <= own, f"{path.name} imports {module}, a layer above it"


def test_components_have_no_cycles() -> None:
    graph = {}
    for path in ROOT.glob("components/**/*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {m for m in imports(path, top_level_only=True) if m.startswith("components.")}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done and name in graph:
            for child in graph[name]:
                visit(child, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", sorted(ROOT.glob("flows/*.py")), ids=str)
def test_flows_load_no_torch_at_module_level(path: Path) -> None:
    heavy = {m.split(".")[0] for m in imports(path, top_level_only=True)} & {"torch", "pytorch_lightning", "mlflow", "dvc"}
    assert not heavy
    if path.name != "config.py":
        assert not {m.split(".")[0] for m in imports(path)} & {"hydra", "omegaconf"}


@pytest.mark.parametrize("name", ["contracts.py", "learning.py", "inputs.py", "scores.py", "plain.py", "domains/options.py", "learners/options.py"])
def test_contracts_and_options_need_the_standard_library_alone(name: str) -> None:
    for module in imports(ROOT / "components" / name):
        assert module.split(".")[0] in sys.stdlib_module_names or module.startswith(OWN), module


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_says_what_it_is_and_stays_short(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 450


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_global_random_numbers(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call not in ("np.random.seed", "random.seed", "seed_everything", "pl.seed_everything")
            assert call != "torch.manual_seed" or path.name == "store.py"


@pytest.mark.parametrize(
    "asked, family",
    [
        (["experiment=smoke"], "matching"),
        (["experiment=smoke", "backbone.norm=group"], "maml"),
        (["experiment=smoke"], "ridge"),
        (["experiment=sinusoid"], "maml"),
        (["experiment=navigation"], "policy_gradient"),
    ],
)
def test_students_of_another_family_have_its_own_options_and_begin_from_nothing(asked: list[str], family: str) -> None:
    from components.learners.options import FAMILIES
    from flows.config import load

    usual, other = (load([*asked, *more]).student for more in ([], [f"learner@student.learner={family}"]))
    assert other.learner.name == family != usual.learner.name and other.learner.start == "scratch"
    assert set(other.learner.options) == {field.name for field in dataclasses.fields(FAMILIES[family].options)}
    assert (other.learner.fit, other.learner.tasks_per_step, other.widths) == (usual.learner.fit, usual.learner.tasks_per_step, usual.widths)


def test_every_experiment_composes(tmp_path: Path) -> None:
    from flows.config import groups, load

    (tmp_path / "rows.csv").write_text("label\n")
    folder, file = f"domain.source.root={tmp_path}", f"domain.source.file={tmp_path / 'rows.csv'}"
    needed = {
        **{chosen: ["experiment=sinusoid"] for chosen in ("domain=sinusoid", "backbone=mlp", "student=mlp")},
        **{f"domain={name}": [f"experiment={name}"] for name in ("ratings", "clicks")},
        **{chosen: ["experiment=navigation"] for chosen in ("domain=control", "student=policy", "learner=policy_gradient", "learner=policy_memory")},
        "domain=image_folder": [folder],
        "experiment=image_folder": [folder],
        "domain=table": ["experiment=table", file],
        "experiment=table": [file],
    }
    for group, choices in groups().items():
        for choice in choices:
            load([f"{group}={choice}", *needed.get(f"{group}={choice}", [])])
