"""Malicious pickles cannot change an object of the process or use up the memory."""

import contextlib
import pickle
import struct
import tracemalloc
import zipfile

import pytest
import torch

from probe.errors import CheckpointError
from probe.models import archive, saved
from probe.models.archive import check_zip, read_archive
from probe.models.checkpoints import read_checkpoint
from probe.models.saved import read_saved

HEADER, END = b"\x80\x02", b"."
FORMS = ["archive", "saved"]
OBJECT = b"cargparse\nNamespace\n0"  # an object that `weights_only` refuses, replaced by a placeholder


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def sizes(*numbers):
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"


def storage(count=2):
    """Return the pickle of storage `0` with two numbers, or of the empty storage `1`, which torch could resize."""
    key = "0" if count else "1"
    return b"(" + text("storage") + named("torch", "FloatStorage") + text(key) + text("cpu") + b"K%ctQ" % count


def tensor(size=(2,), stride=(1,), offset=0, count=2):
    place = b"K" + bytes([offset]) + sizes(*size) + sizes(*stride)
    hooks = b"\x89" + named("collections", "OrderedDict") + b")R"
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + storage(count) + place + hooks + b"tR"


def item(name, value):
    """Return opcodes that set the attribute or item `name` of the dict or module on the stack."""
    return text(name) + value + b"s"


def module(**attributes):
    content = b"".join(item(name, value) for name, value in attributes.items())
    return named("__torch__", "Module") + b")\x81}" + content + b"b"


def changed(value, state):
    """Return opcodes that apply BUILD to `value`."""
    return value + state + b"b"


def write(path, form, value, *, numbers=bytes(8), compressed=()):
    """Write a file with one storage, and `value` as an attribute of a module or in a container."""
    content = module(weight=value) if form == "archive" else OBJECT + b"}" + item("state_dict", b"}" + item("w", value))
    members = {"m/data.pkl": HEADER + content + END, "m/data/0": numbers, "m/data/1": b""}
    if form == "archive":
        members["m/constants.pkl"] = HEADER + b")" + END
    else:
        members |= {"m/version": b"3\n", "m/byteorder": b"little"}
    with zipfile.ZipFile(path, "w") as file:
        for name, member in members.items():
            file.writestr(name, member, zipfile.ZIP_DEFLATED if name in compressed else zipfile.ZIP_STORED)
    return path


def content_of(path, form):
    return read_archive(path)["weight"] if form == "archive" else read_saved(path).content["state_dict"]["w"]


def snapshot():
    """Return the attributes of all functions and classes that a pickle can reach."""
    objects = [o for m in (archive, saved, torch._utils) for o in vars(m).values() if callable(o)]
    objects += [torch.Tensor, torch.float32, list, dict]
    return [(o, dict(getattr(o, "__dict__", {})), getattr(o, "__defaults__", None)) for o in objects]


@pytest.mark.parametrize("form", FORMS)
def test_the_plain_file_is_read(form, tmp_path):
    path = write(tmp_path / "m.pt", form, tensor(), numbers=struct.pack("<2f", 1, 2))
    found = content_of(path, form)
    assert type(found) is torch.Tensor
    assert found.tolist() == [1, 2]


TARGETS = {
    "function": named("torch._utils", "_rebuild_tensor_v2"),
    "tensor": tensor(),
    "empty tensor": tensor((0,), count=0),
    "storage": storage(),
    "empty storage": storage(0),
    "dtype": named("torch", "FloatStorage"),
    "ordered dict": named("collections", "OrderedDict"),
}
OF_ARCHIVES = {
    "class": named("__torch__", "Module"),
    "class of a name": named("__torch__.a.b", "C"),
    "module": named("__torch__", "Module") + b")\x81",
    "list": named("torch.jit._pickle", "build_intlist"),
    "tag": named("torch.jit._pickle", "restore_type_tag"),
}
OF_SAVED = {
    "parameter": named("torch._utils", "_rebuild_parameter"),
    "parameter with state": named("torch._utils", "_rebuild_parameter_with_state"),
    "sparse function": named("torch._utils", "_rebuild_sparse_tensor"),
    "sparse tensor": named("torch._utils", "_rebuild_sparse_tensor") + b")R",
}
RESIZED = b"(" + storage(0) + b"K\x00" + sizes(2**28) + sizes(1) + b"t"  # the state of a tensor, of 1 GiB
STATES = {
    "slots": b"N}" + item("__defaults__", b"(K\x01K\x02t") + b"\x86",
    "a method": b"N}" + item("__setstate__", named("torch._utils", "_rebuild_tensor_v2")) + b"\x86",
    "attributes": b"}" + item("_backward_hooks", b"K\x01"),
    "a new size": RESIZED,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("form", "target"), [*(("archive", t) for t in TARGETS | OF_ARCHIVES), *(("saved", t) for t in TARGETS | OF_SAVED)]
)
def test_objects_of_the_process_are_not_changed(form, target, state, tmp_path):
    if target == "module" and state == "attributes":
        return  # modules accept attributes, which is harmless
    value = (TARGETS | OF_ARCHIVES | OF_SAVED)[target]
    path = write(tmp_path / "m.pt", form, changed(value, STATES[state]))
    before = snapshot()
    with pytest.raises(CheckpointError, match=r"m\.pt"):
        read_checkpoint(path)
    if form == "archive":
        with pytest.raises(CheckpointError, match=r"m\.pt"):
            read_archive(path)
    else:
        assert read_saved(path).content is None
    assert snapshot() == before


@pytest.mark.parametrize("state", STATES)
def test_placeholders_ignore_their_state(state, tmp_path):
    path = write(tmp_path / "m.pt", "saved", changed(named("os", "system"), STATES[state]))
    before = snapshot()
    assert read_saved(path).classes == ("argparse.Namespace", "os.system")
    assert snapshot() == before


def test_attributes_of_a_state_dict_are_ignored(tmp_path):
    """An attribute with the name of a method must not be called when the content is searched."""
    value = named("collections", "OrderedDict") + b")R" + item("w", tensor())
    path = write(tmp_path / "m.pt", "saved", changed(value, b"}" + item("items", b"K\x01")))
    assert list(content_of(path, "saved")) == ["w"]


def test_a_module_that_holds_itself_is_named(tmp_path):
    value = named("__torch__", "Module") + b")\x81q\x01}" + item("again", b"h\x01") + b"b"
    with pytest.raises(CheckpointError, match=r"m\.pt"):
        read_archive(write(tmp_path / "m.pt", "archive", value))


def peak(read, path):
    """Return the number of bytes that Python allocates until `read` refuses a file."""
    tracemalloc.start()
    try:
        with pytest.raises((CheckpointError, pickle.UnpicklingError)):
            read(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LARGE_INDEX = b"N" + b"r" + struct.pack("<I", 2**26)
OVERSIZED = {
    "index": LARGE_INDEX,
    "index in text": b"Np%d\n" % 2**26,
    "strides of 0": tensor((2**20, 2**10), (0, 0)),
    "a stride of 0": tensor((2, 2**30), (1, 0)),
    "past the end": tensor((2,), (2,)),
    "negative": tensor((-2,), (1,)),
    "offset": tensor((2,), (1,), 1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", OVERSIZED)
def test_a_pickle_that_needs_all_memory_is_refused(form, case, tmp_path):
    path = write(tmp_path / "m.pt", form, OVERSIZED[case])
    assert peak(read_archive if form == "archive" else read_checkpoint, path) < 2**20
    if form == "saved":
        with contextlib.suppress(pickle.UnpicklingError):
            assert read_saved(path).content is None


def test_a_large_index_in_the_older_form_is_refused(tmp_path):
    (tmp_path / "m.pt").write_bytes(HEADER + LARGE_INDEX + END)
    assert peak(read_saved, tmp_path / "m.pt") < 2**20
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("member", ["m/data.pkl", "m/data/0"])
def test_compressed_members_are_refused_before_they_are_read(form, member, tmp_path):
    numbers = bytes(2**24)
    value = tensor() if member == "m/data/0" else b"B" + struct.pack("<I", len(numbers)) + numbers
    path = write(tmp_path / "m.pt", form, value, numbers=numbers, compressed=["m/data.pkl", "m/data/0"])
    assert path.stat().st_size < 2**18
    with pytest.raises(CheckpointError, match=r"torch did not write this zip \(m/data.* is compressed\)"):
        check_zip(path)
    assert peak(read_archive if form == "archive" else read_saved, path) < 2**20


@pytest.mark.parametrize("form", FORMS)
def test_a_storage_of_another_size_is_not_read(form, tmp_path):
    path = write(tmp_path / "m.pt", form, tensor(), numbers=bytes(2**24))
    assert peak(read_archive if form == "archive" else read_checkpoint, path) < 2**21


def test_many_names_of_classes_are_read_in_proportion(tmp_path):
    value = b"".join(named("a", f"C{i}") + b"0" for i in range(20_000)) + b"N"
    classes = read_saved(write(tmp_path / "m.pt", "saved", value)).classes
    assert len(classes) == saved.MAX_NAMES
    assert classes[:2] == ("argparse.Namespace", "a.C0")
