"""Replacement of Ray whose workers give the answers of a test, in the order of the requests."""

import itertools
from functools import partial
from types import SimpleNamespace

from probe.scale.worker import WorkerInfo, versions


class RayError(Exception):
    """Error of Ray for a lost worker."""


class RayTaskError(RayError):
    """Error of Ray for an exception that a worker raised. The worker itself is not lost."""

    def __init__(self, cause):
        super().__init__(f"a traceback of {cause}")
        self.cause = cause


class FakeRay:
    """Nodes with one CPU per worker.

    Args:
        workers: number of workers that a node has room for, by name of the node.
        answer: function (node, unit) that returns the answer of a worker to `do`; `get` raises its exceptions.
        hardware: hardware by node, if the nodes have different hardware.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, workers, answer, hardware=None):
        self.workers, self.answer, self.hardware = workers, answer, hardware or {}
        self.versions = versions()
        self.placed = {}  # actor -> node
        self.pending = []  # actors without a node, each with the reference to its description
        self.asked = []  # (reference, call), calls without an answer
        self.released = []  # nodes of the workers that were told to release memory
        self._numbers = itertools.count()

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": n}} for n in self.workers.values()]

    def cluster_resources(self):
        return {"CPU": sum(self.workers.values())}

    def remote(self, **_):
        return lambda _: SimpleNamespace(remote=lambda *_: _Actor(self, next(self._numbers)))

    def _place(self):
        """Place pending actors on nodes that have room."""
        for actor, reference in list(self.pending):
            used = list(self.placed.values())
            node = next((node for node, n in self.workers.items() if used.count(node) < n), None)
            if node is not None:
                self.pending.remove((actor, reference))
                self.placed[actor] = node
                kind = self.hardware.get(node, "")
                info = WorkerInfo(node, node, 8_000_000_000, self.versions, kind, sees_store=True)
                self.asked.append((reference, lambda info=info: info))

    def wait(self, references, num_returns=1, timeout=None):  # noqa: ARG002 - the signature of Ray
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
        elif method == "clear_fits":
            self.asked.append((reference, lambda: None))
        elif method == "num_images":
            self.asked.append((reference, lambda: 300))
        else:
            self.asked.append((reference, partial(self.answer, node, args[0])))
        return reference

    def lose_pending(self, error):
        """Make all actors fail that wait for a node."""

        def fail():
            raise error

        self.asked += [(reference, fail) for _, reference in self.pending]
        self.pending = []

    def busy_units(self):
        """Return the units that workers have received and not answered."""
        return [work.args[1] for _, work in self.asked if isinstance(work, partial)]


class _Actor:
    def __init__(self, ray, number):
        self._ray, self._number = ray, number

    def __getattr__(self, method):
        bound = SimpleNamespace(remote=lambda *args: self._ray.ask(self, method, args))
        bound.options = lambda **_: bound
        return bound
