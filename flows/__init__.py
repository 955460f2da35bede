"""When and where: the pipeline as Prefect flows, tracked in MLflow. Importing this package sets quiet, offline defaults."""

import os

NO_PAGES = "http://127.0.0.1"  # no page of a server is served from there; `flows.serve` allows those of its own
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    # Prefect's server answers pages of every origin by default, and has no login: any page of the web could start a run.
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": NO_PAGES,
    # OpenMP threads that spin while they wait make two trainings on one machine crawl: measured, 30 times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    os.environ.setdefault(_name, _value)
