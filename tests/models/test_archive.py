"""Archives are read without running their code. TorchScript's loader is the second way of reading them."""

import io
import pickle
import zipfile

import pytest
import torch
from make.clips import SMALL_VIT, random_clip

from probe.cli.main import main
from probe.errors import CheckpointError
from probe.models.archive import check_zip, read_archive
from probe.models.devices import resolve_execution
from probe.models.openai import BUFFERS, load_archive
from probe.tiny import ARCHIVE

CPU = resolve_execution("cpu")
# torch warns about its own functions, which make the archives of these tests.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


def _save(module, path):
    torch.jit.save(torch.jit.script(module), str(path))
    return path


def _rewrite(source, target, change):
    """Copy a zip and replace the content of each member by `change(name, content)`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_tensors_equal_those_of_torchscript(archive):
    for path in (archive, ARCHIVE):
        expected = torch.jit.load(path, map_location="cpu").state_dict()
        found = read_archive(path)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name


class HasLists(torch.nn.Module):
    """A module with other attributes than weights. Archives name other functions of torch for these."""

    sizes: list[int]
    rates: list[float]
    names: dict[str, str]
    tables: list[torch.Tensor]

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(3.0))
        self.sizes, self.rates, self.names, self.tables = [1, 2], [0.5], {"a": "b"}, [torch.zeros(2)]

    def forward(self, x):
        return x * self.weight


def test_attributes_other_than_weights_are_skipped(tmp_path):
    found = read_archive(_save(HasLists(), tmp_path / "lists.pt"))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"weight": [0, 1, 2]}


class WritesAFile(torch.nn.Module):
    """A module whose code runs when the archive is loaded, and writes a file."""

    def __init__(self, path):
        super().__init__()
        self.path: str = str(path)
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.training = False

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool, str]:
        return (torch.zeros(3), False, self.path)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool, str]) -> None:
        self.weight = state[0]
        self.training = state[1]
        self.path = state[2]
        torch.save(state[0], state[2])

    def forward(self, x):
        return x


class SavesLater(torch.nn.Module):
    def forward(self, image, text):
        torch.save(image, "written.pt")
        return image, text


@pytest.fixture
def evil(tmp_path):
    path = _save(WritesAFile(tmp_path / "written.pt"), tmp_path / "evil.pt")
    torch.jit.load(str(path))  # the code runs, so the next test is meaningful
    (tmp_path / "written.pt").unlink()
    return path


def test_a_program_in_an_archive_does_not_run_when_weights_are_read(evil, tmp_path, capsys):
    assert main(["models", str(evil)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "written.pt").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_program_under_another_name_does_not_run(evil, tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes(evil.read_bytes())
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "clip"}')
    assert main(["models", str(tmp_path / "folder")]) == 1
    assert not (tmp_path / "written.pt").exists()


def test_jit_mode_refuses_a_program_that_runs_on_loading(evil, tmp_path):
    with pytest.raises(
        CheckpointError, match="uses '__setstate__', so it is not run; no traced model uses this; use --jit off"
    ):
        load_archive(evil, CPU)
    assert not (tmp_path / "written.pt").exists()


def test_jit_mode_refuses_a_program_that_writes_files(tmp_path):
    with pytest.raises(CheckpointError, match="uses 'save'"):
        load_archive(_save(SavesLater(), tmp_path / "later.pt"), CPU)


def test_a_pickle_that_names_more_than_a_model_is_refused(archive, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("ran",))

    path = _rewrite(
        archive, tmp_path / "bomb.pt", lambda n, c: pickle.dumps(Bomb(), 2) if n.endswith("/data.pkl") else c
    )
    with pytest.raises(CheckpointError, match=r"names (__builtin__|builtins)\.print, which is not allowed in a model"):
        read_archive(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02N.", b"garbage", b"\x80\x02(lp0\n."])
def test_a_description_of_something_else_is_named(archive, tmp_path, content):
    path = _rewrite(archive, tmp_path / "odd.pt", lambda n, c: content if n.endswith("/data.pkl") else c)
    with pytest.raises(CheckpointError, match=r"odd\.pt"):
        read_archive(path)


def test_a_storage_that_is_too_short_is_named(archive, tmp_path):
    path = _rewrite(archive, tmp_path / "short.pt", lambda n, c: c[:-4] if n.endswith("/data/0") else c)
    with pytest.raises(CheckpointError, match=r"storage 0 has \d+ bytes, which do not fit \d+ numbers"):
        read_archive(path)


def test_a_zip_that_torch_did_not_write_is_named(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("a/constants.pkl", bytes(1000))
    content = bytearray(file.getvalue())
    content[50] ^= 0xFF
    (tmp_path / "deflated.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"deflated\.pt is damaged"):
        check_zip(tmp_path / "deflated.pt")


class OnlyForward(torch.nn.Module):
    def forward(self, image, text):
        return image, text


def test_an_archive_without_a_method_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="traced without 'encode_image' and cannot run in JIT mode"):
        load_archive(_save(OnlyForward(), tmp_path / "forward.pt"), CPU)


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean")  # the checks of torch's attention
@torch.no_grad()
def test_an_archive_in_fp32_runs_in_no_other_precision(tmp_path):
    model = random_clip(SMALL_VIT)
    image, text = torch.zeros(1, 3, 32, 32), torch.zeros(1, 12, dtype=torch.long)
    methods = {"forward": (image, text), "encode_image": image, "encode_text": text}
    torch.jit.save(torch.jit.trace_module(model, methods, check_trace=False), str(tmp_path / "fp32.pt"))
    with pytest.raises(
        CheckpointError, match="traced in fp32 and cannot run in another precision; use --precision fp32"
    ):
        load_archive(tmp_path / "fp32.pt", resolve_execution("cpu", precision="bf16"))
    assert torch.equal(load_archive(tmp_path / "fp32.pt", CPU).encode_image(image), model.encode_image(image))
    assert set(BUFFERS).isdisjoint(read_archive(tmp_path / "fp32.pt"))
