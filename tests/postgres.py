"""The store, assignment and a crowd of labelers on PostgreSQL: `make test-postgres`.

python tests/postgres.py [--labelers 50] [--seconds 60] [--kills 20]

It starts a server of its own in a temporary folder, on loopback, and stops it. Without PostgreSQL it says so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("tests/data/labels/test_store.py", "tests/data/labels/test_reader.py", "tests/feedback/test_assignment.py")


def programs() -> Path | None:
    """The folder of initdb and pg_ctl: on the path, or where Debian has them."""
    there = shutil.which("initdb")
    found = [Path(there).parent] if there else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(found) if (folder / "initdb").exists()), None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextlib.contextmanager
def server(folder: Path, bin: Path) -> Iterator[str]:
    """The URL of a server over `folder`. It does not run as root: root gives the folder to `nobody` or `postgres`."""
    user = None
    if os.getuid() == 0:
        user = next(name for name in ("postgres", "nobody") if name in {each.pw_name for each in pwd.getpwall()})
        os.chmod(folder, 0o700)
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()

    def run(*command: str) -> None:
        subprocess.run(
            [str(bin / command[0]), *command[1:]], check=True, stdout=subprocess.DEVNULL, user=user, cwd="/"
        )

    run("initdb", "-D", str(data), "-U", "rlhf", "--auth=trust", "--encoding=UTF8", "--no-locale")
    options = f"-h 127.0.0.1 -p {port} -k {folder}"
    run("pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://rlhf@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("labelers", 50), ("seconds", 60), ("kills", 20)):
        parser.add_argument(f"--{name}", type=int, default=number)
    args = parser.parse_args()
    bin = programs()
    if bin is None:
        print("PostgreSQL is not installed: its tests were left out. On Debian: apt-get install postgresql")
        return 0
    with tempfile.TemporaryDirectory() as folder, server(Path(folder), bin) as url:
        environment = os.environ | {"RLHF_KIT_TEST_STORE": url}
        crowd = [sys.executable, "tests/serving/crowd.py"]
        for command in (
            [sys.executable, "-m", "pytest", "-q", *TESTS],
            [*crowd, "load", "--labelers", str(args.labelers), "--seconds", str(args.seconds)],
            [*crowd, "kills", "--kills", str(args.kills)],
        ):
            status = subprocess.run(command, env=environment, cwd=ROOT).returncode
            if status:
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
