"""Class names and templates of zero-shot prompts: of the catalogue, files, open_clip, and a user's TOML file."""

import sys
from dataclasses import replace

import pytest
import torchvision.datasets

from probe.cli import arguments, grids
from probe.cli.main import main
from probe.datasets import class_names, dataset_names, get_dataset
from probe.datasets.prompt_files import with_prompts
from probe.datasets.prompts import (
    TEMPLATE,
    Prompts,
    check_duplicates,
    complete,
    find_duplicates,
    get_prompts,
    known_prompts,
    load_open_clip_prompts,
)
from probe.errors import ExtraMissingError, PromptsError, UnknownNameError
from probe.grid import plan
from probe.probes.protocols import get_protocol
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import OPEN_CLIP, ZERO_SHOT

LISTED = [name for name in dataset_names() if get_dataset(name).class_names]
FROM_OPEN_CLIP = [name for name in dataset_names() if get_dataset(name).class_names_from == OPEN_CLIP]


@pytest.mark.parametrize("name", LISTED)
def test_the_catalogue_names_each_class_once(name):
    spec = get_dataset(name)
    prompts = get_prompts(spec)
    assert len(prompts.class_names) == spec.num_classes
    assert find_duplicates(prompts) == {}
    assert all(text.isascii() or name == "country211" for text in prompts.class_names)


def test_imagenet_has_the_prompts_of_open_clip():
    assert FROM_OPEN_CLIP == ["imagenet", "imagenet_v2"]
    assert [name for name in dataset_names() if get_dataset(name).num_classes == 1000] == FROM_OPEN_CLIP


@pytest.mark.parametrize(
    ("name", "dataset_class"),
    [("kmnist", "KMNIST"), ("fashion_mnist", "FashionMNIST"), ("flowers102", "Flowers102")],
)
def test_the_names_have_the_order_of_torchvision(name, dataset_class):
    theirs = getattr(getattr(torchvision.datasets, dataset_class), "classes", None)
    if theirs is None:
        pytest.skip("this version of torchvision has no names")
    plain = [text.lower().replace("?", "").replace("/", " or ") for text in theirs]
    ours = [text.lower().removeprefix("hiragana ") for text in get_dataset(name).class_names]
    assert ours == plain


def test_the_names_of_emnist_have_the_order_of_torchvision():
    theirs = torchvision.datasets.EMNIST.classes_split_dict["balanced"]
    assert [name.split()[-1] for name in class_names.EMNIST_BALANCED] == theirs
    for name, character in zip(class_names.EMNIST_BALANCED, theirs, strict=True):
        has_both_cases = {character.lower(), character.upper()} <= set(theirs) and character.isalpha()
        assert name.startswith(("capital", "small") if has_both_cases else ("digit", "letter"))


def test_country_codes_are_in_the_order_of_their_folders():
    assert list(class_names.COUNTRIES) == sorted(class_names.COUNTRIES)
    assert all(len(code) == 2 and code.isupper() for code in class_names.COUNTRIES)


def test_every_other_dataset_takes_the_names_of_its_files_and_the_template_of_the_readme():
    for name in set(dataset_names()) - set(LISTED) - set(FROM_OPEN_CLIP):
        prompts = get_prompts(get_dataset(name))
        assert (prompts.class_names, prompts.class_names_from) == ((), "the files of the dataset")
        assert (prompts.templates, prompts.templates_from) == ((TEMPLATE,), "the example of OpenAI's README")


def test_open_clip_has_1000_names_and_80_templates_of_imagenet():
    open_clip = pytest.importorskip("open_clip")
    prompts = get_prompts(get_dataset("imagenet"))
    assert (len(prompts.class_names), len(prompts.templates)) == (1000, 80)
    assert prompts.class_names_from == prompts.templates_from == f"open_clip {open_clip.__version__}"
    assert prompts.texts[0][0] == "a bad photo of a tench."
    assert find_duplicates(prompts) == {"missile": [657, 744], "sunglasses": [836, 837]}


def test_the_names_of_open_clip_are_in_the_order_of_wordnet_ids():
    """Each name of open_clip shares a word with timm's WordNet name at the same position, except for 42 synonyms."""
    pytest.importorskip("open_clip")
    info = pytest.importorskip("timm.data").ImageNetInfo()
    ids = info.label_names()
    assert ids == sorted(ids)

    def words(text):
        return set(text.lower().replace(",", " ").replace("-", " ").split())

    ours = load_open_clip_prompts().class_names
    shared = sum(bool(words(name) & words(info.index_to_description(i))) for i, name in enumerate(ours))
    assert shared >= 950


def test_without_open_clip_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ExtraMissingError, match="install the extra open-clip, or give your own with --prompts"):
        get_prompts(get_dataset("imagenet"))
    assert known_prompts(get_dataset("imagenet")).class_names_from == "the installed open_clip"


def test_a_run_without_open_clip_fails_alone(monkeypatch, tmp_path, image_folder):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    folder = image_folder({f"{split}/{name}": 4 for split in ("train", "test") for name in ("red", "green")})
    spec = replace(get_dataset(f"folder:{folder}"), class_names_from=OPEN_CLIP)
    protocols = [get_protocol("zero-shot"), get_protocol("readme")]
    settings = Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "cache")
    failed, done = run_grid(plan([spec], ["tiny"], protocols=protocols, device="cpu"), settings)
    assert "install the extra open-clip" in failed.error.message
    assert done.result is not None


def test_own_names_and_templates_take_the_place_of_those_of_open_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    names = tuple(f"class {i}" for i in range(1000))
    prompts = get_prompts(replace(get_dataset("imagenet"), class_names=names, templates=("a {}",)))
    assert (prompts.class_names, prompts.templates) == (names, ("a {}",))
    assert prompts.class_names_from == prompts.templates_from == "the specification of the dataset"


def test_names_of_files_become_words():
    prompts = complete(get_prompts(get_dataset("food101")), ["apple_pie", "baklava"], num_classes=2, where="food101")
    assert prompts.texts == [["a photo of a apple pie."], ["a photo of a baklava."]]


def test_names_of_the_catalogue_are_not_changed():
    spec = replace(get_dataset("stl10"), class_names=("T-shirt_1", "CamelCase"), num_classes=2)
    assert complete(get_prompts(spec), ["x", "y"], num_classes=2, where="stl10").class_names == spec.class_names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0", "1", "2"], "have ids such as '0' in place of class names; give class_names in the TOML file"),
        (["n01440764", "n01443537", "n01484850"], "have ids such as 'n01440764' in place of class names"),
        (["a", "b"], "there are 3 classes and 2 class names; give one name for each class"),
        (["a", "b", "_"], "birds: the folder or label '_' gives class 2 an empty name; give class_names"),
    ],
)
def test_names_of_files_that_cannot_be_used_are_refused(names, message):
    with pytest.raises(PromptsError, match=message):
        complete(Prompts((), "", (TEMPLATE,), ""), names, num_classes=3, where="birds")


def test_two_classes_with_one_name_are_refused_with_both_labels():
    prompts = Prompts(("crane", "wren", "Crane"), "", (TEMPLATE,), "")
    message = r"the classes 0 \('crane'\) and 2 \('Crane'\) have the same name \(case and spaces do not count\), so"
    with pytest.raises(PromptsError, match=message):
        check_duplicates(prompts, where="birds")


def test_at_most_eight_classes_with_one_name_are_listed():
    prompts = Prompts(("crane",) * 12, "", (TEMPLATE,), "")
    with pytest.raises(PromptsError, match=r"7 \('crane'\) and 4 more have the same name"):
        check_duplicates(prompts, where="birds")


def test_a_wordnet_id_among_words_is_a_warning(caplog):
    names = ["wren", "n01440764", "737"]
    completed = complete(Prompts((), "", (TEMPLATE,), ""), names, num_classes=3, where="birds")
    assert completed.class_names == tuple(names)
    assert caplog.messages == ["birds: class 'n01440764' looks like an id; give class_names"]


def test_prompts_are_part_of_the_identity_of_zero_shot_runs_only():
    digits = get_dataset("digits")
    other = replace(digits, templates=("a drawing of a {}.",))
    protocols = ["readme", "knn-5", "zero-shot"]
    runs, others = (plan([spec], ["tiny"], protocols=protocols, device="cpu") for spec in (digits, other))
    for run, with_other in zip(runs, others, strict=True):
        is_zero_shot = run.protocol.method == ZERO_SHOT
        assert bool(run.prompts) == is_zero_shot
        assert (run.prompts != with_other.prompts) == is_zero_shot


def test_a_grid_has_one_set_of_prompts_for_each_dataset():
    digits = get_dataset("digits")
    with pytest.raises(UnknownNameError, match="two different specifications have the name 'digits'; rename yours"):
        plan([digits, replace(digits, templates=("a {}",))], ["tiny"], device="cpu")
    with pytest.raises(UnknownNameError, match="two different specifications have the name 'digits'; rename yours"):
        plan([replace(digits, val_fraction=0.3)], ["tiny"], device="cpu")


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "own.toml"
        path.write_text(text)
        return str(path)

    return make


def test_a_file_of_prompts_changes_what_it_gives(write):
    (spec,) = with_prompts([get_dataset("stl10")], write('templates = ["a {}", "the {}"]'))
    prompts = get_prompts(spec)
    assert prompts.templates == ("a {}", "the {}")
    assert prompts.templates_from.startswith("own.toml, SHA-256 ")
    assert prompts.class_names == class_names.STL10
    assert prompts.class_names_from == "the specification of the dataset"
    (spec,) = with_prompts([get_dataset("pcam")], write('class_names = ["healthy", "ill"]'))
    assert get_prompts(spec).texts[1] == ["a microscope image of a lymph node with ill."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('template = ["a {}"]', "own.toml: unknown key 'template'; did you mean 'templates'?"),
        (
            'templates = "a {}"',
            "templates: expected a list, got a text; write a list of texts, such as templates = ['a {}']",
        ),
        ("templates = []", "own.toml: the list templates is empty; give at least one text, or remove templates"),
        ("class_names = []", "own.toml: the list class_names is empty; give at least one text, or remove class_names"),
        ("", "own.toml has neither templates nor class_names"),
        ("templates = [", "own.toml is not valid TOML"),
        ('templates = ["a photo"]', "own.toml: the template 'a photo' has 0 places for the class name; write {} once"),
        ('templates = ["a {} {}"]', "own.toml: the template 'a {} {}' has 2 places for the class name"),
        ('templates = ["a {name} {}"]', "own.toml: the template 'a {name} {}' has braces other than {}; remove them"),
        ('templates = ["a {{}}"]', "own.toml: the template 'a {{}}' has braces other than {}; remove them"),
        ('templates = ["<|EndOfText|> {}"]', "has <|EndOfText|>, a special token of tokenizers; remove it"),
        ('class_names = ["a", "&lt;|startoftext|&gt;"]', "has <|startoftext|>, a special token of tokenizers; remove"),
        (r'templates = ["a\n{}"]', r"own.toml: 'a\n{}' has a line break; write it on one line"),
        ('class_names = ["a"]', "own.toml: there are 2 classes and 1 class names; give one name for each class"),
        ('class_names = ["a", " "]', "own.toml: class 1 has no name"),
    ],
)
def test_a_wrong_file_of_prompts_is_refused_in_one_sentence(text, message, write):
    with pytest.raises(PromptsError) as caught:
        with_prompts([get_dataset("pcam")], write(text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_names_belong_to_one_dataset(write):
    path = write('class_names = ["a", "b"]')
    with pytest.raises(PromptsError, match=r"the command has 2 datasets \(pcam, rendered_sst2\); run them separately"):
        with_prompts([get_dataset("pcam"), get_dataset("rendered_sst2")], path)


def test_a_file_of_prompts_that_does_not_exist_is_an_unknown_name(tmp_path):
    with pytest.raises(UnknownNameError, match=r"no\.toml does not exist; give the path of a TOML file with templates"):
        with_prompts([get_dataset("pcam")], str(tmp_path / "no.toml"))


def _plan(*options):
    return grids.plan_runs(arguments.parser().parse_args(["run", "--dataset", "digits", "--model", "tiny", *options]))


def test_the_option_prompts_changes_zero_shot_runs(write):
    path = write('templates = ["a drawing of a {}."]')
    (usual,) = _plan("--protocol", "zero-shot")
    (own,) = _plan("--protocol", "zero-shot", "--prompts", path)
    assert own.dataset.templates == ("a drawing of a {}.",)
    assert own.prompts == get_prompts(own.dataset).sha256 != usual.prompts


def test_the_option_prompts_needs_a_zero_shot_run(write):
    with pytest.raises(arguments.UsageError, match="--prompts is for zero-shot runs; add --protocol zero-shot"):
        _plan("--protocol", "readme", "--prompts", write('templates = ["a {}"]'))


def test_the_option_that_permits_duplicate_names_is_a_setting():
    args = arguments.parser().parse_args(["run", "--dataset", "digits", "--allow-duplicate-names"])
    assert grids.settings(args).allow_duplicate_names
    assert not grids.settings(arguments.parser().parse_args(["run", "--dataset", "digits"])).allow_duplicate_names


def test_the_option_that_permits_duplicate_names_needs_a_zero_shot_run():
    assert _plan("--protocol", "zero-shot", "--allow-duplicate-names")
    with pytest.raises(arguments.UsageError, match="--allow-duplicate-names is for zero-shot runs; add --protocol"):
        _plan("--protocol", "readme", "--allow-duplicate-names")


@pytest.mark.parametrize("text", ['template = ["a {}"]', 'templates = "a {}"', 'templates = ["a"]', "templates = ["])
def test_a_wrong_file_of_prompts_is_wrong_usage(text, write, capsys):
    options = ["--dataset", "digits", "--model", "tiny", "--protocol", "zero-shot", "--prompts", write(text)]
    assert main(["run", *options]) == 2
    assert "own.toml" in capsys.readouterr().err
