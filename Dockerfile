# Keel's images. Each is set up by the command that `make serve` runs, scripts/bootstrap, from the same locks.
#
#   docker build --target gateway -t keel .            the gateway: no torch, talks to an upstream
#   docker build --target engine  -t keel-engine .     vLLM for CPUs
#
# Behind a proxy or a mirror, hand pip's configuration in; it stays out of the image:
#   docker build --secret id=pip,src=$HOME/.config/pip/pip.conf …

ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# ---- build stages: pip and uv stay in them -------------------------------------------------------

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
ENV PIP_CACHE_DIR=/var/cache/build/pip UV_CACHE_DIR=/var/cache/build/uv UV_LINK_MODE=copy
COPY pyproject.toml ./
COPY requirements requirements
COPY scripts scripts

FROM build AS build-gateway
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/var/cache/build \
    scripts/bootstrap gateway --venv /opt/keel --packages-only
COPY README.md LICENSE ./
COPY policies policies
COPY guardrails guardrails
COPY training training
COPY service service
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/var/cache/build \
    scripts/bootstrap gateway --venv /opt/keel --no-editable \
    && /opt/keel/bin/python -m pip uninstall --quiet --yes uv pip

FROM build AS build-engine
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/var/cache/build \
    apt-get update -q \
    && apt-get install -q -y --no-install-recommends libnuma1 \
    && scripts/bootstrap serve --device cpu --venv /opt/keel --packages-only \
    && /opt/keel/bin/python -m pip uninstall --quiet --yes uv pip

# ---- what runs -----------------------------------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 keel \
    && useradd --uid 10001 --gid keel --home-dir /var/lib/keel --create-home --shell /usr/sbin/nologin keel
ENV PATH=/opt/keel/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1
WORKDIR /var/lib/keel

FROM runtime AS engine
RUN apt-get update -q \
    && apt-get install -q -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-engine /opt/keel /opt/keel
COPY checkpoints /srv/keel/checkpoints
ENV OMP_NUM_THREADS=1 \
    TORCH_COMPILE_DISABLE=1 \
    VLLM_ENABLE_V1_MULTIPROCESSING=0 \
    VLLM_NO_USAGE_STATS=1
USER 10001:10001
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8001/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server", "--host", "0.0.0.0", "--port", "8001"]
CMD ["--model", "/srv/keel/checkpoints/demo-chat", "--served-model-name", "demo-chat", \
     "--distributed-executor-backend", "uni", "--enforce-eager", "--kv-cache-memory-bytes", "134217728"]

# Last, so that `docker build .` makes the gateway.
FROM runtime AS gateway
COPY --from=build-gateway /opt/keel /opt/keel
COPY checkpoints /srv/keel/checkpoints
# 0.0.0.0 inside the container; Keel refuses it without API keys, and the published port is the host's choice.
ENV KEEL_HOST=0.0.0.0 \
    KEEL_PORT=8000 \
    KEEL_CHECKPOINTS=/srv/keel/checkpoints \
    KEEL_STATE_DIR=/var/lib/keel
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["keel"]
CMD ["serve"]
