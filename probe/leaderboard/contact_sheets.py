"""Contact sheets: pages with thumbnails of the images that a run got wrong, without scripts or requests."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined, Template

from probe.datasets.images import ImageDataset, make_thumbnail
from probe.datasets.opening import open_split
from probe.errors import DatasetError, printable
from probe.records.prediction_files import WrongImage, escape_id
from probe.records.schema import DoneRecord

SIDE = 160  # pixels of a thumbnail
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<title>{{ title }}</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
main { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: {{ side }}px; overflow-wrap: anywhere; }
img { display: block; width: {{ side }}px; height: {{ side }}px; object-fit: contain; background: #eee; }
.id { color: #666; font-size: 12px; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ note }}</p>
<main>
{% for one in tiles %}
<figure>
<img src="data:image/jpeg;base64,{{ one.jpeg }}" alt="{{ one.image }}"/>
<figcaption><b>{{ one.prediction }}</b> {{ one.probability }}<br/>label: {{ one.label }}<br/>
<span class="id">{{ one.image }}</span></figcaption>
</figure>
{% endfor %}
</main>
</body>
</html>
"""


def make_contact_sheet(
    record: DoneRecord,
    errors: Sequence[WrongImage],
    *,
    test: str = "",
    data_dir: str | Path | None = None,
    offline: bool = False,
) -> str:
    """Return a page of images with wrong predictions, in their order.

    Args:
        record: the record of the run.
        errors: the images, from `prediction_files.find_errors`.
        test: name of the further test set that the images are from; empty for the test split of the dataset.
        data_dir: folder of datasets, see `probe.paths`.
        offline: never touch the network.

    Raises:
        DatasetError: the images are not here or differ from those of the record, or an image cannot be read.
    """
    by_fold: dict[int, list[int]] = defaultdict(list)
    for i, error in enumerate(errors):
        by_fold[0 if test else _fold_of(record, error.part)].append(i)  # all folds have the same further test images
    jpegs = [""] * len(errors)
    for fold, numbers in by_fold.items():
        images = open_test_images(record, fold, test=test, data_dir=data_dir, offline=offline)
        places = {escape_id(one): i for i, one in enumerate(images.ids)}
        for i in numbers:
            if errors[i].image not in places:
                raise DatasetError(f"{images.name} has no image {errors[i].image}; write the predictions again")
            image, _ = images[places[errors[i].image]]
            jpegs[i] = base64.b64encode(make_thumbnail(image, SIDE)).decode()
    tiles = [
        {
            "jpeg": jpeg,
            "image": printable(error.image),
            "prediction": printable(error.prediction),
            "label": printable(error.label) or "none of the classes",
            "probability": f"{error.probability:.3f}",
        }
        for error, jpeg in zip(errors, jpegs, strict=True)
    ]
    what, score = "test images", f"Score of the run: {100 * record.result.score:.2f} %."
    further = next((one.all_classes for one in record.tests if one.name == test), None)
    if further is not None:
        what, score = f"images of {test}", f"Score among all classes: {100 * further.score:.2f} %."
    note = (
        f"The {len(tiles)} most confident wrong predictions for {what}: the predicted class, its probability and the "
        f"label. {score}"
        if tiles
        else f"There are no wrong predictions. {score}"
    )
    title = f"{record.spec}, {test}" if test else str(record.spec)
    return _template().render(title=printable(title), note=printable(note), tiles=tiles, side=SIDE)


def open_test_images(
    record: DoneRecord,
    fold: int,
    *,
    test: str = "",
    data_dir: str | Path | None = None,
    offline: bool = False,
) -> ImageDataset:
    """Open the test images of a record, without those that its run skipped.

    Args:
        record: the record.
        fold: number of the fold, from 0 on; 0 for a further test set.
        test: name of a further test set that the record has a score on; empty for the test split of the dataset.
        data_dir: folder of datasets, see `probe.paths`.
        offline: never touch the network.

    Raises:
        DatasetError: the dataset is not here, or its test images differ from those of the record.
    """
    name = "test" if record.spec.dataset.num_folds == 1 else f"test/{fold + 1}"
    spec, split, read = record.spec.dataset, record.splits.get(name), record.read
    if test:
        spec = next(one for one in record.spec.tests if one.name == test)
        split, read = next((one.split, one.read) for one in record.tests if one.name == test)
    assert split is not None
    images = open_split(
        spec,
        "test",
        fold=fold,
        data_dir=data_dir,
        offline=offline,
        allow_partial=bool(read.partial),
        skip_corrupt=bool(read.skipped),
    )
    candidates = [images]
    for subset in dict.fromkeys(skipped.subset for skipped in read.skipped):
        ids = {skipped.id for skipped in read.skipped if skipped.subset == subset}
        candidates.append(images.select(images.name, np.flatnonzero([one not in ids for one in images.ids])))
    for candidate in candidates:
        if candidate.compute_sha256() == split.sha256:
            return candidate
    raise DatasetError(
        f"{images.name}: the ids and labels differ from those of the record, so thumbnails would show other images; "
        "name the folder with the images of the run with --data-dir, or repeat the run"
    )


def _fold_of(record: DoneRecord, part: int) -> int:
    """Return the number of the fold of a part, from 0 on. Parts are counted by fold, and then by draw."""
    folds = record.result.folds
    return (part - 1) // max(1, len(folds[0].draws)) if folds else 0


@cache
def _template() -> Template:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(PAGE)
