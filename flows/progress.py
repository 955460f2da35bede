"""How far a fit is, where Prefect shows it: a progress artifact of the task run. Training goes on without where Prefect does not answer."""

import contextlib
from collections.abc import Callable


def bar(name: str, steps: int) -> Callable[[int], None]:
    """Return what is to be told each step that is reached, of `steps`."""
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    made: list[object] = []

    def reached(step: int) -> None:
        done = 100.0 * min(step, steps) / max(steps, 1)
        with contextlib.suppress(Exception):  # of the network, of the server, of the database behind it: none is worth a training
            if made:
                update_progress_artifact(made[0], progress=done)  # type: ignore[arg-type]
            else:
                made.append(create_progress_artifact(progress=done, description=f"{name}: {steps} steps"))

    return reached
