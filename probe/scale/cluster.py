"""Ray, started here or joined, and the workers on it: where there is room, and which are like this process."""

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
from probe.scale.worker import About, versions

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0  # for a cluster to answer
LOOK_SECONDS = 0.5  # between looks at what room there is
QUIET_SECONDS = 60.0  # that nodes and workers are waited for which may yet come
START_SECONDS = 600.0  # for a worker, which may be placed on a node that has to come up


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
    """What a worker has in other versions, which would give other numbers, and only some of them.

    What one of both does not have at all it does not need, or says so itself when it does.
    """
    differing = [
        f"{name} {about.versions[name]}, here {version}"
        for name, version in own.items()
        if version is not None and about.versions.get(name) not in (None, version)
    ]
    if not differing:
        return None
    return ExecutorError(f"{about.host} has {listed(differing)}; install the same versions, as numbers depend on them")


def one_line(err: Exception) -> str:
    """Return the message of an error of Ray on one line: of a worker's exception or of its death, without the rest."""
    cause = getattr(err, "cause", None)
    text = re.sub(r"\x1b\[[\d;]*m", "", str(cause if isinstance(cause, Exception) else err)).strip()
    if "Traceback" in text or "creation task" in text:
        text = text.splitlines()[-1]
    text = " ".join(text.split())
    death = re.search(r"The actor is dead because .*?(?= Some common causes|$)", text)
    return shorten(death.group() if death else text, 300)


@dataclass(eq=False)
class Member:
    """A worker that has answered: what it is, the model that it holds, and what it does.

    `is_alone` says that no other on its node has had a unit since it was given its own; `is_waiting` that it is to try
    again when they have ended, for memory.
    """

    actor: Any
    about: About
    held: str | None = None
    unit: Unit | None = None
    is_alone: bool = True
    is_waiting: bool = False
    images: int = 0


class Workers:
    """The workers of a grid: `members` are those that have answered, `starting` the others."""

    def __init__(
        self, ray: Any, make: Callable[[], tuple[Any, Any]], *, on_gpu: bool, num_threads: int, way_out: str
    ) -> None:
        """Workers that take a GPU each, or so many processors.

        Args:
            ray: with the cluster.
            make: starts one; its actor, and a reference to what it will say of itself, `ray_worker.About`.
            on_gpu: what they take.
            num_threads: how many.
            way_out: what to do where no node has as much.
        """
        self.ray, self.make, self.on_gpu, self.num_threads, self.way_out = ray, make, on_gpu, num_threads, way_out
        self.members: list[Member] = []
        self.starting: dict[Any, Any] = {}  # reference -> actor
        self.lost_images = 0  # that those had encoded which are gone
        self._own = versions()
        self._num_failed = 0  # one after the other
        self._next_look = self._last_change = time.monotonic()
        self._last_loss = -math.inf

    def __str__(self) -> str:
        """How many there are, and what each takes."""
        nodes = {member.about.node for member in self.members}
        return f"workers: {len(self.members)}, each of {self._each}; nodes: {len(nodes)}"

    @property
    def _each(self) -> str:
        return "a GPU" if self.on_gpu else f"{self.num_threads} processors"

    def wait_for_room(self) -> None:
        """Wait until a node has some, as one that has just started says a moment later.

        Raises:
            ExecutorError: none does.
        """
        until = time.monotonic() + ANSWER_SECONDS
        while not self._room():
            if time.monotonic() > until:
                there = self.ray.cluster_resources()
                raise ExecutorError(
                    f"a worker takes {self._each}, and no node has as much: there are {there.get('GPU', 0):g} GPUs and "
                    f"{there.get('CPU', 0):g} processors in all; {self.way_out}, or add a node"
                )
            time.sleep(LOOK_SECONDS)

    def start(self, wanted: int) -> None:
        """Start as many more as there is room for and are wanted."""
        if wanted <= 0 or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        available = self.ray.available_resources()  # that no other work of the cluster has
        free = int(available.get("GPU", 0) if self.on_gpu else available.get("CPU", 0) // self.num_threads)
        room = min(self._room() - len(self.members), free) - len(self.starting)
        for _ in range(min(wanted, room)):
            actor, answer = self.make()
            self.starting[answer] = actor
            self._last_change = time.monotonic()

    def admit(self, answer: Any) -> ExecutorError | None:
        """Take in one that has answered; the reason where it is another version, and cannot be used.

        Raises:
            ExecutorError: there are no others, and one after the other is lost as it starts, or cannot be used.
        """
        actor, fault = self.starting.pop(answer), None
        try:
            about: About = self.ray.get(answer)
        except self.ray.exceptions.RayError as err:
            reason = one_line(err)
            logger.warning("a worker was lost while it started (%s)", reason)
        else:
            fault = find_difference(self._own, about)
            if fault is None:
                self._num_failed, self._last_change = 0, time.monotonic()
                self.members.append(Member(actor, about))
                return None
        self._kill(actor)
        self._num_failed += 1
        if self._num_failed % ATTEMPTS == 0:  # of a node that has nothing but those
            if not self.members:
                raise fault or ExecutorError(f"workers are lost as soon as they start ({reason})")
            self._next_look = time.monotonic() + QUIET_SECONDS
        return fault

    def lose(self, member: Member) -> None:
        """Do without one, whatever is left of it."""
        self._kill(member.actor)
        self.members.remove(member)
        self.lost_images += member.images
        self._last_change = self._last_loss = time.monotonic()

    def stop(self) -> None:
        """End all of them."""
        for actor in [*(member.actor for member in self.members), *self.starting.values()]:
            self._kill(actor)

    def on_node(self, member: Member) -> list[Member]:
        """The others on its node."""
        return [one for one in self.members if one.about.node == member.about.node and one is not member]

    def are_all(self) -> bool:
        """Whether there are some, and no more are to be expected: the room is used, or nothing has come for a while."""
        now = time.monotonic()
        if self.starting:
            return bool(self.members) and now > self._last_change + START_SECONDS
        is_full = len(self.members) >= self._room() and now > self._last_loss + QUIET_SECONDS
        return bool(self.members) and (is_full or now > self._last_change + QUIET_SECONDS)

    def _room(self) -> int:
        return find_room(self.ray.nodes(), on_gpu=self.on_gpu, num_threads=self.num_threads)

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):  # that is gone already, or whose node is
            self.ray.kill(actor)


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
        way_out = "start it with ray start --head, or, if it wants a token, have it here and set RAY_AUTH_MODE=token"
        if address is None:
            where, way_out = "Ray does not start here", "see the logs below /tmp/ray"
            if "home directory" in str(err):  # Ray looks for its token in the home folder
                way_out = "set HOME to a folder"
        elif "ersion" in str(err):  # of Ray or Python, where those of the cluster are others
            where, way_out = f"the Ray at {address} cannot be joined", "install the same versions"
        raise ExecutorError(f"{where} ({one_line(err)}); {way_out}") from err
