"""Functions for tests of Ray: find the processes that the tests started, and compare records of the same run."""

import contextlib
import importlib.util
import json
import os
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path

import pytest

MARK = uuid.uuid4().hex  # in the environment of all processes that a test session starts
# Ray reads these variables on import. Its default token is in the home folder, and tests have several home folders.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=uuid.uuid4().hex)
# Ray would start processes before they are needed, which actors with an environment of their own cannot use. Ray gives
# up a process that does not answer within a minute, which is too short on a busy machine.
os.environ.update({"RAY_prestart_worker_first_driver": "0", "RAY_worker_register_timeout_seconds": "600"})
if importlib.util.find_spec("ray") is None:  # which takes seconds to import, also where its tests are not chosen
    pytest.skip("Ray is not installed", allow_module_level=True)
pytestmark = [
    pytest.mark.ray,
    # Ray closes sockets, files and processes only when the process ends.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray"),
]


@pytest.fixture(autouse=True)
def marked(monkeypatch):
    """Mark the processes that a test starts, so that they differ from other processes on the machine."""
    monkeypatch.setenv("PROBE_TEST", MARK)


def find_workers(what="ray::Worker", mark=MARK):
    """Return the process numbers of marked workers. Ray names a process after its actor."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            is_server = b"multiprocessing" in name  # the server of `make.kills`, which keeps running
            if what.encode() in name and mark.encode() in environment and not is_server:
                found.append(int(folder.name))
    return found


def wait_until_gone(what="", mark=f"{MARK}\0"):
    """Wait until no marked process is left. Ray's processes end soon after the process that started them."""
    until = time.monotonic() + 240
    while (left := find_workers(what, mark)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]


@contextlib.contextmanager
def beside(work):
    """Run `work(event)` in a thread for the duration of the block; the event tells it to end."""
    is_over = threading.Event()
    thread = threading.Thread(target=work, args=[is_over])
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def content(record):
    """Return the content of a record in its file, without times and without the machine."""
    skipped = ("created", "seconds", "extraction", "environment")
    read = json.loads(json.dumps(asdict(record)))
    return {name: value for name, value in read.items() if name not in skipped}
