"""`audit`: the command that reports equal images, near-duplicates, class balance, sizes and unreadable images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.cli.printing import print_facts, print_json, print_rows
from probe.errors import listed

if TYPE_CHECKING:
    from probe.datasets.audit import Audit, AuditedImage

CSV_HEADER = ("group", "subset", "image", "split", "classes", "labels_differ")


def audit_command(args: argparse.Namespace) -> int:
    """Print the report on a dataset, and write the groups of equal images; return 1 if an image cannot be read."""
    from probe.features.pixels import audit
    from probe.leaderboard.tables import rows_to_csv
    from probe.records.record import write_text

    report = audit(
        args.dataset,
        distance=args.distance,
        most=args.top,
        data_dir=args.data_dir,
        cache_dir=args.cache_dir,
        offline=args.offline,
    )
    if args.csv is not None:
        write_text(Path(args.csv), rows_to_csv(CSV_HEADER, _csv_rows(report)))
    if args.json:
        print_json(_plain(report))
    else:
        _print_facts(report)
        _print_equal(report, args.top)
        _print_candidates(report)
        _print_classes(report, args.classes)
        _print_unreadable(report)
    return 1 if report.unreadable else 0


def _csv_rows(audit: Audit) -> list[list[object]]:
    return [
        [number, image.subset, image.id, image.split, ", ".join(image.classes), "yes" if group.labels_differ else "no"]
        for number, group in enumerate(audit.equal.groups, 1)
        for image in group.images
    ]


def _plain(audit: Audit) -> dict[str, Any]:
    """Return a report as JSON values, with the properties of its parts."""
    plain = asdict(audit)
    for own, group in zip(plain["equal"]["groups"], audit.equal.groups, strict=True):
        own["is_across"] = group.is_across
    for own, balance in zip(plain["balance"], audit.balance, strict=True):
        own["ratio"] = balance.ratio
    return plain


def _print_facts(audit: Audit) -> None:
    facts = {
        "dataset": audit.dataset,
        "images": _numbers(audit.subsets),
        "splits": _numbers(audit.splits) + (f" (fold 1 of {audit.num_folds})" if audit.num_folds > 1 else ""),
        "unreadable": f"{len(audit.unreadable):,}",
    }
    sizes = audit.sizes
    if sizes is not None:
        names = {"smallest": sizes.smallest, "median": sizes.median, "largest": sizes.largest}
        facts["sizes"] = ", ".join(f"{name} {_size(size)}" for name, size in names.items())
        frequent = ", ".join(f"{_size(size)} {n:,}" for size, n in sizes.frequent)
        facts["different sizes"] = f"{sizes.num_sizes:,}, most frequent {frequent}"
        facts["stored as"] = _numbers(sizes.modes)
    print_facts(facts)


def _numbers(counts: Any) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _print_equal(audit: Audit, most: int) -> None:
    equal = audit.equal
    print("\nEqual pixels:\n")
    rows = [
        (" and ".join(dict.fromkeys(row.splits)), f"{row.groups:,}", f"{row.pairs:,}", f"{row.differing:,}")
        for row in equal.pairs
    ]
    print_rows(("splits", "groups", "pairs", "with different labels"), rows)
    print(
        f"\n{equal.leaked:,} of {audit.splits.get('test', 0):,} test images equal a training or validation image; "
        f"{equal.leaked_differing:,} of them equal one with a different label."
    )
    if equal.groups:
        print(f"\nGroups of equal images, across splits first ({_shown(most, len(equal.groups))}):\n")
        rows = [
            (f"{number}", *_cells(image))
            for number, group in enumerate(equal.groups[:most], 1)
            for image in group.images
        ]
        print_rows(("group", "image", "split", "class"), rows)


def _cells(image: AuditedImage) -> tuple[str, str, str]:
    return image.id, image.split, listed(image.classes)


def _shown(most: int, total: int) -> str:
    return f"{min(most, total):,} of {total:,}"


def _print_candidates(audit: Audit) -> None:
    found = audit.candidates
    total = sum(pairs for pairs, _ in found.counts)
    print(f"\nCandidates for near-duplicates, pairs whose perceptual hashes differ in at most {found.distance} bits:\n")
    rows = [(f"{n}", f"{pairs:,}", f"{across:,}") for n, (pairs, across) in enumerate(found.counts) if pairs]
    print_rows(("bits", "pairs", "across splits"), [*rows, ("all", *_totals(found.counts))])
    if found.closest:
        print(f"\nThe closest pairs, across splits first ({_shown(len(found.closest), total)}):\n")
        closest = [(f"{one.distance}", *_cells(one.images[0]), *_cells(one.images[1])) for one in found.closest]
        print_rows(("bits", "image", "split", "class", "other image", "split", "class"), closest)


def _totals(counts: Sequence[tuple[int, int]]) -> tuple[str, str]:
    pairs, across = map(sum, zip(*counts, strict=True))
    return f"{pairs:,}", f"{across:,}"


def _print_classes(audit: Audit, most: int) -> None:
    print("\nImages of classes:\n")
    rows = []
    for one in audit.balance:
        order = _smallest_first(one.counts)
        smallest, largest = (f"{audit.class_names[k]} ({one.counts[k]:,})" for k in (order[0], order[-1]))
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        rows.append((one.split, smallest, largest, ratio, f"{one.counts.count(0):,}"))
    print_rows(("split", "smallest class", "largest class", "ratio", "classes without images"), rows)
    order = _smallest_first([sum(counts) for counts in zip(*(one.counts for one in audit.balance), strict=True)])
    print(f"\nThe smallest classes ({_shown(most, len(order))}):\n")
    counts = [(audit.class_names[k], *(f"{one.counts[k]:,}" for one in audit.balance)) for k in order[:most]]
    print_rows(("class", *(one.split for one in audit.balance)), counts)


def _print_unreadable(audit: Audit) -> None:
    if audit.unreadable:
        print("\nImages that cannot be read:\n")
        print_rows(("image", "error"), [(one.id, one.message) for one in audit.unreadable])


def _smallest_first(counts: Sequence[int]) -> list[int]:
    return sorted(range(len(counts)), key=lambda k: counts[k])
