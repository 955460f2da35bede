"""What a run says while it works: on standard error, and where a worker runs the flow in Prefect's log and in the run's state."""

import logging
import os
from typing import Any

from components.notices import heard_by, on_stderr


def say(line: str) -> None:
    """Put a line on standard error; where a worker runs the flow, into Prefect's log, whose pages show it beside the run."""
    try:
        if os.environ.get("PREFECT__FLOW_RUN_ID"):
            from prefect.logging import get_run_logger

            for name in ("prefect.flow_runs", "prefect.task_runs"):  # the rest of Prefect stays at warnings
                logging.getLogger(name).setLevel(logging.INFO)
            get_run_logger().info(line)
        else:
            on_stderr(line)
    except RuntimeError:  # Prefect knows of no run in this process, as in a cluster's workers
        on_stderr(line)


heard_by(say)


def completed(text: str) -> Any:
    """Say what a flow found, and return the state of its run that says it too."""
    from prefect.states import Completed

    say(text)
    return Completed(message=text)
