from dataclasses import replace

import pytest
from make.records import RECORDS, classified_record, make_failure, make_further_test, scored_record
from PIL import Image

from probe.errors import ResultsError
from probe.leaderboard.plots import write_plots


@pytest.fixture(scope="module")
def plots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots")
    return folder, write_plots(RECORDS, folder)


@pytest.mark.slow
def test_every_plot_is_there_as_png_and_svg(plots):
    folder, paths = plots
    eager, jit = "readme-projected-sklearn-eager-fp32", "readme-projected-sklearn-jit-fp32"
    swept = "clip-paper-projected-sklearn-eager-fp32"
    names = {f"bars.{eager}", f"bars.{jit}", f"bars.{swept}"}
    names |= {f"cost.{eager}", f"cost.{jit}", f"cost.{swept}"}
    names |= {f"sweep.cifar10.{swept}", "jit", "published"}
    assert {path.name for path in paths} == {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    assert all(path.stat().st_size > 1000 for path in folder.iterdir())
    with Image.open(folder / "jit.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 24)) > 5


@pytest.mark.slow
def test_zero_shot_is_drawn_against_the_probe_and_below_few_shot(tmp_path):
    names = ["zero-shot", "readme", *(f"few-shot-{shots}" for shots in (1, 2, 4, 8, 16))]
    write_plots([scored_record("tiny", 100 - 10 * i, protocol=name) for i, name in enumerate(names)], tmp_path)
    text = (tmp_path / "zero-shot.svg").read_text()
    assert "zero-shot, %" in text
    assert "linear probe, %" in text
    text = (tmp_path / "shots.few-shot-projected-sklearn-eager-fp32.svg").read_text()
    assert "training images of each class" in text
    assert "digits, %" in text
    assert (tmp_path / "bars.zero-shot-projected-eager-fp32.png").is_file()


@pytest.mark.slow
def test_text_in_svg_is_text(plots):
    text = (plots[0] / "published.svg").read_text()
    assert "published, %" in text


@pytest.mark.slow
def test_the_same_records_draw_the_same_bytes(plots, tmp_path):
    for path in write_plots(RECORDS[:1], tmp_path / "a"):
        write_plots(RECORDS[:1], tmp_path / "b")
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
        break


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ResultsError, match="no record has a score"):
        write_plots([make_failure()], tmp_path)


@pytest.mark.slow
def test_reliability_has_one_figure_with_a_panel_for_each_model(tmp_path):
    """Records without bins, such as early ones, have no panel."""
    records = [classified_record("digits", "tiny"), classified_record("digits", "RN50"), scored_record("old", 20)]
    paths = write_plots(records, tmp_path)
    (path,) = (path for path in paths if path.name.startswith("reliability.") and path.suffix == ".svg")
    text = path.read_text()
    assert path.name == "reliability.digits.readme-projected-sklearn-eager-fp32.svg"
    assert text.count("before: ECE ") == text.count("after: ECE ") == 2
    assert "RN50" in text
    assert "old" not in text.replace("bold", "")


@pytest.mark.slow
def test_each_further_test_set_is_drawn_against_its_dataset_for_each_protocol(tmp_path):
    tests = (make_further_test("moved", 0.4), make_further_test("dr/awn", 0.3))
    records = [
        replace(scored_record(model, num_wrong, protocol=protocol), tests=tests)
        for protocol in ("readme", "knn")
        for model, num_wrong in (("tiny", 20), ("ViT-B/32", 40))
    ]
    paths = write_plots([*records, scored_record("RN50", 60)], tmp_path)
    found = sorted(path.name for path in paths if path.name.startswith("further.") and path.suffix == ".svg")
    sections = ("knn-projected-eager-fp32", "readme-projected-sklearn-eager-fp32")
    assert len(found) == 4
    assert found[2:] == [f"further.moved.digits.{section}.svg" for section in sections]
    text = (tmp_path / found[-1]).read_text()
    for label in ("test split of digits, %", "moved, %", "tiny", "ViT-B/32"):
        assert f">{label}</text>" in text
    assert ">RN50</text>" not in text  # its record has no further test set
