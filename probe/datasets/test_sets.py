"""Catalogue of further test sets, as data: images with classes of a dataset, which no probe is fitted on.

A further test set has one subset, `test`. The datasets of `datasets.catalog` name theirs in `tests`.
"""

from __future__ import annotations

from typing import Any

from probe.datasets.source_specs import folders, own
from probe.specs import LABELS, WORDNET, DatasetSpec, Subset

_V2_NAMES = {"matched": "matched-frequency", "threshold": "threshold0.7", "top": "top-images"}  # of the archives


def _imagenet_v2(name: str, title: str) -> DatasetSpec:
    folder = f"imagenetv2-{_V2_NAMES[name]}-format-val"
    return DatasetSpec(
        name=f"imagenet_v2_{name}",
        title=f"ImageNetV2, {title}",
        subsets=(Subset("test", 10_000, first_label=0, last_label=999),),
        sources=(
            folders(
                ".",
                {"test": folder},
                files=f"the folder {folder} of imagenetv2-{_V2_NAMES[name]}.tar.gz",
                numbered=("test",),
            ),
        ),
        num_classes=1000,
        class_ids=LABELS,
        homepage="https://github.com/modestyachts/ImageNetV2",
        license="MIT",
        numbers_from="home page",
    )


def _cifar10(version: str, title: str, *, homepage: str, license: str, **arrays: Any) -> DatasetSpec:
    folder = f"cifar10.{version}"
    return DatasetSpec(
        name=f"cifar10_{version}",
        title=title,
        subsets=(Subset("test", 2_000),),
        sources=(
            own(
                "cifar10_shifts",
                folder,
                paths=tuple(arrays.values()),
                files=f"a folder {folder} with {' and '.join(arrays.values())}",
                **arrays,
            ),
        ),
        num_classes=10,
        class_ids=LABELS,
        homepage=homepage,
        license=license,
        numbers_from="home page",
    )


TEST_SETS: tuple[DatasetSpec, ...] = (
    _imagenet_v2("matched", "matched frequency"),
    _imagenet_v2("threshold", "threshold 0.7"),
    _imagenet_v2("top", "top images"),
    DatasetSpec(
        name="imagenet_a",
        title="ImageNet-A, natural adversarial examples",
        subsets=(Subset("test", 7_500),),
        sources=(
            folders(
                ".", {"test": "imagenet-a"}, files="the folder imagenet-a of imagenet-a.tar", ignore=("README.txt",)
            ),
        ),
        num_classes=200,
        class_ids=WORDNET,
        homepage="https://github.com/hendrycks/natural-adv-examples",
        license="MIT",
        numbers_from="Hendrycks et al. 2021 (arXiv 1907.07174)",
    ),
    DatasetSpec(
        name="imagenet_r",
        title="ImageNet-R, renditions",
        subsets=(Subset("test", 30_000),),
        sources=(
            folders(
                ".", {"test": "imagenet-r"}, files="the folder imagenet-r of imagenet-r.tar", ignore=("README.txt",)
            ),
        ),
        num_classes=200,
        class_ids=WORDNET,
        homepage="https://github.com/hendrycks/imagenet-r",
        license="MIT",
        numbers_from="home page",
    ),
    DatasetSpec(
        name="imagenet_sketch",
        title="ImageNet-Sketch",
        subsets=(Subset("test", 50_889),),
        sources=(folders(".", {"test": "sketch"}, files="the folder sketch of ImageNet-Sketch.zip"),),
        num_classes=1000,
        class_ids=WORDNET,
        homepage="https://github.com/HaohanWang/ImageNet-Sketch",
        license="not stated",
        numbers_from="home page",
    ),
    DatasetSpec(
        name="objectnet",
        title="ObjectNet, classes of ImageNet",
        subsets=(Subset("test", 18_574),),
        sources=(
            own(
                "objectnet",
                "objectnet-1.0",
                paths=("images", "mappings"),
                files="the folder objectnet-1.0 of objectnet-1.0.zip, with images and mappings",
            ),
        ),
        num_classes=113,
        class_ids=LABELS,
        homepage="https://objectnet.dev",
        license="terms of the makers, for testing only",
        numbers_from="Barbu et al. 2019 (NeurIPS)",
        notes="Its red border is cut off. Some of its classes are several classes of ImageNet, which are all right.",
    ),
    DatasetSpec(
        name="imagenet_real",
        title="ImageNet ReaL, reassessed labels",
        subsets=(Subset("test", 46_837),),
        sources=(
            own(
                "imagenet_real",
                "imagenet",
                paths=("val",),
                files="a folder imagenet with val/WNID/*.JPEG, and real.json of its repository unless timm is "
                "installed",
            ),
        ),
        class_ids=LABELS,
        relabels=True,
        homepage="https://github.com/google-research/reassessed-imagenet",
        license="Apache 2.0",
        numbers_from="timm's copy of real.json, counted",
        notes="Each label that an image has is right. Images without labels do not count.",
    ),
    _cifar10(
        "1",
        "CIFAR-10.1, version 6",
        homepage="https://github.com/modestyachts/CIFAR-10.1",
        license="MIT",
        images="cifar10.1_v6_data.npy",
        labels="cifar10.1_v6_labels.npy",
    ),
    _cifar10(
        "2",
        "CIFAR-10.2",
        homepage="https://github.com/modestyachts/cifar-10.2",
        license="not stated",
        arrays="cifar102_test.npz",
    ),
)
