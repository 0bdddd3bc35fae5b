"""A Python that starts at once: a server imports the libraries, and forks a process for each command.

A page shows dozens of commands, and each would import torch for seconds. `WarmPython` writes a program that stands for
`python`. The program sends its arguments, folder, environment and open files to the server, and ends with the exit
status of the forked process.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PRELOADED = ["probe.cli.main", "probe.runner", "probe.reproduction", "probe.probes.solvers.fast_solver"]
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    message = {{"argv": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
    socket.send_fds(server, [b" "], [0, 1, 2])
    server.sendall(json.dumps(message).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16) or 1))
"""


class WarmPython:
    """A server, which ends together with this process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start the server with the environment in which it imports the libraries."""
        # The path of a socket has at most about 100 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="warm")
        self._address = f"{self._folder.name}/socket"
        self._server = subprocess.Popen(
            [sys.executable, __file__, self._address],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._server.stdout is not None
        if not self._server.stdout.readline():
            raise RuntimeError("the server that runs the commands of pages did not start")

    def write_program(self, path: Path) -> None:
        """Write the program that stands for `python`."""
        path.write_text(CLIENT.format(python=sys.executable, address=self._address), encoding="utf-8")
        path.chmod(0o755)

    def stop(self) -> None:
        """Stop the server."""
        with self._server:
            assert self._server.stdin is not None
            self._server.stdin.close()
        self._folder.cleanup()


def _serve(address: str) -> None:
    """Answer programs until standard input ends, as it does when the process that started the server ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        os.write(1, b"ready\n")
        while sys.stdin not in select.select([sys.stdin, server], [], [])[0]:
            connection, _ = server.accept()
            with connection:
                if os.fork() == 0:
                    _answer(connection)
            with suppress(ChildProcessError):  # frees ended processes
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _answer(connection: socket.socket) -> NoReturn:
    """Run a command in a process of its own, and send its exit status to the program."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    command = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
    pid = os.fork()
    if pid == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(command["folder"])
        os.environ.clear()
        os.environ.update(command["environment"])
        sys.stdin, sys.stdout, sys.stderr = (open(i, mode, closefd=False) for i, mode in enumerate("rww"))  # noqa: SIM115 - until the process ends
        _run(command["argv"])
        sys.exit()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall(str(status if status >= 0 else 128 - status).encode())  # as a shell does for signals
    os._exit(0)


def _run(arguments: list[str]) -> None:
    """Run `-c CODE`, `-m MODULE` or a file, with its arguments, as the command `python` does."""
    if arguments[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], str(Path.cwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _serve(sys.argv[1])
