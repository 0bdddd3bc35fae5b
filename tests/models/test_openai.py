import zipfile
from dataclasses import replace

import pytest
import torch
from make.clips import SMALL_RESNET, SMALL_VIT, random_clip

from probe.errors import CheckpointError
from probe.models.architectures import architecture_of
from probe.models.checkpoints import read_model
from probe.models.devices import resolve_execution
from probe.models.openai import build_model, expose_pre_projection, load_archive, save_archive, trace_archive

CPU = resolve_execution("cpu")


def _inputs(architecture, n=5):
    generator = torch.Generator().manual_seed(1)
    side = architecture.image_resolution
    image = torch.randn(n, 3, side, side, generator=generator)
    text = torch.randint(1, architecture.vocab_size, (n + 1, architecture.context_length), generator=generator)
    return image, text


def test_archives_have_the_form_of_the_published_ones(archive):
    """An archive has fp16 weights, three methods, the sizes as buffers, and `cuda:0` in the code of both towers."""
    with zipfile.ZipFile(archive) as file:
        code = "".join(file.read(name).decode() for name in file.namelist() if name.endswith(".py"))
    assert "cuda:0" in code
    assert "cpu" not in code
    assert all(f"def {method}(" in code for method in ("forward", "encode_image", "encode_text"))
    with pytest.warns(FutureWarning, match="is deprecated"):
        state_dict = torch.jit.load(archive, map_location="cpu").state_dict()
    assert {"input_resolution", "context_length", "vocab_size"} <= set(state_dict)
    assert state_dict["visual.conv1.weight"].dtype == torch.float16


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_both_modes_give_the_same_logits(archive, precision):
    """The reference requires a softmax within atol 0.01 and rtol 0.1. On the CPU, both modes give the same bits."""
    state_dict = dict(read_model(archive).state_dict)
    execution = resolve_execution("cpu", precision=precision)
    image, text = _inputs(architecture_of(state_dict))
    eager, _ = build_model(state_dict, execution)(image, text)
    jit, _ = load_archive(archive, execution)(image, text)
    assert eager.dtype == jit.dtype == execution.dtype
    assert torch.equal(eager, jit)


def test_both_modes_give_the_same_features_at_both_points(archive):
    state_dict = dict(read_model(archive).state_dict)
    image, _ = _inputs(architecture_of(state_dict))
    visual = build_model(state_dict, CPU).visual
    projected = load_archive(archive, CPU).encode_image(image)
    jit = load_archive(archive, CPU)
    project = expose_pre_projection(jit)
    before = jit.encode_image(image)
    assert torch.equal(before, visual.pre_projection(image))
    assert torch.equal(project(before), projected)
    assert torch.equal(visual(image), projected)


def test_a_model_survives_being_saved_and_rebuilt(tmp_path):
    model = random_clip(SMALL_VIT)
    save_archive(model, tmp_path / "model.pt")
    rebuilt = build_model(read_model(tmp_path / "model.pt").state_dict, CPU)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(rebuilt.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)  # the archive stores fp16


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_archive_is_named(archive, tmp_path, share):
    content = archive.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        read_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.ln_post.bias"), "has no 'visual.ln_post.bias'"),
        (
            lambda s: s.update({"visual.ln_post.bias": torch.zeros(3)}),
            r"'visual.ln_post.bias' has a wrong shape: expected .*, got \(3,\); give",
        ),
        (lambda s: s.update({"head": torch.zeros(3)}), "unknown key 'head'"),
    ],
)
def test_a_key_that_is_missing_misshapen_or_unknown_is_named(change, message):
    state_dict = dict(random_clip(SMALL_VIT).state_dict())
    change(state_dict)
    with pytest.raises(CheckpointError, match=message):
        build_model(state_dict, CPU)


def test_damage_inside_an_archive_is_found(archive, tmp_path):
    """The checksums of the zip find flipped bytes, which torch ignores, so that features would be wrong."""
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        largest = max(file.infolist(), key=lambda info: info.file_size)
    content[largest.header_offset + 500 : largest.header_offset + 600] = bytes(100)
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"flipped\.pt is damaged in"):
        read_model(tmp_path / "flipped.pt")


def test_a_number_that_is_also_a_dtype_is_patched_as_a_dtype_only(tmp_path):
    """A loaded graph has one constant for all uses of 5: for fp16, and for the number of heads of this ResNet."""
    model = random_clip(replace(SMALL_RESNET, vision_width=10))
    assert model.visual.attnpool.num_heads == 5
    save_archive(model, tmp_path / "model.pt")
    image, _ = _inputs(SMALL_RESNET)
    jit = load_archive(tmp_path / "model.pt", CPU).encode_image(image)
    assert torch.equal(jit, build_model(read_model(tmp_path / "model.pt").state_dict, CPU).encode_image(image))


def test_weights_become_an_archive_of_their_architecture():
    """The weights do not contain the activation and the heads."""
    shape = replace(SMALL_VIT, activation="gelu", vision_head_width=32)
    model = random_clip(shape)
    image, _ = _inputs(shape)
    jit = load_archive(trace_archive(model.state_dict(), shape), CPU)
    # The archive stores fp16.
    torch.testing.assert_close(jit.encode_image(image), model.encode_image(image), atol=2e-3, rtol=0)
