"""Specification of a dataset -> its subsets and folds: find a source, check the images, cut the folds, hash."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

from probe import paths
from probe.datasets import get_dataset
from probe.datasets.archives import unpack_missing
from probe.datasets.checks import check_ends, check_num_classes, check_subset, say_what_is_test
from probe.datasets.images import ImageDataset
from probe.datasets.missing import explain_missing, find_misnamed
from probe.datasets.splits.folds import (
    Fold,
    SplitDigest,
    UsedImages,
    compute_digests,
    cut_folds,
    default_folds,
)
from probe.datasets.splits.recipes import RECIPES
from probe.errors import DatasetError, DatasetMissingError, ExtraMissingError, listed
from probe.names import unknown_name
from probe.specs import SPLITS, DatasetSpec, Source

logger = logging.getLogger(__name__)

# Form of a source -> the module that reads it. Each module has `open_subset(spec, source, subset, *, root, offline) ->
# ImageDataset`. Modules of datasets with published folds also have `open_folds(spec, source, subsets, *, root) ->
# list[Fold]`.
MODULES = {
    **{form: f"probe.datasets.sources.{form}" for form in ("embedded", "folder", "huggingface", "table")},
    **{form: f"probe.datasets.sources.{form}" for form in ("torchvision", "webdataset")},
    **{form: f"probe.datasets.papers.{form}" for form in ("birdsnap", "fer2013", "gtsrb", "hateful_memes", "kitti")},
    **{form: f"probe.datasets.papers.{form}" for form in ("pcam", "stl10", "sun397", "ucf101", "voc2007")},
    **{form: f"probe.datasets.papers.{form}" for form in ("cifar10_shifts", "imagenet_real", "objectnet")},
}


@dataclass(frozen=True)
class _UncheckedDataset:
    """Subsets of a dataset that are not compared with its specification; `root` is the folder of datasets."""

    spec: DatasetSpec
    source: Source
    root: Path
    subsets: Mapping[str, ImageDataset]


@dataclass(frozen=True)
class CutDataset:
    """Dataset whose labels are in memory and whose images can be read, cut into folds.

    Args:
        spec: its specification.
        source: the source that was opened.
        subsets: its subsets, as the specification names them.
        incomplete: expected number of images of each subset whose actual number differs.
        folds: train, validation and test images, once for each fit.
    """

    spec: DatasetSpec
    source: Source
    subsets: Mapping[str, ImageDataset]
    incomplete: Mapping[str, int]
    folds: Sequence[Fold]

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes in the order of the labels."""
        return next(iter(self.subsets.values())).class_names

    def split(self, name: str, fold: int = 0) -> ImageDataset:
        """Return the images of `train`, `val` or `test` of a fold."""
        selection = self.folds[fold][name]
        return self.subsets[selection.subset].select(f"{self.spec.name}/{name}", selection.positions)


@dataclass(frozen=True)
class OpenedDataset(CutDataset):
    """Dataset with the digests of its images.

    Args:
        used: for each subset, the images that splits use; subsets that no split uses are left out.
        splits: number and digest of the images of each split, under the names that `by_split` returns.
        needed: names of these splits.
    """

    used: Mapping[str, UsedImages]
    splits: Mapping[str, SplitDigest]
    needed: tuple[str, ...] = SPLITS

    def only(self, splits: tuple[str, ...]) -> OpenedDataset:
        """Return the dataset limited to some splits, without the subsets that they do not use."""
        used = {fold[name].subset for fold in self.folds for name in splits}
        return replace(
            self,
            used={subset: images for subset, images in self.used.items() if subset in used},
            splits={name: split for name, split in self.splits.items() if name.partition("/")[0] in splits},
            needed=splits,
        )


def open_dataset(
    dataset: str | DatasetSpec,
    *,
    data_dir: str | Path | None = None,
    offline: bool = False,
    allow_partial: bool = False,
    skip_corrupt: bool = False,
) -> OpenedDataset:
    """Open all subsets of a dataset, check them, cut them into folds, and hash the images that the folds use.

    The first source whose files are present is opened, otherwise the first that can be downloaded.

    Args:
        dataset: a name that `get_dataset` knows, or a specification.
        data_dir: folder of datasets, see `probe.paths`.
        offline: never touch the network.
        allow_partial: accept subsets that lack images; `incomplete` says how many images they should have.
        skip_corrupt: do not read the first and the last image of each subset to find damage early.

    Raises:
        DatasetMissingError: the files are missing and could not be downloaded; the message says what to do.
        DatasetError: the number of images, or some label, differs from the specification.
        ExtraMissingError: a library that reads the images is not installed.
    """
    opened = _open_first(dataset, data_dir=data_dir, offline=offline)
    cut = _check_and_cut(opened, allow_partial=allow_partial, skip_corrupt=skip_corrupt)
    digests = compute_digests(cut.subsets, cut.folds)
    return OpenedDataset(**vars(cut), used=digests.used, splits=digests.splits)


def open_split(
    dataset: str | DatasetSpec,
    split: str,
    *,
    fold: int = 0,
    data_dir: str | Path | None = None,
    offline: bool = False,
    allow_partial: bool = False,
    skip_corrupt: bool = False,
) -> ImageDataset:
    """Open `train`, `val` or `test` of a dataset: `len`, and `[i] -> (RGB image, label)`.

    Args:
        dataset: a name that `get_dataset` knows, or a specification.
        split: `train`, `val` or `test`.
        fold: number of the fold of datasets with several, from 0 on.
        data_dir: folder of datasets, see `probe.paths`.
        offline: never touch the network.
        allow_partial: accept subsets that lack images.
        skip_corrupt: do not read the first and the last image of each subset to find damage early.

    Raises:
        UnknownNameError: there is no such dataset or split.
        DatasetError: see `open_dataset`; or `fold` is out of range.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    opened = _open_first(dataset, data_dir=data_dir, offline=offline)
    cut = _check_and_cut(opened, allow_partial=allow_partial, skip_corrupt=skip_corrupt)
    if not 0 <= fold < len(cut.folds):
        raise DatasetError(f"{cut.spec.name} has no fold {fold}; give 0 to {len(cut.folds) - 1}")
    return cut.split(split, fold)


def with_sizes(spec: DatasetSpec, *, data_dir: str | Path | None = None) -> DatasetSpec:
    """Return a specification with the sizes and the number of classes of its files, if it has none."""
    if all(subset.size for subset in spec.subsets) and spec.num_classes:
        return spec
    try:
        opened = _open_first(spec, data_dir=data_dir, offline=True)
        _check_images(opened, allow_partial=True, skip_corrupt=True)
    except Exception:  # the run that opens the dataset meets the same error, and records it
        return spec
    subsets = tuple(replace(subset, size=len(opened.subsets[subset.name])) for subset in spec.subsets)
    return replace(spec, subsets=subsets, num_classes=len(next(iter(opened.subsets.values())).class_names))


def form_module(form: str) -> ModuleType:
    """Return the module that reads a form.

    Raises:
        UnknownNameError: the form is unknown.
    """
    if form not in MODULES:
        raise unknown_name("form", form, MODULES)
    return importlib.import_module(MODULES[form])


def _is_below_data_dir(source: Source) -> bool:
    return source.form != "embedded" and bool(
        source.archives or source.paths or not Path(source.location).is_absolute()
    )


def _open_first(dataset: str | DatasetSpec, *, data_dir: str | Path | None, offline: bool) -> _UncheckedDataset:
    """Open all subsets of a dataset from the first source that has them."""
    spec = get_dataset(dataset) if isinstance(dataset, str) else dataset
    root = paths.data_dir(data_dir) if any(map(_is_below_data_dir, spec.sources)) else Path()
    missing: list[DatasetError | ExtraMissingError] = []  # errors of all sources, first offline, then online
    can_fetch = not offline and any(source.can_download for source in spec.sources)
    for may_fetch in (False, True) if can_fetch else (False,):
        if may_fetch and (misnamed := find_misnamed(spec, root)):
            logger.warning("%s: downloading; to use the local files instead, %s", spec.name, misnamed)
        for source in spec.sources:
            if may_fetch and not source.can_download:
                continue
            module = form_module(source.form)
            try:
                if not may_fetch:
                    _unpack(source, root, offline=offline)
                    _check_paths(spec, source, root)
                opened = {
                    subset.name: module.open_subset(spec, source, subset, root=root, offline=not may_fetch)
                    for subset in spec.subsets
                }
            except (DatasetMissingError, ExtraMissingError) as err:
                missing.append(err)
            else:
                return _UncheckedDataset(spec, source, root, opened)
    raise explain_missing(spec, missing, root=root, offline=offline)


def _unpack(source: Source, root: Path, *, offline: bool) -> None:
    """Unpack archives; a damaged archive counts as missing if it can be downloaded again."""
    try:
        unpack_missing(source, root)
    except DatasetError as err:
        if offline or not source.can_download:
            raise
        raise DatasetMissingError(str(err)) from err


def _check_paths(spec: DatasetSpec, source: Source, root: Path) -> None:
    missing = [path for path in source.paths if not (root / path).exists()]
    if missing:
        raise DatasetMissingError(f"{spec.name}: {listed(missing)} not found in {root}")


def _check_and_cut(opened: _UncheckedDataset, *, allow_partial: bool, skip_corrupt: bool = False) -> CutDataset:
    incomplete = _check_images(opened, allow_partial=allow_partial, skip_corrupt=skip_corrupt)
    folds = _make_folds(opened, allow_partial=bool(incomplete))
    return CutDataset(opened.spec, opened.source, opened.subsets, incomplete, folds)


def _check_images(opened: _UncheckedDataset, *, allow_partial: bool, skip_corrupt: bool) -> dict[str, int]:
    """Compare the subsets of a dataset with its specification.

    Returns:
        The expected number of images of each subset whose actual number differs.
    """
    spec, source, subsets = opened.spec, opened.source, opened.subsets
    say_what_is_test(spec, source)
    incomplete = {
        subset.name: expected
        for subset in spec.subsets
        if (expected := check_subset(spec, source, subset, subsets[subset.name], allow_partial=allow_partial))
        is not None
    }
    if not skip_corrupt:
        for images in subsets.values():
            check_ends(images)
    pool = subsets["test"] if spec.is_test_set else subsets.get("all") or subsets["train"]
    check_num_classes(spec, pool, allow_partial=bool(incomplete))
    return incomplete


def _make_folds(opened: _UncheckedDataset, *, allow_partial: bool) -> Sequence[Fold]:
    """Cut the folds by the recipe of the dataset, by the lists of its makers, or else by holding images out."""
    spec, source, subsets = opened.spec, opened.source, opened.subsets
    if spec.recipe:
        rule = partial(RECIPES[spec.recipe], subsets, spec.val_fraction)
    elif spec.num_folds > 1:
        rule = partial(form_module(source.form).open_folds, spec, source, subsets, root=opened.root)
    else:
        rule = partial(default_folds, spec, subsets)
    return cut_folds(spec, subsets, rule, allow_partial=allow_partial)
