"""Ray, started here or joined: what nodes it has room on for workers, and whether those are like this process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from probe.errors import ExecutorError, ExtraMissingError
from probe.ray_worker import About

ANSWER_SECONDS = 10.0  # for a cluster to answer


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, started here or joined, until the end of the block; if it is there already, it is used and stays.

    Raises:
        ExtraMissingError: Ray is not installed.
        ExecutorError: the cluster does not answer, or cannot be joined.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield ray
        return
    _start(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def find_room(nodes: Sequence[Mapping[str, Any]], *, on_gpu: bool, num_threads: int) -> int:
    """How many workers the nodes of a cluster hold, as `ray.nodes` lists them, whatever else they run."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(int(one.get("GPU", 0)) if on_gpu else int(one.get("CPU", 0)) // num_threads for one in resources)


def has_gpus(ray: Any) -> bool:
    """Whether some node has one."""
    return bool(ray.cluster_resources().get("GPU", 0))


def share_of_gpu(ray: Any) -> int:
    """The processors of a node for each of its GPUs, where they are fewest."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0)]
    return max(1, min((int(one.get("CPU", 1) // one["GPU"]) for one in resources), default=1))


def find_difference(own: Mapping[str, str | None], about: About) -> ExecutorError | None:
    """What a worker has in other versions, which would give other numbers, and only some of them."""
    differing = [
        f"{name} {about.versions.get(name)}, here {version}"
        for name, version in own.items()
        if about.versions.get(name) != version
    ]
    if not differing:
        return None
    return ExecutorError(f"{about.host} has {'; '.join(differing)}; install the same there, for numbers depend on it")


def one_line(err: Exception) -> str:
    """What an error of Ray says, without the rest of a traceback."""
    return " ".join(str(err).split())[:300]


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as err:
        raise ExtraMissingError("--executor ray needs Ray; install it with pip install '.[ray]'") from err
    return ray


def _start(ray: Any, address: str | None) -> None:
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if address is None:  # nothing leaves this machine that nobody asked for
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if host and port.isdecimal():  # Ray itself tries for ten minutes
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        # A client has neither logs nor a dashboard of its own.
        is_client = address is not None and address.startswith("ray://")
        own = {} if is_client else {"include_dashboard": None if address else False}
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **own)
    except (OSError, RuntimeError, ValueError, ImportError) as err:
        where, way_out = f"no Ray answers at {address}", "start it with ray start --head"
        if address is None:
            where, way_out = "Ray does not start here", "see the logs below /tmp/ray"
        elif "ersion" in str(err):  # of Ray or Python, where those of the cluster are others
            where, way_out = f"the Ray at {address} cannot be joined", "install the same versions"
        raise ExecutorError(f"{where} ({one_line(err)}); {way_out}") from err
