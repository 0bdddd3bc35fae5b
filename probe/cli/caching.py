"""`cache`: list, explain, verify and remove cached features."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from probe.cli import grids
from probe.cli.printing import print_json, print_rows
from probe.errors import ProbeError, printable

if TYPE_CHECKING:
    from probe.features.inventory import CachedEntry


def cache_ls(args: argparse.Namespace) -> int:
    """List the cache entries."""
    from probe import paths
    from probe.features import inventory

    entries = inventory.survey(paths.cache_dir(args.cache_dir))
    if args.json:
        print_json([_plain(entry) for entry in entries])
        return 0
    header = ("dataset", "subset", "model", "mode", "precision", "images", "state", "MB", "last used", "folder")
    names = ("dataset", "subset", "model", "mode", "precision")
    rows = [
        (
            *(entry.label.get(name, "") for name in names),
            entry.num_images or None,
            entry.state,
            f"{entry.size / 1e6:.1f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
            entry.path.name,
        )
        for entry in entries
    ]
    print_rows(header, rows)
    print(f"\n{sum(entry.size for entry in entries) / 1e6:.1f} MB in {printable(str(paths.cache_dir(args.cache_dir)))}")
    return 0


def cache_explain(args: argparse.Namespace) -> int:
    """Explain for each cache entry of the runs whether it exists or why it is missing; return 1 if any is missing."""
    from probe import paths
    from probe.features import inventory, store
    from probe.features.extraction import Session, find_entries

    root, session, missed = paths.cache_dir(args.cache_dir), Session(grids.settings(args)), 0
    found: list[dict[str, object]] = []
    for spec in grids.plan_runs(args):
        try:
            entries = find_entries(spec, session)
        except ProbeError as err:
            missed += 1
            print(f"probe: {err}", file=sys.stderr)
            continue
        for entry in entries.values():
            folder, fields = entry.folder(root), dict[str, tuple[object, object]]()
            damage = store.damage(folder) if folder.is_dir() else ""
            if damage:
                state, text = "damaged", f"damaged in {folder} ({damage}); the next run computes it again"
            elif folder.is_dir():
                state, text = "cached", f"cached in {folder}"
            elif (nearest := inventory.nearest(root, entry)) is None:
                state, text = "missing", "not cached, and no other entry of this subset exists"
            else:
                state, text = "missing", f"not cached; the nearest entry is {nearest.path.name} ({nearest.state})"
                fields = inventory.differing(entry, nearest)
            missed += state != "cached"
            found.append({"entry": str(entry), "state": state, "reason": text, "differing": fields})
            if args.json:
                continue
            print(printable(f"{entry}: {text}"))
            for name, (there, wanted) in fields.items():
                print(printable(f"  {name}: {there} there, {wanted} wanted{_reason(name, there, wanted)}"))
    if args.json:
        print_json(found)
    return 1 if missed else 0


def _plain(entry: CachedEntry) -> dict[str, Any]:
    """Return a cache entry as JSON values."""
    return {**asdict(entry), "path": str(entry.path)}


def _reason(name: str, there: object, wanted: object) -> str:
    """Return why a digest in the key changed, or "" for fields that are not digests."""
    from probe.datasets.fingerprints import SAMPLED

    is_sampled, was_sampled = str(wanted).startswith(SAMPLED), str(there).startswith(SAMPLED)
    if name != "content":
        return ""
    if is_sampled and not was_sampled:
        return " (an earlier version compared only sizes and dates of files, not their contents)"
    return f" ({'sizes, dates or contents of files' if is_sampled else 'contents of images'} changed)"


def cache_verify(args: argparse.Namespace) -> int:
    """Compare all cached files with their digests; return 1 if any is damaged."""
    from probe import paths
    from probe.features import inventory

    checked, damaged = inventory.verify(paths.cache_dir(args.cache_dir))
    if args.json:
        print_json({"checked": checked, "damaged": {str(path): reason for path, reason in damaged.items()}})
        return 1 if damaged else 0
    for path, reason in damaged.items():
        print(printable(f"{path}: {reason}"))
    print(f"{checked} checked, {len(damaged)} damaged{'; the next run computes them again' if damaged else ''}")
    return 1 if damaged else 0


def cache_gc(args: argparse.Namespace) -> int:
    """Remove damaged and unusable files, and the entries unused for longest."""
    from probe import paths
    from probe.features import inventory

    removed = inventory.collect(paths.cache_dir(args.cache_dir), max_size=args.max_size)
    if args.json:
        print_json([_plain(entry) for entry in removed])
        return 0
    for entry in removed:
        print(printable(f"removed {entry.path} ({entry.state}, {entry.size / 1e6:.1f} MB)"))
    print(f"{sum(entry.size for entry in removed) / 1e6:.1f} MB freed")
    return 0
