"""A real PostgreSQL in a folder of its own, from Debian's packages."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

PASSWORD = "a p@ss/word?"


@dataclass
class Server:
    """A PostgreSQL cluster in a folder of its own."""

    programs: Path
    folder: Path
    port: int

    def control(self, *arguments: str) -> None:
        command = [str(self.programs / "pg_ctl"), "-D", str(self.folder / "data"), "-w", "-s", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self.owner())

    @staticmethod
    def owner() -> dict[str, Any]:
        """PostgreSQL does not run as root."""
        return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}

    def run(self, statement: str, *values: Any) -> None:
        address = {"host": "127.0.0.1", "port": self.port, "user": "mill", "password": PASSWORD, "dbname": "postgres"}
        with psycopg.connect(**address) as connection:  # type: ignore[arg-type]
            connection.execute(statement, values)


def programs() -> Path | None:
    """The newest PostgreSQL of this machine, where Debian or the PATH has it."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parent.parent.name))
    found = shutil.which("pg_ctl")
    return debian[-1].parent if debian else Path(found).resolve().parent if found else None


def started() -> Iterator[Server]:
    found = programs()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("CI has to have PostgreSQL: apt-get install postgresql")
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="mill-postgres-"))
    server = Server(found, folder, port)
    try:
        (folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(folder / "password", "postgres", "postgres")
        subprocess.run(
            [
                *(found / "initdb", "-D", folder / "data", "-U", "mill", "--pwfile", folder / "password"),
                *("-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale", "C.UTF-8"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            **Server.owner(),
        )
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        server.control("-o", settings, "-l", str(folder / "log"), "start")
        try:
            yield server
        finally:
            if (folder / "data/postmaster.pid").exists():
                server.control("-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
