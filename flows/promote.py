"""Move the champion alias by hand, or back: `python -m flows.promote model=<name> version=<n>`"""

import sys

from flows import cli

HELP = """python -m flows.promote model=<name> version=<n>

Makes version n of a registered model its champion. The version that was champion stays registered.
"""


def promote(model: str, version: str) -> None:
    """Set the alias and record the change as an MLflow run."""
    from components.inputs import require
    from flows import registry, tracking

    held = sorted(int(v.version) for v in tracking.versions(model))
    require(len(held) > 0, f"model must be a registered model, got {model!r}, which has no versions. See make ui.")
    require(version in map(str, held), f"version must be one of {', '.join(map(str, held))}, got {version!r}. Choose one of them.")
    registry.check_made(tracking.version_of(f"models:/{model}/{version}"))
    experiment = tracking.open_store(model)
    with registry.alone(model), tracking.run(experiment, f"promote {version}", {"stage": "promote", "model": model}) as run_id:
        before = tracking.alias(model, "champion")
        was = before.version if before is not None else "none"
        tracking.log_params(run_id, {"version": version, "was": was})
        tracking.store().set_registered_model_alias(model, "champion", version)
        tracking.store().set_model_version_tag(model, version, "decision", f"champion: promoted by hand, was version {was}")
    print(f"{model} version {version} is champion (was {was})")


if __name__ == "__main__":
    cli.entry(promote, sys.argv[1:], HELP)
