"""A PostgreSQL server of one's own, in a folder of one's own, as an unprivileged user; for tests and benchmarks."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

MISSING = "no PostgreSQL server here; install the system's package postgresql"


def programs() -> Path | None:
    """The folder of initdb and postgres, of the newest version here."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(versions, key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0)
    return newest[-1].parent if newest else None


def user() -> str | None:
    """Who runs the server: initdb refuses root, so one of the system's unprivileged users then."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


class Server:
    """Use as a context; ``url`` is what a search takes, ``stop`` and ``start`` are an outage."""

    def __init__(self) -> None:
        found = programs()
        assert found is not None, MISSING
        self._bin, self._user = found, user()
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))
        if self._user:
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, pwd.getpwnam(self._user).pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"postgresql+psycopg://tester@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Server:
        data = self.folder / "data"
        self._as_user("initdb", "-D", str(data), "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def database(self, name: str) -> str:
        """The URL of a new, empty database."""
        import psycopg

        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
        return self.url.rsplit("/", 1)[0] + f"/{name}"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=50"
        log = str(self.folder / "log")
        self._as_user("pg_ctl", "-D", str(self.folder / "data"), "-l", log, "-o", options, "-w", "start")

    def stop(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self._as_user("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def _as_user(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        if self._user:
            account = pwd.getpwnam(self._user)
            how = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        else:
            how = {}
        with (Path(tempfile.gettempdir()) / f"{self.folder.name}.out").open("w+") as said:
            done = subprocess.run(command, stdout=said, stderr=said, cwd=self.folder, **how)  # type: ignore[call-overload]
            said.seek(0)
            text = said.read()
        Path(said.name).unlink()
        if done.returncode:
            raise RuntimeError(f"{program}: {text.strip()}")


def usable() -> str:
    """Why there can be no server here; empty if there can."""
    if programs() is None:
        return MISSING
    if os.geteuid() == 0 and user() is None:
        return "PostgreSQL refuses to run as root, and there is no user postgres or nobody"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "no driver of PostgreSQL; install the extra postgres"
    return ""
