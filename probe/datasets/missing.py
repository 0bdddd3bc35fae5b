"""The error for a dataset that no source has: why each source failed, and which files to put where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from probe.errors import DatasetError, DatasetMissingError, ExtraMissingError, summarize
from probe.specs import DatasetSpec


def explain_missing(
    spec: DatasetSpec, missing: Sequence[DatasetError | ExtraMissingError], *, root: Path, offline: bool
) -> DatasetError | ExtraMissingError:
    """Return the error for a dataset that no source has: why each source failed, and which files to put where."""
    extra = next((err for err in missing if isinstance(err, ExtraMissingError)), None)
    if extra is not None:
        return extra
    if len(spec.sources) == 1 and not spec.sources[0].files:
        return missing[-1]
    can_download = any(source.can_download for source in spec.sources)
    if offline and can_download:
        why = "--offline forbids downloading it"
    elif can_download:
        why = f"could not be downloaded ({'; '.join(map(summarize, missing[len(spec.sources) :]))})"
    else:
        why = spec.gone or "probe cannot download it"
    files = next((source.files for source in spec.sources if source.files), "")
    remedy = find_misnamed(spec, root) or f"put {files} into {root}"
    return DatasetMissingError(
        f"{spec.name} is not in {root} and {why}; {remedy}, or name another folder with --data-dir"
    )


def find_misnamed(spec: DatasetSpec, root: Path) -> str:
    """Return what to rename if files of a source are present under names with different dots, dashes or capitals.

    For example, Kaggle names a file of MNIST `train-images.idx3-ubyte`. Return "" if there is nothing to rename.
    """

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    misnamed = {}
    for source in spec.sources:
        for wanted in (root / name for name in (*source.paths, *(archive for archive, _ in source.archives))):
            with suppress(OSError):  # the folder does not exist or may not be read
                beside = {plain(path.name): path.name for path in wanted.parent.iterdir()}
                if not wanted.exists() and plain(wanted.name) in beside:
                    misnamed[wanted] = beside[plain(wanted.name)]
    if not misnamed:
        return ""
    wanted, name = next(iter(misnamed.items()))
    others = f", and {len(misnamed) - 1} others in the same way," if len(misnamed) > 1 else ""
    return f"rename {name} to {wanted.name}{others} in {wanted.parent}"
