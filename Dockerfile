# One image for Prefect's server, MLflow and workers: the code, and what constraints.txt pins. Data and runs lie in the volume /var/lib/fewloop.
# To pin the base by digest: --build-arg PYTHON_IMAGE=python:3.11.13-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm
FROM ${PYTHON_IMAGE}

# Where torch comes from, as in the Makefile: empty is pip's own configuration.
ARG TORCH_INDEX=

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 FEWLOOP_ROOT=/var/lib/fewloop HOME=/var/lib/fewloop/home

# git tells DVC and the runs' records where the project is.
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 fewloop && useradd --uid 10001 --gid fewloop --home-dir /var/lib/fewloop/home --no-create-home fewloop

WORKDIR /opt/fewloop
# What is pinned, before the code: a change of the code installs nothing again.
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} -c constraints.txt torch
COPY pyproject.toml README.md prefect.yaml automations.yaml data.dvc .dvcignore ./
COPY .dvc/config .dvc/config
COPY components components
COPY conf conf
COPY deploy deploy
COPY flows flows
RUN pip install -c constraints.txt -e '.[postgres]'

# A new volume begins as a copy of this folder: a project with its pin and no runs.
RUN mkdir -p /var/lib/fewloop/.dvc /var/lib/fewloop/home /var/lib/fewloop/mlruns /var/lib/mlflow \
    && cp data.dvc .dvcignore /var/lib/fewloop/ \
    && cp .dvc/config /var/lib/fewloop/.dvc/ \
    && git init --quiet /var/lib/fewloop \
    && chown -R fewloop:fewloop /var/lib/fewloop /var/lib/mlflow
VOLUME ["/var/lib/fewloop"]

USER 10001:10001
CMD ["python", "-m", "flows.retrain", "--help"]
