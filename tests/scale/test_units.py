from probe.grid import plan
from probe.scale.units import ATTEMPTS, SHARD_IMAGES, Queue, Unit, plan_units


def _plan(*models, jit_modes=(False,), dataset="digits"):
    return plan([dataset], list(models), protocols=["readme", "clip-paper"], jit_modes=jit_modes, device="cpu")


def test_shards_come_before_fits_and_have_all_images():
    units = plan_units(_plan("tiny", jit_modes=(False, True), dataset="mnist"))
    shards, fits = [u for u in units if u.shard], [u for u in units if not u.shard]
    # Both modes of a protocol are one unit, because they are compared.
    assert [[(spec.protocol.name, spec.mode) for spec in unit.specs] for unit in fits] == [
        [("readme", "eager"), ("readme", "jit")],
        [("clip-paper", "eager"), ("clip-paper", "jit")],
    ]
    assert sum(unit.images for unit in shards) == 2 * 70_000
    n = -(-70_000 // SHARD_IMAGES)
    assert [unit.shard for unit in shards] == [(i + 1, n) for i in range(n)]
    # Both modes are extracted in one pass.
    assert {tuple(spec.mode for spec in unit.specs) for unit in shards} == {("eager", "jit")}
    assert units[-2:] == fits


def test_shards_have_the_images_that_their_runs_need():
    """Zero-shot needs only the test split of a dataset that has one."""

    def images(dataset, *protocols):
        units = plan_units(plan([dataset], ["tiny"], protocols=protocols, device="cpu"))
        return sum(unit.images for unit in units if unit.shard)

    assert images("mnist", "zero-shot") == 10_000
    assert images("mnist", "zero-shot", "knn-5") == 70_000
    assert images("digits", "zero-shot") == 1_797  # cut from one subset


def test_fits_wait_for_the_shards_of_their_model_alone():
    queue = Queue(plan_units(_plan("tiny", "random:tiny")))
    tiny = queue.take()
    other = queue.take()
    assert {tiny.model, other.model} == {"tiny", "random:tiny"}
    assert queue.take() is None  # the fits wait
    queue.finish(tiny)
    assert [queue.take().specs[0].protocol.name for _ in range(2)] == ["readme", "clip-paper"]
    assert queue.take() is None


def test_a_worker_gets_shards_of_the_model_that_it_has_loaded():
    queue = Queue(plan_units(_plan("tiny", "random:tiny", dataset="mnist")))
    assert [queue.take(model="random:tiny").model for _ in range(3)] == ["random:tiny"] * 3
    assert queue.take(model="gone").model == "tiny"  # no other worker extracts this model


def test_a_lost_unit_is_repeated_and_finally_given_up():
    (spec, *_) = _plan("tiny")
    shard, fits = Unit((spec,), (1, 1)), Unit((spec,), None)
    queue = Queue([shard, fits])
    for _ in range(ATTEMPTS - 1):
        assert queue.take() is shard
        assert queue.retry(shard)
    assert queue.take() is shard
    assert not queue.retry(shard)
    assert queue.take() is fits  # the fits meet the error of the shard and record it
    queue.finish(fits)
    assert not queue


def test_a_unit_that_a_node_refuses_runs_on_other_nodes():
    queue = Queue(plan_units(_plan("tiny")))
    unit = queue.take(node="a")
    queue.refuse(unit, "a", {"type": "DatasetMissingError", "message": "no digits"})
    assert queue.take(node="a") is None
    assert queue.take(node="b") is unit
    queue.finish(unit)
    assert queue.take(node="a") is None  # the node cannot run the fits either, because they read the labels
    assert queue.take(node="b").shard is None


def test_a_shard_that_no_node_can_run_is_given_up_before_its_fits():
    queue = Queue(plan_units(_plan("tiny")))
    unit = queue.take(node="a")
    queue.refuse(unit, "a", {"type": "DatasetMissingError", "message": "no digits"})
    assert queue.give_up() == [unit]
    fits = queue.give_up()
    assert len(fits) == 2
    assert queue.reasons(fits[0])["a"]["message"] == "no digits"
    assert not queue


def test_features_of_one_group_are_made_on_one_kind_of_hardware():
    """Other hardware gives other last bits, and the fits would not find these features."""
    queue = Queue(plan_units(_plan("tiny", dataset="mnist")))
    first = queue.take(hardware="AVX512")
    assert queue.take(hardware="AVX2") is None
    queue.finish(first)
    lost = queue.take(hardware="AVX512")
    assert queue.retry(lost)
    assert not queue.change_hardware({"a": "AVX512", "b": "AVX2"})
    assert queue.change_hardware({"b": "AVX2"})  # the old nodes are gone, and all shards are extracted again
    shards = []
    while (unit := queue.take(hardware="AVX2")) is not None and unit.shard:
        shards.append(unit)
        queue.finish(unit)
    assert {first, lost} <= set(shards)
    assert sorted(unit.shard for unit in shards) == [(i + 1, len(shards)) for i in range(len(shards))]
    assert len(queue.done) == len(shards)


def test_a_group_without_features_is_bound_to_no_hardware():
    queue = Queue(plan_units(_plan("tiny")))
    unit = queue.take(node="a", hardware="AVX2")
    queue.refuse(unit, "a", {"type": "DatasetMissingError", "message": "no digits"})
    assert queue.take(node="b", hardware="AVX512") is unit


def test_too_little_memory_refuses_only_one_unit():
    queue = Queue(plan_units(_plan("tiny")))
    queue.finish(queue.take(node="a"))
    large = queue.take(node="a")
    queue.refuse(large, "a", {"type": "ExecutorError", "message": "too large"}, only_this=True)
    small = queue.take(node="a")
    assert small not in (None, large)
    queue.finish(small)
    assert queue.take(node="a") is None
    assert not queue.has_for("a", "")
    assert queue.take(node="b", too_large={large}) is None
    assert queue.take(node="b") is large


def test_a_group_that_no_hardware_can_finish_is_given_up():
    """A group leaves each kind of hardware only once, so that features do not move between two kinds for ever."""
    queue = Queue(plan_units(_plan("tiny")))
    nodes = {"a": "AVX2", "b": "AVX512"}
    too_large = {"type": "ExecutorError", "message": "too large"}
    changes = 0
    while queue:
        taken = [(node, unit) for node, kind in nodes.items() if (unit := queue.take(None, node, kind)) is not None]
        for node, unit in taken:
            if (node, unit.shard is None) in (("a", True), ("b", False)):
                queue.refuse(unit, node, too_large, only_this=True)
            else:
                queue.finish(unit)
        if not taken and queue.change_hardware(nodes):
            changes += 1
        elif not taken:
            queue.give_up()
    assert 1 <= changes <= 2
    assert queue.num_ended == 3


def test_further_test_sets_have_shards_of_their_own_before_the_fits():
    specs = plan(["imagenet"], ["tiny"], jit_modes=(False, True), device="cpu", tests=["imagenet_a", "imagenet_real"])
    units = plan_units(specs)
    shards = [unit for unit in units if unit.shard]
    images = {name: 0 for name in ("imagenet", "imagenet_a")}
    for unit in shards:
        assert {spec.mode for spec in unit.specs} == {"eager", "jit"}
        images[unit.specs[0].dataset.name] += unit.images
    assert images == {"imagenet": 2 * (1_281_167 + 50_000), "imagenet_a": 2 * 7_500}  # the other relabels images
    assert {unit.group for unit in units} == {0}
    assert units[: len(shards)] == shards
    (fits,) = units[len(shards) :]
    assert fits.specs == tuple(specs)
