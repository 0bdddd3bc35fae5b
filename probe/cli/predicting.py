"""`predict`: the command that applies the head of a run to images."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from probe.cli.printing import print_json, print_rows


def predict_command(args: argparse.Namespace) -> int:
    """Print the predictions of a head for images, or write them as CSV; return 1 if an image could not be read."""
    from probe.datasets.images import open_files
    from probe.datasets.opening import open_split
    from probe.leaderboard.tables import rows_to_csv
    from probe.probes.heads import load_head
    from probe.probes.prediction import TOP, load_encoder_of, predict
    from probe.records.record import write_text

    head = load_head(args.head)
    if args.dataset:
        images = open_split(args.dataset, args.split, data_dir=args.data_dir, offline=args.offline)
    else:
        images = open_files(args.images)
    encoder = load_encoder_of(
        head, model=args.model or None, device=args.device, weights_dir=args.weights_dir, offline=args.offline
    )
    found = predict(head, images, encoder, ids=images.ids, batch_size=args.batch_size)
    if args.json:
        print_json(
            {
                "head": asdict(head.info),
                "predictions": [asdict(one) for one in found.images],
                "skipped": [{"image": image, "message": message} for image, message in found.skipped],
            }
        )
    elif args.out is not None:
        tops = [value for i in range(TOP) for value in (f"name_{i + 1}", f"probability_{i + 1}")]
        rows = [[one.image, one.label, *(value for pair in one.top for value in pair)] for one in found.images]
        write_text(Path(args.out), rows_to_csv(["image", "label", *tops], rows))
    else:
        print_rows(
            ("image", "prediction", "probability", "next"),
            [
                (
                    *(one.image, one.name, f"{one.probability:.3f}"),
                    ", ".join(f"{name} {share:.3f}" for name, share in one.top[1:]),
                )
                for one in found.images
            ],
        )
    for _, message in found.skipped:
        print(f"probe: {message}", file=sys.stderr)
    return 1 if found.skipped else 0
