"""Real PostgreSQL servers for tests: found or said to be missing, never skipped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

START_S_MAX = 30.0
MISSING = "no PostgreSQL server was found: `make test` installs it, or: apt-get install postgresql"
SETTINGS = {"listen_addresses": "127.0.0.1", "shared_buffers": "16MB", "max_connections": "60"}
USER = "postgres"


@cache
def binaries() -> Path:
    """Where `initdb` and `postgres` are; of several versions the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    config = shutil.which("pg_config")
    if config is not None:
        directory = Path(subprocess.check_output([config, "--bindir"], text=True).strip())
        if (directory / "initdb").exists():
            return directory
    raise RuntimeError(MISSING)


@cache
def _account() -> pwd.struct_passwd | None:
    """As whom servers run: they refuse to be root's."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("there is no user postgres or nobody to run a server as")


def _command(program: str, *arguments: str) -> list[str]:
    command = [str(binaries() / program), *arguments]
    account = _account()
    if account is None:
        return command
    return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--", *command]


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run(_command(program, *arguments), capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"


def new_directory() -> Path:
    """A directory that the servers' user may use, outside pytest's own, which is closed to it."""
    directory = Path(tempfile.mkdtemp(prefix="weir-postgres-"))
    account = _account()
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)
    return directory


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    """One server in its own directory. Its user is `postgres`, a superuser whom it trusts."""

    def __init__(self, directory: Path, *, settings: Mapping[str, str] | None = None, name: str = "data") -> None:
        self.directory = directory
        self.data = directory / name
        self.port = free_port()
        self.settings = {**SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", *, user: str = USER, port: int | None = None) -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def create(self) -> Postgres:
        """An empty cluster."""
        _run("initdb", "--no-sync", "--data-checksums", "--auth=trust", f"--username={USER}", f"--pgdata={self.data}")
        return self

    def copy_of(self, port: int, *, checkpoint: str = "fast") -> Postgres:
        """A base backup of the server at `port`, with what makes it its standby."""
        _run(
            "pg_basebackup", "--no-sync", f"--checkpoint={checkpoint}", "--wal-method=stream", "--write-recovery-conf",
            f"--pgdata={self.data}", f"--dbname=postgresql://{USER}@127.0.0.1:{port}/?application_name={self.data.name}",
        )  # fmt: skip
        return self

    def start(self, **settings: str) -> Postgres:
        self.settings |= settings
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        command = _command("postgres", "-D", str(self.data), "-p", str(self.port), "-k", str(self.directory), *options)
        with (self.directory / f"{self.data.name}.log").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, cwd="/")
        deadline_s = time.monotonic() + START_S_MAX
        while subprocess.run(
            [binaries() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        ).returncode:
            assert time.monotonic() < deadline_s, self.log()
            assert self._process.poll() is None, self.log()
            time.sleep(0.03)
        return self

    def log(self) -> str:
        return (self.directory / f"{self.data.name}.log").read_text()

    def kill(self) -> None:
        """As if the machine's power were cut, but for the disk: no process of the server runs on."""
        assert self._process is not None
        pid = self._process.pid
        os.kill(pid, signal.SIGSTOP)  # so that it makes no more of them
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for victim in [*map(int, children), pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def end(self) -> None:
        """Whatever became of it."""
        if self._process is not None:
            self.kill()

    def promote(self) -> None:
        """Make a standby the primary."""
        _run("pg_ctl", "promote", "--wait", f"--pgdata={self.data}")

    def psql(self, statement: str, *, database: str = "postgres") -> Sequence[str]:
        """The lines that a statement answers."""
        done = subprocess.run(
            [binaries() / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statement],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


class Databases:
    """Fresh databases on one server, which starts with the first of them."""

    def __init__(self) -> None:
        self._server: Postgres | None = None
        self._count = 0

    @property
    def server(self) -> Postgres:
        if self._server is None:
            self._server = Postgres(new_directory()).create().start()
        return self._server

    def new(self) -> str:
        """The URL of an empty database."""
        self._count += 1
        name = f"test{self._count}"
        self.server.psql(f"CREATE DATABASE {name}")
        return self.server.url(name)

    def close(self) -> None:
        if self._server is not None:
            self._server.end()
            shutil.rmtree(self._server.directory, ignore_errors=True)


class Link:
    """A TCP link to a port of this host that can stall: connections stay, and nothing passes."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self, port: int = 0) -> Link:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def stall(self) -> None:
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    async def close(self) -> None:
        """Refuse connections, and break those that there are."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self.flow()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
        self._writers.discard(writer)
