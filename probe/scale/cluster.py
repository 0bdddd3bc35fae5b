"""Ray, started here or joined, and the workers of a grid on it: how many there are, and if they have our versions."""

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

from probe.errors import ExecutorError, ExtraMissingError, listed, shorten
from probe.scale.units import ATTEMPTS, Unit
from probe.scale.worker import WorkerInfo, versions

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0  # that a cluster has to answer
LOOK_SECONDS = 0.5  # between two looks at whether a node has room
QUIET_SECONDS = 120.0  # without a new worker, after which no more are expected
TOGETHER_SECONDS = 1.0  # in which all workers are lost that waited for a node, or were on it
MAX_STARTING = 64  # workers that Ray is asked for at a time


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Start or join Ray until the end of the block; a Ray that this process has joined already is used and stays.

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
    """Return how many workers the nodes of a cluster hold, as `ray.nodes` lists them, whatever else they run."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(int(one.get("GPU", 0)) if on_gpu else int(one.get("CPU", 0)) // num_threads for one in resources)


def has_gpus(ray: Any) -> bool:
    """Return True if some node has one."""
    return bool(ray.cluster_resources().get("GPU", 0))


def share_of_gpu(ray: Any) -> int:
    """Return the smallest number of processors that a node has for each of its GPUs."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0)]
    return max(1, min((int(one.get("CPU", 1) // one["GPU"]) for one in resources), default=1))


def find_difference(own: Mapping[str, str | None], info: WorkerInfo) -> ExecutorError | None:
    """Return the error for a worker whose versions differ from the driver's, as its numbers would; None if none do.

    A library that one of both does not have it does not need, or says so itself when it does.
    """
    differing = [
        f"{name} {info.versions[name]}, here {version}"
        for name, version in own.items()
        if version is not None and info.versions.get(name) not in (None, version)
    ]
    if not differing:
        return None
    return ExecutorError(f"{info.host} has {listed(differing)}; install the same versions, as numbers depend on them")


def error_line(err: Exception) -> str:
    """Return the message of an error of Ray on one line: of a worker's exception or of its death, without traceback."""
    cause = getattr(err, "cause", None)
    text = re.sub(r"\x1b\[[\d;]*m", "", str(cause if isinstance(cause, Exception) else err)).strip()
    if "Traceback" in text or "creation task" in text:
        text = text.splitlines()[-1]
    text = " ".join(text.split())
    death = re.search(r"The actor is dead because .*?(?= Some common causes|$)", text)
    return shorten(death.group() if death else text, 300)


@dataclass(eq=False)
class Member:
    """A worker that has answered: the model that it has loaded, its unit, and the images of the unit so far."""

    actor: Any
    info: WorkerInfo
    model: str | None = None
    unit: Unit | None = None
    images: int = 0


class Workers:
    """Actors of a grid: `members` have answered, `starting` have not, since Ray starts them or has no room yet.

    Ray places actors as nodes have room, also on nodes that come later.
    """

    def __init__(self, ray: Any, make: Callable[[], tuple[Any, Any]], *, on_gpu: bool, num_threads: int) -> None:
        """Have no workers yet.

        Args:
            ray: connected to the cluster.
            make: asks Ray for an actor; returns it, and a reference to its `WorkerInfo`.
            on_gpu: each takes a GPU, else `num_threads` processors.
            num_threads: 1 or more.
        """
        self._ray, self._make, self._on_gpu, self._num_threads = ray, make, on_gpu, num_threads
        self.members: list[Member] = []
        self.starting: dict[Any, Any] = {}  # reference -> actor
        self._unusable: list[Any] = []  # actors with other versions; they stay, or Ray would put others in their place
        self._versions = versions()
        self._num_failed = 0  # starts in a row, of which those that fail together are one
        self._joined = self._warned = time.monotonic()
        self._next_start = self._lost = self._failed = -math.inf

    def __str__(self) -> str:
        """Say how many there are, and what each takes."""
        nodes = {member.info.node for member in self.members}
        return f"workers: {len(self.members)}, each of {self._size}; nodes: {len(nodes)}"

    @property
    def _size(self) -> str:
        return "a GPU" if self._on_gpu else f"{self._num_threads} processors"

    def wait_for_room(self) -> None:
        """Wait until a node has room for a worker, which a node says a moment after it has started.

        Raises:
            ExecutorError: no node has.
        """
        until = time.monotonic() + ANSWER_SECONDS
        while not self._room():
            if time.monotonic() > until:
                there = self._ray.cluster_resources()
                advice = "--device cpu" if self._on_gpu else "--threads N"
                raise ExecutorError(
                    f"a worker takes {self._size}, and no node has as much: there are {there.get('GPU', 0):g} GPUs and "
                    f"{there.get('CPU', 0):g} processors in all; give {advice}, or add a node"
                )
            time.sleep(LOOK_SECONDS)

    def request(self, num: int) -> None:
        """Have Ray start so many more workers as it has room; requests beyond that number are taken back."""
        now = time.monotonic()
        if not self.members and now > max(self._joined, self._lost, self._warned) + QUIET_SECONDS:
            self._warned = now
            logger.warning("no worker is there; waiting for a node with room for one")
        while len(self.starting) > num:
            self._kill(self.starting.popitem()[1])
        if now > self._next_start:
            for _ in range(min(num, MAX_STARTING) - len(self.starting)):
                actor, answer = self._make()
                self.starting[answer] = actor

    def admit(self, answer: Any) -> ExecutorError | None:
        """Take in a worker that has answered; return an error if its versions are others, and it cannot be used.

        Raises:
            ExecutorError: there are no others, and workers are lost as they start.
        """
        actor = self.starting.pop(answer)
        try:
            info: WorkerInfo = self._ray.get(answer)
        except self._ray.exceptions.RayError as err:
            self._kill(actor)
            if time.monotonic() > self._failed + TOGETHER_SECONDS:
                logger.warning("a worker was lost while it started (%s)", error_line(err))
                self._failed, self._num_failed = time.monotonic(), self._num_failed + 1
            if self._num_failed >= ATTEMPTS:
                if not self.members:
                    raise ExecutorError(f"workers are lost as soon as they start ({error_line(err)})") from err
                self._next_start = time.monotonic() + QUIET_SECONDS
            return None
        self._num_failed, self._joined = 0, time.monotonic()
        fault = find_difference(self._versions, info)
        if fault is None:
            self.members.append(Member(actor, info))
            logger.info("%s", self)
        else:
            self._unusable.append(actor)
        return fault

    def remove(self, member: Member) -> None:
        """Do without a worker that is lost, or may be at fault."""
        self._kill(member.actor)
        self.members.remove(member)
        self._lost = time.monotonic()

    def stop(self) -> None:
        """End all of them."""
        for actor in [*(member.actor for member in self.members), *self.starting.values(), *self._unusable]:
            self._kill(actor)

    def on_node(self, member: Member) -> list[Member]:
        """Return the other workers on a worker's node."""
        return [one for one in self.members if one.info.node == member.info.node and one is not member]

    def may_grow(self) -> bool:
        """Return True if there are none, or others may come: there is room, and the last came a short time ago.

        The node of a lost worker may come back, even if the others are full.
        """
        now = time.monotonic()
        is_full = len(self.members) + len(self._unusable) >= self._room()
        is_quiet = is_full or now > self._joined + QUIET_SECONDS
        return not (self.members and is_quiet and now > self._lost + QUIET_SECONDS)

    def _room(self) -> int:
        return find_room(self._ray.nodes(), on_gpu=self._on_gpu, num_threads=self._num_threads)

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):  # it is gone already, or its node is
            self._ray.kill(actor)


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
    except (OSError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as err:
        where = f"no Ray answers at {address}"
        advice = "start it with ray start --head, or, if it wants a token, have it here and set RAY_AUTH_MODE=token"
        if address is None:
            where, advice = "Ray does not start here", "see the logs below /tmp/ray"
            if "home directory" in str(err):  # Ray looks for its token in the home folder
                advice = "set HOME to a folder"
        elif "ersion" in str(err):  # of Ray or Python, where those of the cluster are others
            where, advice = f"the Ray at {address} cannot be joined", "install the same versions"
        raise ExecutorError(f"{where} ({error_line(err)}); {advice}") from err
