"""Peers that nobody here wrote: how each is started, and how the upstreams are reached through it.

Each runs with one worker and as its own documentation has it, plus what keeps it from buffering streams. Where a peer
leads to one upstream only, a second process of it leads to the other, and its memory counts both.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from loadtests.bench.installation import PINS, program
from loadtests.bench.peer import Peer, Target, free_port
from loadtests.bench.roster import Site

MASTER_KEY = (
    "sk-6rS0dV1qYw3nE8uTz5kLh2"  # LiteLLM refuses to start with a weak one; it guards a loopback port for minutes
)

NGINX = """\
daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  keepalive_requests 1000000;
{servers}}}
"""

NGINX_SERVER = """\
  upstream u{port} {{ server 127.0.0.1:{upstream_port}; keepalive 128; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://u{port};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
"""


def nginx(site: Site) -> Peer:
    """nginx with buffering off: the least that any proxy can cost."""
    directory = site.directory / "nginx"
    ports = ports_to(site)
    servers = "".join(NGINX_SERVER.format(port=port, upstream_port=upstream) for upstream, port in ports.items())
    return leading(
        site,
        ports,
        name="nginx",
        argv=(program("nginx"), "-p", str(directory), "-c", str(directory / "nginx.conf")),
        files={directory / "nginx.conf": NGINX.format(directory=directory, servers=servers)},
    )


def envoy(site: Site) -> Peer:
    """Envoy with one worker thread, a listener for each upstream."""
    config = site.directory / "envoy" / "envoy.yaml"
    ports = ports_to(site)
    listeners = [envoy_listener(port, cluster=f"u{upstream}") for upstream, port in ports.items()]
    clusters = [envoy_cluster(f"u{upstream}", port=upstream) for upstream in ports]
    return leading(
        site,
        ports,
        name="envoy",
        argv=(program("envoy"), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"),
        files={config: json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}})},
    )


def envoy_listener(port: int, *, cluster: str) -> dict[str, object]:
    """HTTP on a loopback port, all of it to one cluster."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}
    manager = {
        "@type": f"{ENVOY_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": cluster,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{ENVOY_TYPES}.filters.http.router.v3.Router"},
            }
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {"address": envoy_address(port), "filter_chains": [{"filters": filters}]}


def envoy_cluster(name: str, *, port: int) -> dict[str, object]:
    """One upstream, and room for as many requests as the bench has (the default is 1,024)."""
    most = {"max_connections": 16384, "max_pending_requests": 16384, "max_requests": 16384}
    endpoint = {"endpoint": {"address": envoy_address(port)}}
    return {
        "name": name,
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [most]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def envoy_address(port: int) -> dict[str, object]:
    """On loopback."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


ENVOY_TYPES = "type.googleapis.com/envoy.extensions"


def vllm_router(site: Site) -> Peer:
    """The router of vLLM's production stack (Rust behind a Python command), once for each upstream."""
    ports = ports_to(site)
    commands = [
        [
            program("vllm-router"),
            *("-m", "vllm_router.launch_router", "--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
            *("--log-level", "warning"),
        ]
        for upstream, port in ports.items()
    ]
    return leading(
        site,
        ports,
        name="vllm-router",
        argv=(sys.executable, "-m", "loadtests.bench.several", json.dumps(commands)),
        ready_path="/health",
    )


def litellm(site: Site) -> Peer:
    """LiteLLM's proxy with one worker, without a database: two models, one for each upstream."""
    config = site.directory / "litellm" / "config.yaml"
    port = free_port()
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"http://127.0.0.1:{upstream}/v1",
                "api_key": "x",
            },
        }
        for name, upstream in (("bench", site.burst_port), ("bench-paced", site.paced_port))
    ]
    return Peer(
        name="litellm",
        burst=Target(port=port, key=MASTER_KEY, model="bench"),
        paced=Target(port=port, key=MASTER_KEY, model="bench-paced"),
        argv=(
            program("litellm"),
            "--config",
            str(config),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num_workers",
            "1",
        ),
        environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"},
        files={config: json.dumps({"model_list": models, "general_settings": {"master_key": MASTER_KEY}})},
        ready_url=f"http://127.0.0.1:{port}/health/liveliness",
    )


def portkey(site: Site) -> Peer:
    """Portkey's open-source gateway on Node; each request names its upstream."""
    port = free_port()
    script = program("portkey")

    def target(upstream: int) -> Target:
        headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1"}
        return Target(port=port, key=site.key, headers=headers)

    return Peer(
        name="portkey",
        burst=target(site.burst_port),
        paced=target(site.paced_port),
        argv=("node", "-r", str(PINS / "portkey" / "loopback.js"), script, f"--port={port}", "--headless"),
        environment={"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
        ready_url=f"http://127.0.0.1:{port}/",
    )


def ports_to(site: Site) -> dict[int, int]:
    """A free port for each upstream port of the site, which may be one."""
    return {upstream: free_port() for upstream in dict.fromkeys((site.burst_port, site.paced_port))}


def leading(
    site: Site,
    ports: Mapping[int, int],
    *,
    name: str,
    argv: tuple[str, ...],
    files: Mapping[Path, str] | None = None,
    ready_path: str = "/readyz",
) -> Peer:
    """A peer that passes on what comes to a port, whatever it is."""
    return Peer(
        name=name,
        burst=Target(port=ports[site.burst_port], key=site.key),
        paced=Target(port=ports[site.paced_port], key=site.key),
        argv=argv,
        files=files or {},
        ready_url=f"http://127.0.0.1:{ports[site.paced_port]}{ready_path}",
    )
