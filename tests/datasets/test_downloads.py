"""Downloads of torchvision's datasets from the addresses in its classes, which here are a server on this machine."""

import functools
import gc
import gzip
import hashlib
import io
import shutil
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torchvision.datasets
from make import layouts, own_layouts
from make.mnist import SMALL_MNIST, write_idx_files
from make.sources import place

from probe.datasets import get_dataset
from probe.datasets.archives import unpack_missing
from probe.datasets.catalog import DATASETS
from probe.datasets.opening import form_module, open_dataset
from probe.errors import DatasetError, DatasetMissingError

# torchvision does not close the response of a server that lacks a file; the garbage collector does.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collected():
    """Collect garbage after each test, so that the warning does not come in a later test."""
    yield
    gc.collect()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Log nothing to stderr."""


@pytest.fixture
def server(tmp_path):
    """Serve a folder; yield the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)  # checks for its end every 0.02 s
    thread.start()
    yield folder, f"http://127.0.0.1:{http.server_port}/"
    http.shutdown()
    http.server_close()


@pytest.fixture
def served_mnist(server, tmp_path, monkeypatch):
    """Serve small versions of Fashion-MNIST's files at the address in torchvision's class, and return the folder."""
    folder, address = server
    write_idx_files(tmp_path / "made")
    resources = []
    for path in sorted((tmp_path / "made" / "FashionMNIST" / "raw").iterdir()):
        content = gzip.compress(path.read_bytes(), mtime=0)
        (folder / f"{path.name}.gz").write_bytes(content)
        resources.append((f"{path.name}.gz", hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [address])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    return folder


def test_what_is_missing_is_downloaded_once(served_mnist, tmp_path):
    opened = open_dataset(SMALL_MNIST, data_dir=tmp_path / "data")
    assert len(opened.split("test")) == 10
    for path in served_mnist.iterdir():
        path.unlink()
    again = open_dataset(SMALL_MNIST, data_dir=tmp_path / "data", offline=True)
    assert again.split("train").compute_sha256() == opened.split("train").compute_sha256()


def test_offline_downloads_nothing(served_mnist, tmp_path):
    with pytest.raises(DatasetMissingError, match="and --offline forbids downloading it; put the four IDX files into"):
        open_dataset(SMALL_MNIST, data_dir=tmp_path / "data", offline=True)
    assert not (tmp_path / "data").exists()


def test_a_file_that_differs_from_its_checksum_is_not_used(served_mnist, tmp_path):
    path = served_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DatasetMissingError, match=r"could not be downloaded \(.*\); put the four IDX files into"):
        open_dataset(SMALL_MNIST, data_dir=tmp_path / "data")


def test_a_server_that_has_nothing_is_one_sentence(served_mnist, tmp_path):
    for path in served_mnist.iterdir():
        path.unlink()
    with pytest.raises(DatasetMissingError) as caught:
        open_dataset(SMALL_MNIST, data_dir=tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_a_download_that_failed_can_be_repeated(served_mnist, tmp_path):
    """The files of a failed download are not taken for a dataset, nor for a damaged dataset."""
    path = served_mnist / "t10k-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DatasetMissingError):
        open_dataset(SMALL_MNIST, data_dir=tmp_path / "data")
    path.write_bytes(content)
    assert len(open_dataset(SMALL_MNIST, data_dir=tmp_path / "data").split("test")) == 10


def test_the_next_source_is_tried_where_one_cannot_be_downloaded(served_mnist, tmp_path, image_folder):
    """The folder of the first source does not exist, and the second source can be downloaded."""
    spec = replace(SMALL_MNIST, sources=(place("nowhere"), *SMALL_MNIST.sources))
    assert open_dataset(spec, data_dir=tmp_path / "data").source.form == "torchvision"


def test_an_archive_that_was_put_there_is_unpacked_without_a_network(tmp_path, monkeypatch):
    """A user has copied the archive to the data folder, and works offline."""
    layouts.food101(tmp_path / "made", monkeypatch)
    data = tmp_path / "data"
    data.mkdir()
    with tarfile.open(data / "food-101.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "food-101", "food-101")
    spec = get_dataset("food101")
    spec = replace(spec, subsets=tuple(replace(p, size=4) for p in spec.subsets), num_classes=2, val_fraction=0.5)
    assert len(open_dataset(spec, data_dir=data, offline=True).split("test")) == 4


def test_an_archive_that_is_damaged_is_named(tmp_path):
    (tmp_path / "food-101.tar.gz").write_bytes(gzip.compress(b"no tar"))
    with pytest.raises(DatasetError, match=r"cannot unpack .*food-101\.tar\.gz"):
        open_dataset("food101", data_dir=tmp_path, offline=True)


def test_an_archive_with_a_path_that_climbs_out_is_refused(tmp_path):
    with tarfile.open(tmp_path / "food-101.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../escaped"), io.BytesIO())
    with pytest.raises(DatasetError, match=r"'\.\./escaped' that would be written outside"):
        open_dataset("food101", data_dir=tmp_path, offline=True)
    assert not (tmp_path.parent / "escaped").exists()


@pytest.fixture
def served_food(server, tmp_path, monkeypatch):
    """Serve a small archive of Food-101 at the address in torchvision's class; return its content and a row."""
    folder, address = server
    layouts.food101(tmp_path / "made", monkeypatch)
    with tarfile.open(folder / "food-101.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "food-101", "food-101")
    content = (folder / "food-101.tar.gz").read_bytes()
    monkeypatch.setattr(torchvision.datasets.Food101, "_URL", f"{address}food-101.tar.gz")
    monkeypatch.setattr(torchvision.datasets.Food101, "_MD5", hashlib.md5(content).hexdigest())
    spec = get_dataset("food101")
    subsets = tuple(replace(subset, size=4) for subset in spec.subsets)
    return content, replace(spec, sources=spec.sources[:1], subsets=subsets, num_classes=2, val_fraction=0.5)


def test_a_download_that_was_killed_is_fetched_again(served_food, tmp_path):
    """A killed download leaves half of the archive under its final name. torchvision knows the checksum."""
    content, spec = served_food
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "food-101.tar.gz").write_bytes(content[: len(content) // 2])
    assert len(open_dataset(spec, data_dir=tmp_path / "data").split("test")) == 4


def test_a_download_that_was_killed_is_named_where_it_cannot_be_fetched_again(served_food, tmp_path):
    content, spec = served_food
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "food-101.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"cannot unpack .*food-101\.tar\.gz .*; download it again"):
        open_dataset(spec, data_dir=tmp_path / "data", offline=True)


# Archives whose addresses are in the rows.


def _resisc45(root, _):
    for k, name in enumerate(("airplane", "airport")):
        for i in range(3):
            layouts.write_image(root / "NWPU-RESISC45" / name / f"{name}_{i:03}.jpg", 60 * k)


# How to make a small version of each dataset, and the folder whose files each archive holds.
ADDRESSED = {
    "voc2007": (lambda root, _: own_layouts.voc2007(root), (".", None)),
    "eurosat": (layouts.eurosat, ("eurosat",)),
    "resisc45": (_resisc45, (".",)),
    "ucf101": (lambda root, _: own_layouts.ucf101(root), ("ucf101", None)),
}


def test_every_row_with_addresses_is_tested_here():
    assert set(ADDRESSED) == {spec.name for spec in DATASETS if any(source.downloads for source in spec.sources)}


@pytest.fixture
def addressed(server, tmp_path, monkeypatch):
    """Serve the archives of a small dataset, and return its first source with the local addresses."""
    folder, address = server

    def make(name):
        write, tops = ADDRESSED[name]
        write(tmp_path / "made", monkeypatch)
        source = get_dataset(name).sources[0]
        downloads = []
        for (archive, _), (url, _), top in zip(source.archives, source.downloads, tops, strict=True):
            served = folder / url.rpartition("/")[2]
            pack(tmp_path / "made" / top if top else None, served)
            assert archive.rpartition("/")[2] == served.name
            downloads.append((f"{address}{served.name}", hashlib.md5(served.read_bytes()).hexdigest()))
        return replace(source, downloads=tuple(downloads))

    return make


def _open(name, source, data, *, offline=False):
    spec = get_dataset(name)
    if offline:
        return form_module(source.form).open_subset(spec, source, spec.subsets[0], root=data, offline=True)
    subsets = tuple(replace(subset, size=None, first_label=None, last_label=None) for subset in spec.subsets)
    few = {"num_classes": None, "recipe": "", "split_sizes": (), "num_folds": 1, "fold_sizes": ()}
    small = replace(spec, sources=(source,), subsets=subsets, val_fraction=0.34, test_fraction=0.34, **few)
    return open_dataset(small, data_dir=data).subsets[spec.subsets[0].name]


@pytest.mark.parametrize("name", ADDRESSED)
def test_archives_are_fetched_from_the_addresses_of_the_row_and_unpacked(name, addressed, server, tmp_path):
    source = addressed(name)
    fetched = _open(name, source, tmp_path / "data")
    made = _open(name, source, tmp_path / "made", offline=True)
    assert fetched.compute_sha256() == made.compute_sha256()
    assert np.array_equal(np.asarray(fetched[0][0]), np.asarray(made[0][0]))
    for path in server[0].iterdir():
        path.unlink()
    assert _open(name, source, tmp_path / "data", offline=True).compute_sha256() == made.compute_sha256()


@pytest.mark.parametrize("name", sorted({*ADDRESSED} - {"ucf101"}))  # ucf101 has no published checksum
def test_an_archive_that_is_not_the_published_one_is_refused(name, addressed, server, tmp_path):
    """The message contains both digests, and nothing is unpacked."""
    source = addressed(name)
    for path in server[0].iterdir():
        path.write_bytes(b"something else")
    with pytest.raises(DatasetMissingError, match=r"MD5 mismatch \(expected [0-9a-f]{8}"):
        _open(name, source, tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("name", ["eurosat", "resisc45"])
def test_an_archive_that_a_killed_download_left_is_fetched_again(name, addressed, tmp_path):
    """A killed download by torchvision leaves half of the archive under its final name."""
    source = addressed(name)
    archive = tmp_path / "data" / source.archives[0][0]
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"PK half")
    assert len(_open(name, source, tmp_path / "data")) == {"eurosat": 10, "resisc45": 6}[name]


def test_eurosat_does_not_depend_on_the_address_that_torchvision_knows(addressed, tmp_path, monkeypatch):
    """Versions of torchvision before 0.20 use a host whose certificate is not accepted."""

    def fail(_):
        raise AssertionError("torchvision was asked to download")

    source = addressed("eurosat")
    monkeypatch.setattr(torchvision.datasets.EuroSAT, "download", fail)
    assert len(_open("eurosat", source, tmp_path / "data")) == 10


def test_an_address_that_does_not_answer_says_what_to_put_where(tmp_path):
    spec = get_dataset("resisc45")
    source = replace(spec.sources[0], downloads=(("http://127.0.0.1:9/NWPU-RESISC45.zip", "0" * 32),))
    with pytest.raises(DatasetMissingError) as caught:
        open_dataset(replace(spec, sources=(source,)), data_dir=tmp_path)
    assert "could not download http://127.0.0.1:9/NWPU-RESISC45.zip" in str(caught.value)
    assert f"put the folder NWPU-RESISC45 of NWPU-RESISC45.rar, or NWPU-RESISC45.zip into {tmp_path}" in str(
        caught.value
    )
    assert len(str(caught.value)) <= 500


def test_a_class_that_downloads_nothing_says_so(tmp_path):
    with pytest.raises(
        DatasetMissingError, match="torchvision's FlyingChairs cannot download its files; put them into"
    ):
        open_dataset("torchvision:FlyingChairs", data_dir=tmp_path)


WRITERS = {
    name: writer
    for name, writer in {
        **{name: getattr(layouts, name) for name in (*layouts.WRITERS, "stl10", "gtsrb", "eurosat", "clevr_counts")},
        **{
            name: getattr(own_layouts, name)
            for name in ("sun397", "voc2007", "fer2013", "kitti", "gtsrb_39209", "ucf101")
        },
    }.items()
    if get_dataset(name).sources[0].archives
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_archives_alone_are_enough_for_every_row_that_has_some(name, tmp_path, monkeypatch):
    """A miniature in the archives of its source opens offline, with the same images as the unpacked miniature."""
    made, data = tmp_path / "made", tmp_path / "data"
    writer = WRITERS[name]
    writer(made, monkeypatch) if hasattr(layouts, name) else writer(made)
    spec = get_dataset(name)
    source = spec.sources[0]
    for k, (archive, folder) in enumerate(source.archives):
        pack(made / folder if k == 0 else None, data / archive)
    if name == "flowers102":  # its two lists are separate files
        for path in (made / "flowers-102").glob("*.mat"):
            shutil.copy(path, data / "flowers-102")
    for root in (made, data):
        unpack_missing(source, root)
    assert all((data / path).exists() for path in source.paths)
    subset, root = spec.subsets[0], {"root": data, "offline": True}
    opened = form_module(source.form).open_subset(spec, source, subset, **root)
    directly = form_module(source.form).open_subset(spec, source, subset, **{**root, "root": made})
    assert opened.compute_sha256() == directly.compute_sha256()
    assert np.array_equal(np.asarray(opened[0][0]), np.asarray(directly[0][0]))


def pack(folder, archive):
    """Pack the files of a folder as a tar or zip archive. Without a folder, the archive is empty."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder else []
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in files:
                packed.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as packed:
            for path in files:
                packed.add(path, path.relative_to(folder))
