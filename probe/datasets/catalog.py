"""The datasets by name, as data: where they come from, their parts and sizes, classes, metric and licence.

Sizes and classes are those of the makers' own pages, named in `homepage`; for CIFAR and MNIST they are also those of
Radford et al. 2021, table 9.
"""

from __future__ import annotations

from probe.specs import DatasetSpec, Part

_TRAIN_ARGUMENT, _TEST_ARGUMENT = (("train", True),), (("train", False),)
_IDX_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"

CATALOG: tuple[DatasetSpec, ...] = (
    DatasetSpec(
        name="digits",
        title="Optical recognition of handwritten digits, 8 x 8 pixels",
        form="embedded",
        source="sklearn.datasets.load_digits",
        parts=(Part("all", 1_797),),
        num_classes=10,
        val_fraction=0.2,
        homepage="https://archive.ics.uci.edu/dataset/80",
        license="CC BY 4.0",
    ),
    DatasetSpec(
        name="cifar10",
        title="CIFAR-10",
        form="torchvision",
        source="CIFAR10",
        parts=(Part("train", 50_000, _TRAIN_ARGUMENT), Part("test", 10_000, _TEST_ARGUMENT)),
        num_classes=10,
        files="the folder cifar-10-batches-py of cifar-10-python.tar.gz",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        license="not stated",
    ),
    DatasetSpec(
        name="cifar100",
        title="CIFAR-100, fine labels",
        form="torchvision",
        source="CIFAR100",
        parts=(Part("train", 50_000, _TRAIN_ARGUMENT), Part("test", 10_000, _TEST_ARGUMENT)),
        num_classes=100,
        files="the folder cifar-100-python of cifar-100-python.tar.gz",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        license="not stated",
    ),
    DatasetSpec(
        name="mnist",
        title="MNIST",
        form="torchvision",
        source="MNIST",
        parts=(Part("train", 60_000, _TRAIN_ARGUMENT), Part("test", 10_000, _TEST_ARGUMENT)),
        num_classes=10,
        files=f"a folder MNIST/raw with {_IDX_FILES}",
        homepage="https://yann.lecun.org/exdb/mnist/index.html",
        license="CC BY-SA 3.0",
    ),
    DatasetSpec(
        name="fashion_mnist",
        title="Fashion-MNIST",
        form="torchvision",
        source="FashionMNIST",
        parts=(Part("train", 60_000, _TRAIN_ARGUMENT), Part("test", 10_000, _TEST_ARGUMENT)),
        num_classes=10,
        files=f"a folder FashionMNIST/raw with {_IDX_FILES}",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        license="MIT",
    ),
)
