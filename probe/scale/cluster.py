"""Start or join Ray, and manage the workers of a grid: how many there are, and whether their versions agree."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from probe.environment import DISTRIBUTION
from probe.errors import ExecutorError, ExtraMissingError, listed, shorten
from probe.scale.units import ATTEMPTS, Unit
from probe.scale.worker import WorkerInfo, versions

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0  # time limit for an answer of the cluster
POLL_SECONDS = 0.5  # between two checks for a node with room
QUIET_SECONDS = 120.0  # no more workers are expected this long after the last one joined or was lost
TOGETHER_SECONDS = 1.0  # failed starts within this time count as one, because they usually have one cause
MAX_STARTING = 64  # maximum number of workers that are starting at the same time


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Start or join Ray for the duration of the block. If this process has joined Ray before, use and keep that Ray.

    Raises:
        ExtraMissingError: Ray is not installed.
        ExecutorError: the cluster does not answer, or this process cannot join it.
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
    """Return the number of workers that fit on nodes, as `ray.nodes` lists them, ignoring what else the nodes run."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(int(one.get("GPU", 0)) if on_gpu else int(one.get("CPU", 0)) // num_threads for one in resources)


def has_gpus(ray: Any) -> bool:
    """Return True if a node of the cluster has a GPU."""
    return bool(ray.cluster_resources().get("GPU", 0))


def cpus_per_gpu(ray: Any) -> int:
    """Return the number of CPUs per GPU of the node where that number is smallest; at least 1."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0)]
    return max(1, min((int(one.get("CPU", 1) // one["GPU"]) for one in resources), default=1))


def find_difference(own: Mapping[str, str | None], info: WorkerInfo) -> ExecutorError | None:
    """Return the error for a worker whose library versions differ from the driver's, or None.

    Different versions can give different numbers. A library that is missing on one side is ignored: either the side
    does not need the library, or a later error reports that the library is missing.
    """
    differing = [
        f"{name} {info.versions[name]}, here {version}"
        for name, version in own.items()
        if version is not None and info.versions.get(name) not in (None, version)
    ]
    if not differing:
        return None
    return ExecutorError(
        f"{info.host} has {listed(differing)}; install the same versions, because the results depend on them"
    )


def error_line(err: Exception) -> str:
    """Return the message of a worker's exception, or the cause of its death, in one line without Ray's traceback."""
    cause = getattr(err, "cause", None)
    text = re.sub(r"\x1b\[[\d;]*m", "", str(cause if isinstance(cause, Exception) else err)).strip()
    if "Traceback" in text or "creation task" in text:
        text = text.splitlines()[-1]
    text = " ".join(text.split())
    death = re.search(r"The actor is dead because .*?(?= Some common causes|$)", text)
    return shorten(death.group() if death else text, 300)


@dataclass(eq=False)
class Member:
    """A worker that has started.

    Args:
        actor: its Ray actor.
        info: its description.
        model: name of the model that the worker has loaded.
        unit: the unit that the worker computes; None if the worker is idle.
        images: number of images of the unit that are encoded so far.
    """

    actor: Any
    info: WorkerInfo
    model: str | None = None
    unit: Unit | None = None
    images: int = 0


class Workers:
    """Workers of a grid. `members` have started; `starting` are requested, but Ray starts them or has no room for them.

    Ray places an actor on a node as soon as the node has room, also on nodes that join the cluster later.
    """

    def __init__(self, ray: Any, make: Callable[[], tuple[Any, Any]], *, on_gpu: bool, num_threads: int) -> None:
        """Create an empty set of workers.

        Args:
            ray: the module `ray`, connected to the cluster.
            make: function that requests an actor from Ray; returns the actor and a reference to its `WorkerInfo`.
            on_gpu: True if each worker needs a GPU; otherwise each worker needs `num_threads` CPUs.
            num_threads: number of threads of a worker, >= 1.
        """
        self._ray, self._make, self._on_gpu, self._num_threads = ray, make, on_gpu, num_threads
        self.members: list[Member] = []
        self.starting: dict[Any, Any] = {}  # reference -> actor
        # Actors with other versions. They keep running, because Ray would otherwise start new ones in their place.
        self._unusable: list[Any] = []
        self._versions = versions()
        self._num_failed = 0  # consecutive failed starts; starts that fail together count as one
        self._joined = self._warned = time.monotonic()
        self._next_start = self._lost = self._failed = -math.inf

    def __str__(self) -> str:
        """Return the number of workers and nodes, and the size of a worker."""
        nodes = {member.info.node for member in self.members}
        return f"workers: {len(self.members)}, each with {self._size}; nodes: {len(nodes)}"

    @property
    def _size(self) -> str:
        return "a GPU" if self._on_gpu else f"{self._num_threads} CPU{'s' * (self._num_threads != 1)}"

    def wait_for_room(self) -> None:
        """Wait until a node has room for a worker. A new node reports its resources shortly after it has started.

        Raises:
            ExecutorError: no node has room after `ANSWER_SECONDS`.
        """
        until = time.monotonic() + ANSWER_SECONDS
        while not self._capacity():
            if time.monotonic() > until:
                total = self._ray.cluster_resources()
                advice = "--device cpu" if self._on_gpu else "--threads N"
                raise ExecutorError(
                    f"a worker needs {self._size}, but no node has room for one (the cluster has "
                    f"{total.get('GPU', 0):g} GPUs and {total.get('CPU', 0):g} CPUs in total); "
                    f"give {advice}, or add a node"
                )
            time.sleep(POLL_SECONDS)

    def request(self, num: int) -> None:
        """Request `num` more workers from Ray, which starts them when there is room; cancel requests beyond `num`."""
        now = time.monotonic()
        if not self.members and now > max(self._joined, self._lost, self._warned) + QUIET_SECONDS:
            self._warned = now
            logger.warning("there are no workers; waiting for a node with room for one")
        while len(self.starting) > num:
            self._kill(self.starting.popitem()[1])
        if now > self._next_start:
            for _ in range(min(num, MAX_STARTING) - len(self.starting)):
                actor, answer = self._make()
                self.starting[answer] = actor

    def admit(self, answer: Any) -> ExecutorError | None:
        """Add a worker that has started; return an error if its versions differ from the driver's, or None.

        Raises:
            ExecutorError: there are no workers, and new workers fail while they start.
        """
        actor = self.starting.pop(answer)
        try:
            info: WorkerInfo = self._ray.get(answer)
        except self._ray.exceptions.RayError as err:
            self._kill(actor)
            if time.monotonic() > self._failed + TOGETHER_SECONDS:
                logger.warning("a worker failed while it started (%s)", error_line(err))
                self._failed, self._num_failed = time.monotonic(), self._num_failed + 1
            if self._num_failed >= ATTEMPTS:
                if not self.members:
                    raise ExecutorError(
                        f"workers fail while they start ({error_line(err)}); see the logs of Ray on the nodes"
                    ) from err
                self._next_start = time.monotonic() + QUIET_SECONDS
            return None
        self._num_failed, self._joined = 0, time.monotonic()
        difference = find_difference(self._versions, info)
        if difference is None:
            self.members.append(Member(actor, info))
            logger.info("%s", self)
        else:
            self._unusable.append(actor)
        return difference

    def remove(self, member: Member) -> None:
        """Remove a worker that is lost or may be faulty."""
        self._kill(member.actor)
        self.members.remove(member)
        self._lost = time.monotonic()

    def stop(self) -> None:
        """Stop all workers."""
        for actor in [*(member.actor for member in self.members), *self.starting.values(), *self._unusable]:
            self._kill(actor)

    def on_node(self, member: Member) -> list[Member]:
        """Return the other workers on a worker's node."""
        return [one for one in self.members if one.info.node == member.info.node and one is not member]

    def may_grow(self) -> bool:
        """Return True if there are no workers, or if more workers may join.

        More workers may join if there is room for them and the last worker joined recently. After the loss of a worker,
        its node may come back, even if the other nodes are full.
        """
        now = time.monotonic()
        is_full = len(self.members) + len(self._unusable) >= self._capacity()
        is_quiet = is_full or now > self._joined + QUIET_SECONDS
        return not (self.members and is_quiet and now > self._lost + QUIET_SECONDS)

    def _capacity(self) -> int:
        return find_room(self._ray.nodes(), on_gpu=self._on_gpu, num_threads=self._num_threads)

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):  # the actor or its node may be lost already
            self._ray.kill(actor)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as err:
        raise ExtraMissingError(f"--executor ray needs Ray; install it with pip install '{DISTRIBUTION}[ray]'") from err
    return ray


def _start(ray: Any, address: str | None) -> None:
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if address is None:  # send no usage statistics without consent
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if host and port.isdecimal():  # Ray itself would try to connect for ten minutes
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        # A Ray client has no dashboard.
        is_client = address is not None and address.startswith("ray://")
        own = {} if is_client else {"include_dashboard": None if address else False}
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **own)
    except (OSError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as err:
        problem = f"Ray does not answer at {address}"
        advice = "start it with ray start --head; if it needs a token, copy the token here and set RAY_AUTH_MODE=token"
        if address is None:
            problem, advice = "Ray cannot start on this machine", "see the logs in /tmp/ray"
            if "home directory" in str(err):  # Ray looks for its token in the home folder
                advice = "set HOME to a folder"
        elif "ersion" in str(err):  # the cluster has other versions of Ray or Python
            problem, advice = f"cannot join Ray at {address}", "install the versions of the cluster"
        raise ExecutorError(f"{problem} ({error_line(err)}); {advice}") from err
