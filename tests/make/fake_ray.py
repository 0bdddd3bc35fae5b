"""A Ray whose workers answer as a test says, one after the other in the order in which they were asked."""

import itertools
from functools import partial
from types import SimpleNamespace

from probe.scale.worker import WorkerInfo, versions


class RayError(Exception):
    """As Ray's: a worker is lost."""


class RayTaskError(RayError):
    """As Ray's: a worker raised something, and is well."""

    def __init__(self, cause):
        super().__init__(f"a traceback of {cause}")
        self.cause = cause


class FakeRay:
    """Nodes of one processor for each worker.

    Args:
        workers: how many each node has room for, by its name.
        answer: what a worker says to `do`, given its node and the unit; what it raises is raised by `get`.
        hardware: of nodes, if not all have the same.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, workers, answer, hardware=None):
        self.workers, self.answer, self.hardware = workers, answer, hardware or {}
        self.versions = versions()
        self.placed = {}  # actor -> node
        self.pending = []  # actors without a node, each with the reference to its description
        self.asked = []  # (reference, what to do), to be answered
        self.released = []  # nodes whose workers were asked to give back memory
        self._numbers = itertools.count()

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": n}} for n in self.workers.values()]

    def cluster_resources(self):
        return {"CPU": sum(self.workers.values())}

    def remote(self, **_):
        return lambda _: SimpleNamespace(remote=lambda *_: _Actor(self, next(self._numbers)))

    def _place(self):
        """Give pending actors a node as far as there is room."""
        for actor, reference in list(self.pending):
            used = list(self.placed.values())
            node = next((node for node, n in self.workers.items() if used.count(node) < n), None)
            if node is not None:
                self.pending.remove((actor, reference))
                self.placed[actor] = node
                kind = self.hardware.get(node, "")
                info = WorkerInfo(node, node, 8_000_000_000, self.versions, kind, sees_store=True)
                self.asked.append((reference, lambda info=info: info))

    def wait(self, references, num_returns=1, timeout=None):  # noqa: ARG002 - as Ray has it
        return [reference for reference, _ in self.asked if reference in references][:num_returns], references

    def get(self, reference):
        (work,) = (work for known, work in self.asked if known == reference)
        self.asked = [one for one in self.asked if one[0] != reference]
        return work()

    def kill(self, actor):
        self.placed.pop(actor, None)
        self.pending = [one for one in self.pending if one[0] is not actor]
        self._place()

    def ask(self, actor, method, args):
        reference = next(self._numbers)
        if method == "describe":
            self.pending.append((actor, reference))
            self._place()
            return reference
        node = self.placed[actor]
        if method == "release":
            self.released.append(node)
        elif method == "num_images":
            self.asked.append((reference, lambda: 300))
        else:
            self.asked.append((reference, partial(self.answer, node, args[0])))
        return reference

    def lose_pending(self, error):
        """Lose all actors that wait for a node."""

        def fail():
            raise error

        self.asked += [(reference, fail) for _, reference in self.pending]
        self.pending = []

    def busy_units(self):
        """Return the units that workers have been given and have not answered."""
        return [work.args[1] for _, work in self.asked if isinstance(work, partial)]


class _Actor:
    def __init__(self, ray, number):
        self._ray, self._number = ray, number

    def __getattr__(self, method):
        bound = SimpleNamespace(remote=lambda *args: self._ray.ask(self, method, args))
        bound.options = lambda **_: bound
        return bound
