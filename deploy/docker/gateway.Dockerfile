# The gateway, `weir doctor` and nft: what the chart's pods run beside an engine.
#   docker build --file deploy/docker/gateway.Dockerfile --tag registry.internal/weir .
#
# The digest is of the multi-platform image. Take a newer one on purpose: docker buildx imagetools inspect python:3.11-slim-bookworm
FROM docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS python

FROM python AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY policy policy
COPY gateway gateway
# The extra `recount` counts tokens for policies with `usage: recount`.
RUN python -m venv /opt/weir \
    && /opt/weir/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[recount]' \
    && /opt/weir/bin/pip uninstall --yes --quiet pip setuptools

FROM python
LABEL org.opencontainers.image.title="weir" \
      org.opencontainers.image.description="Metering egress gateway for model inference" \
      org.opencontainers.image.licenses="Apache-2.0"
# nft loads the owner rules of the sidecar topology. Its version is the distribution's, with its security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nftables \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=64100 --group=64100 --mode=0700 /var/lib/weir \
    && install --directory --owner=64101 --group=64102 --mode=2770 /run/weir-backend
COPY --from=build /opt/weir /opt/weir
ENV PATH=/opt/weir/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
# The engine's user is 64101. These numbers are also those of deploy/systemd and deploy/nftables.
USER 64100:64100
WORKDIR /var/lib/weir
VOLUME /var/lib/weir
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["/opt/weir/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/livez', timeout=4)"]
ENTRYPOINT ["/opt/weir/bin/weir"]
CMD ["serve", "--policy", "/etc/weir/weir.yaml"]
