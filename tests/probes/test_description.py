"""Descriptions of protocols that fit nothing, by `probe protocols`."""

import pytest

from probe.cli.main import main
from probe.probes.description import describe_protocol

OF_A_FIT = {"C", "C chosen on", "final fit on", "solver", "starts from", "seeds", "images per class"}


@pytest.mark.parametrize("name", ["knn", "knn-5", "zero-shot"])
def test_protocols_that_fit_nothing_are_described_without_a_fit(name):
    assert not describe_protocol(name).keys() & OF_A_FIT


def test_nearest_neighbours_say_their_values_of_k_and_their_weights():
    weighted, plain = describe_protocol("knn"), describe_protocol("knn-5")
    assert (weighted["k"], weighted["k chosen on"]) == ("10, 20, 100, 200", "the validation split")
    assert weighted["weight of a vote"] == "exp(cosine similarity / 0.07)"
    assert (plain["k"], plain["weight of a vote"]) == ("5", "1")
    assert "k chosen on" not in plain
    assert weighted["neighbours from"] == plain["neighbours from"] == "train and validation images"


def test_the_list_leaves_fields_of_a_fit_empty(capsys):
    assert main(["protocols"]) == 0
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[4:-1]] for line in _table(capsys)}
    assert rows["name"] == ["values of C", "k", "images per class", "seeds", "tol", "iterations"]
    assert rows["zero-shot"] == ["", "", "none", "", "", ""]
    assert rows["knn"] == ["", "10, 20, 100, 200", "all", "", "", ""]
    assert rows["readme"] == ["1", "", "all", "", "1e-06", "1000"]


def _table(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
