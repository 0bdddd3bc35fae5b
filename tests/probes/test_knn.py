import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

import probe
from probe.cli.main import main
from probe.environment import threads
from probe.errors import FeaturesError, ProtocolError
from probe.features.arrays import Features
from probe.probes.fit import fit_probe
from probe.probes.knn import vote
from probe.probes.neighbours import Neighbours, find_neighbours
from probe.probes.protocols import get_protocol
from probe.records.packing import unpack
from probe.specs import KNN, Protocol
from probe.stats.metrics import accuracy, voc2007_11pt_map

TOLERANCE = 1e-6  # scikit-learn does not round similarities


def _rules(*neighbours, temperature=0.0, **changes):
    rules = Protocol(
        "own", "", "projected", method=KNN, neighbours=neighbours, temperature=temperature, normalize=True, refit=False
    )
    return replace(rules, **changes)


def _problem(seed, n, d, num_classes):
    """Return overlapping classes as train, val and test."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n + 160) % num_classes)
    x = (rng.normal(size=(num_classes, d))[y] + 2 * rng.normal(size=(len(y), d))).astype(np.float32)
    cuts = {"train": slice(0, n), "val": slice(n, n + 60), "test": slice(n + 60, None)}
    return {name: Features(x[rows], y[rows]) for name, rows in cuts.items()}


def _circle(*degrees):
    """Return features of length 1 at some angles."""
    angles = np.deg2rad(np.array(degrees, dtype=np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.0, 0.07])
@pytest.mark.parametrize(
    ("seed", "n", "d", "num_classes", "k"),
    [(0, 40, 2, 2, 5), (1, 300, 16, 3, 10), (2, 900, 64, 10, 20), (3, 500, 700, 100, 200), (4, 2000, 512, 7, 1)],
)
def test_predictions_and_shares_equal_scikit_learns(seed, n, d, num_classes, k, temperature):
    splits = _problem(seed, n, d, num_classes)
    train, test = splits["train"], splits["test"]
    weights = (lambda distances: np.exp((1 - distances) / temperature)) if temperature else "uniform"
    theirs = KNeighborsClassifier(k, algorithm="brute", metric="cosine", weights=weights)
    theirs.fit(train.x.astype(np.float64), train.y)
    shares = theirs.predict_proba(test.x.astype(np.float64))
    ours = vote(find_neighbours([train.x], test.x, k), train.y, k, temperature, num_classes)
    assert np.abs(ours - shares).max() <= TOLERANCE
    result = fit_probe(train=train, test=test, protocol=_rules(k, temperature=temperature))
    assert np.array_equal(result.predictions, theirs.predict(test.x.astype(np.float64)))
    assert result.score == np.mean(result.predictions == test.y)


def test_k_is_chosen_on_val_with_train_as_the_bank():
    splits = _problem(5, 300, 8, 4)
    result = fit_probe(**splits, protocol=_rules(1, 5, 25, 125, temperature=0.1))
    scores = {}
    for k in (1, 5, 25, 125):
        own = fit_probe(train=splits["train"], test=splits["val"], protocol=_rules(k, temperature=0.1))
        scores[k] = own.score
    assert {point.k: point.score for point in result.k_sweep} == scores
    assert result.k == max(scores, key=scores.get)  # the first of equal scores
    alone = fit_probe(train=splits["train"], test=splits["test"], protocol=_rules(result.k, temperature=0.1))
    assert result.score == alone.score


def test_the_smallest_of_equally_good_ks_is_chosen():
    x, y = _circle(0, 1, 2, 90, 91, 92), np.array([0, 0, 0, 1, 1, 1])
    result = fit_probe(train=Features(x, y), val=Features(x, y), test=Features(x, y), protocol=_rules(2, 3))
    assert [point.score for point in result.k_sweep] == [1, 1]
    assert result.k == 2


def test_validation_images_vote_after_the_choice_if_the_protocol_has_refit():
    train = Features(_circle(0, 90), np.array([0, 1]))
    val, test = Features(_circle(40), np.array([1])), Features(_circle(41), np.array([1]))
    results = [fit_probe(train=train, val=val, test=test, protocol=_rules(1, refit=refit)) for refit in (False, True)]
    assert [result.predictions.tolist() for result in results] == [[0], [1]]
    assert [result.num_train for result in results] == [2, 3]


def test_an_image_of_train_counts_before_its_copy_in_val():
    """The bank has the same image three times, with the labels 1, 0 and 0, of which two vote."""
    train = Features(_circle(90, 0, 0), np.array([0, 1, 0]))
    val, test = Features(_circle(0), np.array([0])), Features(_circle(0), np.array([1]))
    results = [fit_probe(train=train, val=val, test=test, protocol=_rules(k, refit=True)) for k in (1, 2, 3)]
    assert [int(result.predictions[0]) for result in results] == [1, 0, 0]  # with two, the first class wins the tie


def test_nearer_neighbours_have_larger_weights():
    """One neighbour at 10 degrees outvotes two at 60 degrees if the temperature is low."""
    train, test = Features(_circle(10, 60, -60), np.array([1, 0, 0])), Features(_circle(0), np.array([1]))
    weights = np.exp(np.cos(np.deg2rad([10, 60, 60])) / 0.1)
    found = find_neighbours([train.x], test.x, 3)
    shares = vote(found, train.y, 3, 0.1, 2)
    assert np.allclose(shares, [[weights[1:].sum() / weights.sum(), weights[0] / weights.sum()]], atol=1e-6)
    assert vote(found, train.y, 3, 0.0, 2).tolist() == [[2 / 3, 1 / 3]]
    assert np.isfinite(vote(found, train.y, 3, 1e-4, 2)).all()  # exp(1 / 1e-4) overflows


def test_equal_weights_in_a_different_order_are_a_tie():
    similarities = np.array([[0.9, 0.8, 0.7, 0.9, 0.8, 0.7]])
    found = Neighbours(np.arange(6)[None], similarities)
    for y in ([0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 1]):
        assert vote(found, np.array(y), 6, 0.07, 2).tolist() == [[0.5, 0.5]]


def test_a_class_is_the_mean_of_the_neighbours_labels_if_images_can_have_several():
    """Ignored labels do not count, and a class that all neighbours ignore has the share 0."""
    y = np.array([[1, 0, -1, -1], [1, 1, 1, -1], [0, 1, 0, 1]])
    found = Neighbours(np.array([[0, 1, 2]]), np.array([[1.0, 0.9, 0.8]]))
    assert vote(found, y, 3, 0.0, 4).tolist() == [[2 / 3, 2 / 3, 1 / 2, 1]]
    assert vote(found, y, 2, 0.0, 4).tolist() == [[1, 1 / 2, 1, 0]]
    a, b, c = np.exp(np.array([1.0, 0.9, 0.8]) / 0.1)
    expected = [(a + b) / (a + b + c), (b + c) / (a + b + c), b / (b + c), 1]
    assert np.allclose(vote(found, y, 3, 0.1, 4), [expected], atol=1e-9)


def test_several_labels_are_predicted_above_one_half():
    x = _circle(0, 1, 2, 90, 91, 92)
    y = np.array([[1, 1], [1, 0], [1, 0], [0, 1], [0, 1], [1, -1]])
    splits = {"train": Features(x, y), "test": Features(_circle(0, 91), np.array([[1, 0], [0, 1]]))}
    result = fit_probe(**splits, metric="voc2007_11pt_map", protocol=_rules(3))
    assert result.predictions.tolist() == [[1, 0], [0, 1]]
    assert result.score == voc2007_11pt_map(splits["test"].y, np.array([[1, 1 / 3], [1 / 3, 1]]))


def test_a_k_larger_than_the_bank_means_all_of_it(caplog):
    splits = _problem(6, 30, 4, 3)
    with caplog.at_level(logging.WARNING, logger="probe"):
        result = fit_probe(**splits, protocol=_rules(10, 100, temperature=0.1))
    assert caplog.messages == ["k = 100 is larger than the bank of 30 images, so all of them vote"]
    assert [point.k for point in result.k_sweep] == [10, 100]
    caplog.clear()
    fit_probe(**splits, protocol=_rules(10, 50, 100, 200, temperature=0.1))
    assert caplog.messages == ["k = 50, 100 and 200 are larger than the bank of 30 images, so all of them vote"]
    few = fit_probe(**{**splits, "val": None}, protocol=_rules(30, temperature=0.1))
    many = fit_probe(**{**splits, "val": None}, protocol=_rules(100, temperature=0.1))
    assert np.array_equal(few.predictions, many.predictions)


def test_labels_with_gaps_are_predicted_as_they_are():
    splits = {name: replace(split, y=split.y * 10 + 3) for name, split in _problem(7, 100, 4, 3).items()}
    result = fit_probe(**splits, protocol=_rules(5))
    assert result.label_values == (3, 13, 23)
    assert set(result.predictions.tolist()) <= {3, 13, 23}
    assert result.score == np.mean(result.predictions == splits["test"].y)
    assert result.score == fit_probe(**_problem(7, 100, 4, 3), protocol=_rules(5)).score


def test_the_number_of_threads_does_not_change_the_result():
    splits, results = _problem(8, 1500, 128, 10), []
    for num_threads in (1, 2):
        with threads(num_threads, blas=num_threads):
            results.append(fit_probe(**splits, protocol="knn"))
    assert np.array_equal(results[0].predictions, results[1].predictions)
    assert results[0].to_record() == results[1].to_record()


def test_the_feature_point_of_the_protocol_is_used():
    splits = _problem(9, 60, 4, 2)
    before = {name: Features(split.x * 0 + 1, split.y, split.x) for name, split in splits.items()}
    expected = fit_probe(**splits, protocol=_rules(3))
    result = fit_probe(**before, protocol=_rules(3, feature_point="pre_projection"))
    assert np.array_equal(result.predictions, expected.predictions)


def test_bad_input_is_one_sentence():
    splits = _problem(10, 60, 4, 2)
    with pytest.raises(ProtocolError, match="protocol 'knn' chooses k on a validation split, but there is none"):
        fit_probe(train=splits["train"], test=splits["test"], protocol="knn")
    splits["test"].x[3, 1] = np.nan
    with pytest.raises(FeaturesError, match="test has features that are not finite, first in row 3"):
        fit_probe(**splits, protocol="knn-5")


def test_test_classes_without_an_image_in_the_bank_are_named(caplog):
    train, test = Features(_circle(0, 90), np.array([0, 1])), Features(_circle(1, 45), np.array([0, 2]))
    with caplog.at_level(logging.WARNING, logger="probe"):
        assert fit_probe(train=train, test=test, protocol=_rules(1)).score == 0.5
    assert caplog.messages == [
        "1 classes of the test split have no training image, so their test images count as wrong: 2"
    ]


@pytest.fixture(scope="module")
def results_dir(tmp_path_factory):
    """Return a folder with records of `knn` and `knn-5`."""
    folder = tmp_path_factory.mktemp("results")
    for protocol in ("knn", "knn-5"):
        probe.run("digits", model="tiny", protocol=protocol, device="cpu", results_dir=folder)
    return folder


@pytest.mark.slow
def test_a_record_has_the_chosen_k(results_dir):
    records = {record.protocol: record for record in probe.read_records(results_dir)}
    weighted, plain = records["knn"].result, records["knn-5"].result
    assert [point.k for point in weighted.k_sweep] == [10, 20, 100, 200]
    assert weighted.k in get_protocol("knn").neighbours
    assert (plain.k, plain.k_sweep) == (5, ())
    for result in (weighted, plain):
        assert (result.C, result.solver, result.converged, result.n_iter, result.sweep) == (None, "none", True, 0, ())
        assert result.score > 0.8
        (outcomes,) = map(unpack, result.outcomes)
        assert outcomes.score() == result.score


@pytest.mark.slow
def test_a_record_is_reproduced_with_the_same_outcomes(results_dir, tmp_path):
    assert main(["reproduce", str(results_dir), "--results-dir", str(tmp_path)]) == 0
    before, again = ({record.protocol: record for record in probe.read_records(d)} for d in (results_dir, tmp_path))
    assert before.keys() == again.keys() == {"knn", "knn-5"}
    for name, record in before.items():
        assert again[name].result == record.result


def test_a_file_of_features_is_scored_by_a_protocol_of_ones_own(tmp_path, capsys):
    splits = _problem(11, 200, 8, 3)
    np.savez(
        tmp_path / "features.npz",
        **{f"{name}_{kind}": getattr(split, kind) for name, split in splits.items() for kind in "xy"},
    )
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nmethod = "knn"\nneighbours = [1, 7]\ntemperature = 0.2\nnormalize = true\n'
    )
    assert main(["fit", str(tmp_path / "features.npz"), "--protocol", str(tmp_path / "mine.toml"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    expected = fit_probe(**splits, protocol=_rules(1, 7, temperature=0.2, refit=True))
    assert (found["protocol"], found["k"], found["C"], found["solver"]) == ("mine", expected.k, None, "none")
    assert found["score"] == expected.score == accuracy(splits["test"].y, np.eye(3)[expected.predictions])
