from dataclasses import replace

from probe.models import get_model
from probe.runner import plan
from probe.units import ATTEMPTS, SHARD_IMAGES, Queue, Unit, plan_units


def _plan(*models, jit_modes=(False,), dataset="digits"):
    return plan([dataset], list(models), protocols=["readme", "clip-paper"], jit_modes=jit_modes, device="cpu")


def test_shards_come_before_fits_and_have_all_images():
    units = plan_units(_plan("tiny", jit_modes=(False, True), dataset="mnist"))
    shards, fits = [u for u in units if u.shard], [u for u in units if not u.shard]
    assert [len(unit.specs) for unit in fits] == [4]  # both protocols in both modes, which are compared
    assert sum(unit.images for unit in shards) == 2 * 70_000
    n = -(-70_000 // SHARD_IMAGES)
    assert [unit.shard for unit in shards] == [(i + 1, n) for i in range(n)] * 2
    assert units[-1] is fits[0]


def test_fits_wait_for_the_shards_of_their_model_alone():
    queue = Queue(plan_units(_plan("tiny", "random:tiny")))
    tiny = queue.take()
    other = queue.take()
    assert {tiny.model, other.model} == {"tiny", "random:tiny"}
    assert queue.take() is None  # both fits wait
    queue.finish(tiny)
    assert queue.take(held="tiny").shard is None
    assert queue.take() is None


def test_a_worker_is_given_what_it_has_the_weights_for():
    queue = Queue(plan_units(_plan("tiny", "random:tiny", dataset="mnist")))
    assert [queue.take(held="random:tiny").model for _ in range(3)] == ["random:tiny"] * 3
    assert queue.take(held="gone").model == "tiny"  # which no other worker is busy with


def test_what_is_lost_is_done_again_and_at_last_given_up():
    (spec, *_) = _plan("tiny")
    unit = Unit((replace(spec, model=get_model("tiny")),), (1, 1))
    queue = Queue([unit])
    for _ in range(ATTEMPTS - 1):
        assert queue.take() == unit
        assert queue.lose(unit)
    assert queue.take() == unit
    assert not queue.lose(unit)
    assert queue.given_up == [unit]
    assert not queue
