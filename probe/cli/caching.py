"""`cache`: list, explain, verify and remove features that are kept."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from probe.cli import grids
from probe.errors import ProbeError, printable


def cache_ls(args: argparse.Namespace) -> int:
    """List what is kept."""
    from probe import paths
    from probe.features import inventory
    from probe.leaderboard import tables

    kept = inventory.survey(paths.cache_dir(args.cache_dir))
    if args.json:
        for entry in kept:
            print(json.dumps({**asdict(entry), "path": str(entry.path)}, sort_keys=True))
        return 0
    header = ("dataset", "subset", "model", "mode", "precision", "images", "state", "MB", "last used", "folder")
    names = ("dataset", "subset", "model", "mode", "precision")
    rows = [
        (
            *(entry.label.get(name, "") for name in names),
            str(entry.num_images or ""),
            entry.state,
            f"{entry.size / 1e6:.1f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
            entry.path.name,
        )
        for entry in kept
    ]
    print(tables.markdown_table(header, rows), end="")
    print(f"\n{sum(entry.size for entry in kept) / 1e6:.1f} MB in {printable(str(paths.cache_dir(args.cache_dir)))}")
    return 0


def cache_explain(args: argparse.Namespace) -> int:
    """Say which features are cached, or how the nearest entry differs; 1 where some are not cached."""
    from probe import paths
    from probe.features import inventory, store
    from probe.features.extraction import Session, find_entries

    root, session, missed = paths.cache_dir(args.cache_dir), Session(grids.settings(args)), 0
    for spec in grids.plan_runs(args, ["readme"]):
        try:
            entries = find_entries(spec, session)
        except ProbeError as err:
            missed += 1
            print(f"probe: {err}", file=sys.stderr)
            continue
        for entry in entries.values():
            folder = entry.folder(root)
            reason = store.damage(folder) if folder.is_dir() else "not kept"
            if not reason:
                print(printable(f"{entry}: cached in {folder}"))
                continue
            missed += 1
            if folder.is_dir():
                print(printable(f"{entry}: damaged in {folder} ({reason}); the next run extracts it again"))
                continue
            kept = inventory.nearest(root, entry)
            if kept is None:
                print(printable(f"{entry}: not cached, nor is anything of this subset"))
                continue
            fields = inventory.differing(entry, kept)
            print(printable(f"{entry}: not cached; the nearest entry is {kept.path.name} ({kept.state})"))
            for name, (there, wanted) in fields.items():
                print(printable(f"  {name}: {there} there, {wanted} wanted{_reason(name, there, wanted)}"))
    return 1 if missed else 0


def _reason(name: str, there: object, wanted: object) -> str:
    """Explain why a digest in the key changed; return "" for fields that are not digests."""
    from probe.datasets.fingerprints import SAMPLED

    is_sampled, was_sampled = str(wanted).startswith(SAMPLED), str(there).startswith(SAMPLED)
    if name != "content":
        return ""
    if is_sampled and not was_sampled:
        return " (an earlier version compared only sizes and dates of files, not their contents)"
    return f" ({'sizes, dates or contents of files' if is_sampled else 'contents of images'} changed)"


def cache_verify(args: argparse.Namespace) -> int:
    """Compare what is kept with its digests; 1 where something is damaged."""
    from probe import paths
    from probe.features import inventory

    checked, damaged = inventory.verify(paths.cache_dir(args.cache_dir))
    for path, reason in damaged.items():
        print(printable(f"{path}: {reason}"))
    print(f"{checked} checked, {len(damaged)} damaged{'; the next run makes them again' if damaged else ''}")
    return 1 if damaged else 0


def cache_gc(args: argparse.Namespace) -> int:
    """Remove what is of no use."""
    from probe import paths
    from probe.features import inventory

    removed = inventory.collect(paths.cache_dir(args.cache_dir), max_size=args.max_size)
    for entry in removed:
        print(printable(f"removed {entry.path} ({entry.state}, {entry.size / 1e6:.1f} MB)"))
    print(f"{sum(entry.size for entry in removed) / 1e6:.1f} MB freed")
    return 0
