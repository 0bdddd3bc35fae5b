from dataclasses import replace

import numpy as np
import pytest

from probe.cli.main import main
from probe.errors import ProtocolError, UnknownNameError
from probe.features import encode
from probe.probes.description import describe_protocol
from probe.probes.protocols import GROUPS, PROTOCOLS, TOL, get_protocol, protocol_names, validate
from probe.specs import FEATURE_POINTS, Protocol, identity, identity_fields, slug

OWN = Protocol("own", "", "projected", (0.1, 1.0), 1, 100, 1e-6, "")
PLAIN = 'name = "own"\ngrid = [0.1, 1]\n'
NEIGHBOURS = 'name = "own"\nmethod = "knn"\nneighbours = [5]\nnormalize = true\n'


@pytest.fixture
def own(tmp_path):
    """Return a function that reads a protocol from the text of a TOML file."""

    def read(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return get_protocol(str(path))

    return read


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_every_protocol_is_valid_and_found_by_name(protocol):
    validate(protocol)
    assert get_protocol(protocol.name) is protocol
    assert protocol.title
    assert protocol.source


def test_no_two_protocols_share_a_name_or_a_file_name():
    """Records of different runs must not overwrite each other."""
    names = [*protocol_names(), *GROUPS]
    assert len({slug(name) for name in names}) == len(names)


def test_groups_stand_for_their_protocols():
    assert GROUPS["few-shot"] == ("few-shot-1", "few-shot-2", "few-shot-4", "few-shot-8", "few-shot-16")
    for names in GROUPS.values():
        assert [get_protocol(name).shots for name in names] == [1, 2, 4, 8, 16]


def test_the_papers_few_shot_chooses_on_the_whole_validation_split():
    """The authors say so in openai/CLIP#128. The final fit is on the shots alone, see LAION-AI/CLIP_benchmark#125."""
    for name in GROUPS["few-shot"]:
        protocol = get_protocol(name)
        assert (protocol.held_out, protocol.refit, protocol.num_seeds) == (0, False, 5)
        assert (protocol.grid, protocol.coarse_step) == (get_protocol("clip-paper").grid, 16)
        assert protocol.feature_point == "pre_projection"


def test_the_number_of_held_out_images_equals_coops():
    """CoOp chooses C on min(shots, 4) images of each class."""
    assert [get_protocol(name).held_out for name in GROUPS["few-shot-held-out"]] == [1, 2, 4, 4, 4]


def test_dinov2_has_the_45_values_of_its_code():
    protocol = get_protocol("dinov2")
    assert np.allclose(protocol.grid, 10 ** np.linspace(-6, 5, 45), rtol=1e-14)
    assert (protocol.coarse_step, protocol.tol, protocol.max_iter) == (1, 1e-12, 1000)
    assert (protocol.normalize, protocol.refit) == (False, True)


def test_feature_points_equal_those_of_the_encoder_module():
    """The names are defined twice, because `features.encode` imports torch and `specs` must not."""
    assert (encode.PROJECTED, encode.PRE_PROJECTION) == FEATURE_POINTS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip_paper", "did you mean 'clip-paper'"),
        ("dino-v2", "did you mean 'dinov2'"),
        ("fewshot", "did you mean 'few-shot'"),
        ("few-shot-3", "did you mean 'few-shot-"),
        ("zzz", "choose one of readme, .*, or the path of a TOML file with a protocol of your own"),
        ("few-shot", "'few-shot' stands for few-shot-1, few-shot-2, .*; name one of them"),
    ],
)
def test_an_unknown_name_is_refused_with_similar_names(name, message):
    with pytest.raises(UnknownNameError, match=message):
        get_protocol(name)


def test_a_file_needs_only_a_name_and_a_grid(own):
    """The defaults of the other keys are the values of the catalogue."""
    assert own(PLAIN) == Protocol("own", "", "projected", (0.1, 1.0), 1, 1000, TOL, "")


def test_a_file_can_have_every_field(own):
    protocol = own(
        'name = "own"\ntitle = "my few-shot"\nfeature_point = "pre_projection"\ngrid = [0.01, 0.1, 1, 10, 100]\n'
        'coarse_step = 4\nmax_iter = 50\ntol = 1e-4\nsource = "me"\nshots = 3\nnum_seeds = 2\nheld_out = 1\n'
        "refit = false\nnormalize = true\nwarm_start = true\n"
        "standardize = true\nmean_loss = true\nper_class = false\n"
    )
    assert protocol == Protocol(
        *("own", "my few-shot", "pre_projection", (0.01, 0.1, 1, 10, 100), 4, 50, 1e-4, "me", 3, 2, 1),
        refit=False,
        normalize=True,
        warm_start=True,
        standardize=True,
        mean_loss=True,
        per_class=False,
    )
    assert own(f"{PLAIN}bisections = 3").bisections == 3


def test_a_file_can_describe_nearest_neighbours(own):
    text = 'name = "own"\nmethod = "knn"\nneighbours = [1, 20]\ntemperature = 0.07\nnormalize = true\nrefit = false\n'
    rules = {"method": "knn", "neighbours": (1, 20), "temperature": 0.07, "normalize": True, "refit": False}
    assert own(text) == Protocol("own", "", "projected", **rules)
    assert own(NEIGHBOURS) == Protocol("own", "", "projected", method="knn", neighbours=(5,), normalize=True)


def test_features_are_normalised_by_default_only_for_methods_that_compare_them(own):
    assert own(NEIGHBOURS.replace("normalize = true\n", "")) == own(NEIGHBOURS)
    assert own('name = "own"\nmethod = "zero-shot"').normalize
    assert not own(PLAIN).normalize


def test_a_range_is_evenly_spaced_in_log10(own):
    """The range of the paper's grid gives the same bits as the catalogue."""
    paper = get_protocol("clip-paper").grid
    assert own('name = "own"\ngrid = { from = 1e-6, to = 1e6, num = 97 }\ncoarse_step = 16').grid == paper
    grid = own('name = "own"\ngrid = { from = 0.3, to = 7, num = 4 }').grid
    assert (grid[0], grid[-1]) == (0.3, 7.0)
    assert np.allclose(grid, np.geomspace(0.3, 7, 4), rtol=1e-14)


def _with(line, text=PLAIN):
    """Return a file with a key added or replaced."""
    key = line.partition(" ")[0]
    return "\n".join([*(other for other in text.splitlines() if not other.startswith(f"{key} ")), line])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_with("max_iters = 5"), "unknown key 'max_iters'; did you mean 'max_iter'?"),
        (_with("max_iter = 5.0"), "max_iter: expected an integer, got a decimal number"),
        (_with("max_iter = true"), "max_iter: expected an integer, got true or false"),
        (_with("max_iter = 0"), "max_iter = 0 is too small; give 1 or more"),
        (_with('tol = "small"'), "tol: expected a decimal number, got a text"),
        (_with("tol = 0.0"), "tol = 0.0 is not valid; give a finite number above zero"),
        (_with("tol = nan"), "tol = nan is not valid"),
        (_with("refit = 1"), "refit: expected true or false, got an integer"),
        (_with("title = 3"), "title: expected a text, got an integer"),
        (_with('feature_point = "projectd"'), "unknown feature_point 'projectd'; did you mean 'projected'"),
        (_with("grid = 0.1"), "grid: expected a list, got a decimal number"),
        (_with("grid = []"), "grid is empty; give one or more values of C"),
        (_with('grid = [0.1, "1"]'), "grid[1]: expected a decimal number, got a text"),
        (_with("grid = [true]"), "grid[0]: expected a decimal number, got true or false"),
        (_with("grid = [0, 1]"), "grid contains C = 0.0; give finite values above zero"),
        (_with("grid = [-1.0, 1]"), "grid contains C = -1.0; give"),
        (_with("grid = [1, inf]"), "grid contains C = inf; give"),
        (_with("grid = [nan]"), "grid contains C = nan; give"),
        (_with(f"grid = [1{'0' * 400}]"), "grid[0]: number out of range"),
        (_with("grid = [1, 0.1]"), "grid contains 0.1 after 1.0; give the values in ascending order, each once"),
        (_with("grid = [0.1, 0.1]"), "grid contains 0.1 after 0.1; give the values in ascending order"),
        (_with("grid = { from = 1, to = 10 }"), "grid: num must be an integer; write for example { from = 1e-6"),
        (_with("grid = { from = 1, to = 10, num = 2.5 }"), "grid: num must be an integer"),
        (_with("grid = { from = '1', to = 10, num = 2 }"), "grid: from must be a number"),
        (_with("grid = { from = 1, to = 10, number = 2 }"), "grid: unknown key 'number'; did you mean 'num'?"),
        (_with("grid = { from = 10, to = 1, num = 2 }"), "grid = { from = 10, to = 1, num = 2 } is not a valid range"),
        (_with("grid = { from = 0, to = 1, num = 2 }"), "is not a valid range; give 0 < from < to, both finite"),
        (_with("grid = { from = 1, to = inf, num = 2 }"), "is not a valid range"),
        (_with("grid = { from = 1, to = 2, num = 1 }"), "is not a valid range"),
        (_with("coarse_step = 3"), "coarse_step = 3 is not a power of two; give 1 to try every C"),
        (_with("coarse_step = 0"), "coarse_step = 0 is not a power of two"),
        (_with("coarse_step = 2"), "coarse_step = 2 does not lead from the first to the last of 2 values of C; set"),
        (_with("shots = -1"), "shots = -1 is too small; give 0 or more"),
        (_with("num_seeds = 0"), "num_seeds = 0 is too small; give 1 or more"),
        (_with("held_out = -1"), "held_out = -1 is too small"),
        (_with("held_out = 1"), "held_out = 1 has no effect without shots; set shots, or set held_out = 0"),
        (_with("num_seeds = 5"), "num_seeds = 5 has no effect without shots"),
        (_with("shots = 4"), "shots = 4 with refit = true would also fit on the whole validation split; set refit"),
        (
            'name = "own"\ngrid = [1]\nshots = 1\nrefit = false\nheld_out = 1',
            "held_out = 1 has no effect with a single value of C",
        ),
        (
            _with("per_class = false"),
            "per_class = false has no effect without shots; set shots, or set per_",
        ),
        (_with("bisections = -1"), "bisections = -1 is too small; give 0 or more"),
        (_with("bisections = 51"), "bisections = 51 is too large; give 50 or fewer"),
        (_with("bisections = 8", _with("grid = [1]")), "bisections = 8 has no effect with a single value of C; give"),
        (
            _with("bisections = 8", _with("coarse_step = 2", _with("grid = [0.1, 1, 10]"))),
            "bisections = 8 needs the scores of all values of C; set coarse_step = 1",
        ),
        (_with("standardize = 1"), "standardize: expected true or false, got an integer"),
        (_with("standardise = true"), "unknown key 'standardise'; did you mean 'standardize'?"),
        (_with("standardize = true", NEIGHBOURS), "standardize has no effect on the method knn; remove it, or set"),
        (_with("mean_loss = true", NEIGHBOURS), "mean_loss has no effect on the method knn; remove it, or set mean_"),
        (_with('name = "my own"'), "name = 'my own' is not valid; use letters, digits"),
        (_with('name = "readme"'), "name = 'readme' is already a protocol of the catalogue; choose a different name"),
        (_with('name = "few-shot"'), "name = 'few-shot' is already a protocol of the catalogue"),
        (_with('method = "k-nn"'), "unknown method 'k-nn'; did you mean 'knn'?"),
        (_with("neighbours = [5]"), "neighbours has no effect on the method logistic-regression; remove it, or set"),
        (_with("temperature = 0.07"), "temperature has no effect on the method logistic-regression; remove it"),
        (_with("grid = [1]", NEIGHBOURS), "grid has no effect on the method knn; remove it, or set grid = []"),
        (_with("shots = 4", NEIGHBOURS), "shots has no effect on the method knn; remove it, or set shots = 0"),
        (_with("warm_start = true", NEIGHBOURS), "warm_start has no effect on the method knn; remove it, or set warm"),
        (_with('method = "zero-shot"', NEIGHBOURS), "neighbours has no effect on the method zero-shot; remove it"),
        (
            'name = "own"\nmethod = "zero-shot"\nnormalize = true\nfeature_point = "pre_projection"',
            "zero-shot compares projected features; set feature_point",
        ),
        (_with("neighbours = []", NEIGHBOURS), "neighbours is empty; give one or more numbers of neighbours"),
        (_with("neighbours = 5", NEIGHBOURS), "neighbours: expected a list, got an integer"),
        (_with("neighbours = [5.0]", NEIGHBOURS), "neighbours[0]: expected an integer, got a decimal number"),
        (_with("neighbours = [0, 5]", NEIGHBOURS), "neighbours = [0, 5] is not valid; give integers of 1 or more"),
        (_with("neighbours = [5, 5]", NEIGHBOURS), "neighbours = [5, 5] is not valid; give integers of 1 or more in"),
        (_with("neighbours = [20, 5]", NEIGHBOURS), "neighbours = [20, 5] is not valid"),
        (_with("temperature = -0.1", NEIGHBOURS), "temperature = -0.1 is not valid; give a finite number of 1e-6"),
        (_with("temperature = 1e-9", NEIGHBOURS), "temperature = 1e-09 is not valid"),
        (_with("temperature = inf", NEIGHBOURS), "temperature = inf is not valid"),
        (_with("temperature = nan", NEIGHBOURS), "temperature = nan is not valid"),
        (_with("normalize = false", NEIGHBOURS), "the method knn compares L2-normalised features; set normalize = tr"),
        (_with("neighbours = []", _with("normalize = false", NEIGHBOURS)), "neighbours is empty; give one or more"),
        ("grid = [1]", "name is missing"),
        ('name = "own"', "grid is empty; give one or more values of C"),
        ("name = own", "is not valid TOML (Invalid value"),
    ],
)
def test_an_error_names_the_file_and_the_key(own, tmp_path, text, message):
    with pytest.raises(ProtocolError) as caught:
        own(text)
    assert str(caught.value).startswith(str(tmp_path / "mine.toml"))
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UnknownNameError, match=r"missing\.toml does not exist; give the path of a protocol in TOML"):
        get_protocol(str(tmp_path / "missing.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ProtocolError, match=r"folder\.toml cannot be read"):
        get_protocol(str(tmp_path / "folder.toml"))
    (tmp_path / "latin.toml").write_bytes(b'name = "m\xfcll"')
    with pytest.raises(ProtocolError, match=r"latin\.toml is not valid TOML"):
        get_protocol(str(tmp_path / "latin.toml"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grid": [0.1, 1.0]}, r"grid = \[0.1, 1.0\] is not a tuple; give a tuple of numbers"),
        ({"grid": (1.0, 0.1)}, "grid contains 0.1 after 1.0"),
        ({"neighbours": [5]}, r"neighbours = \[5\] is not a tuple; give a tuple of numbers"),
        ({"method": "knn"}, r"grid has no effect on the method knn; remove it, or set grid = \[\]"),
        ({"feature_point": "after"}, "unknown feature_point 'after'"),
        ({"max_iter": None}, "max_iter: expected int, got null"),
        ({"coarse_step": 16}, "coarse_step = 16 does not lead from the first to the last of 2 values"),
        ({"held_out": 3}, "held_out = 3 has no effect without shots"),
        ({"name": ""}, "name = '' is not valid; use letters"),
    ],
)
def test_a_protocol_made_in_python_is_checked(changed, message):
    with pytest.raises(ProtocolError, match=f"protocol .*{message}"):
        validate(replace(OWN, **changed))


def test_a_valid_protocol_made_in_python_passes():
    validate(OWN)
    validate(replace(OWN, shots=2, num_seeds=3, held_out=1, refit=False))


def test_a_protocol_is_described():
    assert describe_protocol("few-shot-16-held-out") | {"source": ""} == {
        "name": "few-shot-16-held-out",
        "title": "16 images a class, C chosen on 4 more",
        "feature point": "pre_projection",
        "C": "97 values from 1e-06 to 1e+06, every 16th first, then around the best",
        "C chosen on": "4 more images of each class from train",
        "images per class": "16 + 4",
        "seeds": "0, 1, 2, 3, 4",
        "final fit on": "the drawn images",
        "solver": "at most 1000 iterations, tol 1e-06",
        "source": "",
    }
    assert describe_protocol("readme")["C"] == "0.316"
    assert "C chosen on" not in describe_protocol("readme")


def test_protocols_of_others_are_described():
    open_clip, coop, vtab = (describe_protocol(name) for name in ("open-clip", "coop-lp-8", "vtab-1k"))
    assert open_clip["feature point"] == "projected, L2-normalised, standardised"
    assert open_clip["C"] == "5 values from 1 to 10000, divided by the number of training images, all tried"
    assert open_clip["final fit on"] == "train images only"
    assert coop["C"] == "7 values from 1e-06 to 1e+06, all tried, then 8 bisections around the best"
    assert coop["C chosen on"] == "4 more images of each class from train"
    assert vtab["images"] == "800 + 200 of all classes"
    assert vtab["C chosen on"] == "200 more images of all classes from train"
    assert vtab["final fit on"] == "all drawn images"


def test_later_fields_do_not_change_the_identity_of_protocols_that_do_not_use_them():
    """Records from before these fields stay complete, and digests of rules in published tables stay the same."""
    for name in ("clip-paper", "few-shot-4", "knn", "zero-shot"):
        assert not set(Protocol.LATER) & set(identity_fields(get_protocol(name)))
    for changes in ({"standardize": True}, {"mean_loss": True}, {"bisections": 8}, {"per_class": False}):
        assert identity(replace(OWN, **changes)) != identity(OWN)


def test_protocols_are_listed(capsys):
    assert main(["protocols"]) == 0
    out = capsys.readouterr().out
    for name in (*protocol_names(), *GROUPS):
        assert name in out


def test_a_protocol_is_shown_with_its_source(capsys, tmp_path):
    assert main(["protocols", "few-shot-4"]) == 0
    assert "openai/CLIP#135" in capsys.readouterr().out
    (tmp_path / "mine.toml").write_text(PLAIN)
    assert main(["protocols", str(tmp_path / "mine.toml")]) == 0
    assert "2 values from 0.1 to 1, all tried" in capsys.readouterr().out


def test_a_group_shows_each_of_its_protocols(capsys):
    assert main(["protocols", "few-shot-held-out"]) == 0
    names = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("name ")]
    assert names == list(GROUPS["few-shot-held-out"])
