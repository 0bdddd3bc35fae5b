import pickle
from pathlib import Path

import pytest
import torch
from make.clips import SMALL_RESNET, SMALL_VIT, random_clip
from safetensors.torch import save_file

from probe.errors import MAX_MESSAGE, CheckpointError, CheckpointMissingError
from probe.models import get_model
from probe.models.architectures import architecture_of
from probe.models.archive import is_archive
from probe.models.checkpoints import read_checkpoint, read_model
from probe.models.loading import load_clip
from probe.models.openai import save_archive


@pytest.fixture(scope="module")
def model():
    return random_clip(SMALL_VIT)


def _write_training_checkpoint(state_dict, path):
    """open_clip's training writes this form on several GPUs."""
    weights = {f"module.{name}": tensor for name, tensor in state_dict.items()}
    torch.save({"epoch": 32, "name": "a run", "state_dict": weights, "optimizer": {"state": {}}}, path)


WRITERS = {
    "plain.pt": torch.save,
    "nested.pt": lambda state_dict, path: torch.save({"model": state_dict}, path),
    "epoch_32.pt": _write_training_checkpoint,
    "model.safetensors": lambda state_dict, path: save_file(dict(state_dict), path),
}


@pytest.mark.parametrize("file", WRITERS)
def test_every_form_gives_the_same_model(file, model, tmp_path):
    WRITERS[file](model.state_dict(), tmp_path / file)
    loaded, _ = load_clip(tmp_path / file, "cpu")
    image, text = torch.randn(2, 3, 32, 32), torch.randint(1, 100, (2, 12))
    assert torch.equal(loaded(image, text)[0], model(image, text)[0])
    assert loaded.visual.input_resolution == 32
    assert loaded.dtype == torch.float32


@pytest.mark.parametrize("file", WRITERS)
def test_weights_that_may_belong_to_open_clip_give_a_warning(file, model, tmp_path, caplog):
    """open_clip's default activation is GELU, and a state dict does not contain the activation."""
    WRITERS[file](model.state_dict(), tmp_path / file)
    read_checkpoint(tmp_path / file)
    read_checkpoint(tmp_path / file)
    (message,) = caplog.messages  # each run of a grid reads the file
    assert "open_clip:ARCH/PATH" in message


def test_the_warning_of_bare_weights_is_short_and_printable(model, tmp_path, caplog):
    """Without the command line, the logger has no formatter that removes control characters."""
    path = tmp_path / f"{'x' * 100}\n\u202e" / f"{'y' * 200}.pt"
    path.parent.mkdir()
    torch.save(model.state_dict(), path)
    read_checkpoint(path)
    (message,) = caplog.messages
    assert len(message) <= MAX_MESSAGE
    assert message.isprintable()


def test_an_archive_of_known_sizes_is_openais(model, tmp_path, caplog):
    save_archive(model, tmp_path / "model.pt")
    read_checkpoint(tmp_path / "model.pt")
    assert not caplog.text


def test_rebuilding_an_archive_of_unknown_widths_gives_a_warning(tmp_path, caplog):
    """The archive's code has the right heads and activation, but a rebuilt model must assume OpenAI's."""
    save_archive(random_clip(SMALL_RESNET), tmp_path / "model.pt")
    read_checkpoint(tmp_path / "model.pt")
    assert "towers 8 (image) and 64 (text) channels wide, unlike any of OpenAI's models" in caplog.text
    assert "--jit on" in caplog.text


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x10\x00\x00\x00\x00\x00\x00\x00{broken json!!}"])
def test_a_file_that_is_not_safetensors_is_named(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file or is damaged"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_a_truncated_safetensors_file_is_named(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(dict(model.state_dict()), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_checkpoint(path)


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "model.safetensors", "folder/pytorch_model.bin"])
@pytest.mark.parametrize("save", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))])
def test_a_pickle_with_code_does_not_run_by_any_path(name, save, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    save({"state_dict": Bomb(tmp_path / "ran")}, path)
    (path.parent / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointError):
        read_checkpoint(path.parent if "folder" in name else path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, torch.zeros(3)])
def test_a_file_of_something_else_is_named(content, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="contains no state dict"):
        read_checkpoint(tmp_path / "model.pt")


def test_a_plain_state_dict_is_read(tmp_path):
    torch.save(random_clip(SMALL_VIT).state_dict(), tmp_path / "weights.pt")
    assert not is_archive(tmp_path / "weights.pt")
    assert architecture_of(read_model(tmp_path / "weights.pt").state_dict) == SMALL_VIT


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 nothing", b".", b"a", b"t", b"PK\x05\x06"])
def test_a_file_that_is_not_a_checkpoint_is_named(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt is not a checkpoint"):
        read_model(tmp_path / "model.pt")


@pytest.mark.parametrize("size", [10, 1000, 5000, 50_000])
def test_a_truncated_state_dict_is_named(size, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(100_000)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="is not a checkpoint or is damaged"):
        read_checkpoint(path)


def test_a_truncated_state_dict_of_the_old_form_is_named(tmp_path):
    path = tmp_path / "old.pt"
    torch.save(random_clip(SMALL_VIT).state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"old\.pt"):
        read_model(path)


@pytest.mark.parametrize("name", ["UPPER.SAFETENSORS", "no-suffix", "blob.pt"])
def test_safetensors_are_known_by_their_content_too(name, model, tmp_path):
    save_file(dict(model.state_dict()), tmp_path / name)
    assert architecture_of(read_model(tmp_path / name).state_dict) == SMALL_VIT


def test_a_link_is_not_followed_away_from_its_neighbours(model, tmp_path):
    """Hugging Face's cache consists of links to files without suffix."""
    (tmp_path / "blobs").mkdir()
    save_file(dict(model.state_dict()), tmp_path / "blobs" / "abc")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    assert get_model(tmp_path / "model.safetensors").source == str(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {1: torch.zeros(2)},
        lambda s: s | {"visual.proj": torch.zeros(192, 48).to_sparse()},
        lambda s: s | {"visual.proj": torch.zeros(192, 48, device="meta")},
    ],
)
def test_tensors_without_plain_numbers_are_named(change, model, tmp_path):
    torch.save(change(dict(model.state_dict())), tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt"):
        read_checkpoint(tmp_path / "odd.pt")


def test_quantized_weights_are_refused(model, tmp_path):
    torch.save(model.state_dict() | {"visual.proj": torch.zeros(192, 48, dtype=torch.int8)}, tmp_path / "int8.pt")
    with pytest.raises(
        CheckpointError, match=r"'visual.proj' has a wrong dtype: expected torch.float32, got torch.int8; give"
    ):
        load_clip(tmp_path / "int8.pt", "cpu")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_named(name, model, tmp_path, monkeypatch):
    """The error of the system is replaced, because a test that runs as root may read all files."""
    WRITERS["plain.pt" if name == "model.pt" else name](model.state_dict(), tmp_path / name)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .* \(Permission denied\); check its permissions"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["a\0b.pt", "open_clip:ViT-B-32/a\0b.pt", "open_clip:ViT-B-32/~nobody-of-this-name/x.pt"]
)
def test_a_name_that_no_path_can_have_is_named(name):
    with pytest.raises(CheckpointMissingError, match=r"(cannot access|no checkpoint at)"):
        get_model(name)
