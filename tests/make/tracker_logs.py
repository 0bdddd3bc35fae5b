"""Contents of the stores of experiment trackers: `python tracker_logs.py` prints what is below the current folder.

wandb has no reader for its offline files, which are logs in LevelDB's format, with a header of seven bytes.
"""

import json
import sqlite3
import struct
import sys
from pathlib import Path

BLOCK, CHUNK_HEADER, FILE_HEADER = 32768, 7, 7
WHOLE, LAST = 1, 4  # kinds of chunks that end a message


def read_wandb(folder):
    """Return for each offline run its id, name, tags, exit code, configuration and metrics."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        run = {"config": {}, "metrics": {}, "rows": 0}
        for message in _messages(path.read_bytes()):
            record = Record.FromString(message)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run |= {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
                run["tags"] = list(record.run.tags)
                run["config"] |= _values(record.run.config.update)
            elif kind == "history":
                run["rows"] += 1
                run["metrics"] |= _values(record.history.item)
            elif kind == "exit":
                run["exit_code"] = record.exit.exit_code
            elif kind in ("files", "output", "output_raw", "stats"):
                run["extra"] = kind
        runs.append(run)
    return runs


def _messages(data):
    """Return the messages of a log of chunks, which never cross the end of a block."""
    messages, message, place = [], b"", FILE_HEADER
    while place + CHUNK_HEADER <= len(data):
        if BLOCK - place % BLOCK < CHUNK_HEADER:
            place += BLOCK - place % BLOCK
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + CHUNK_HEADER])
        place += CHUNK_HEADER
        message += data[place : place + size]
        place += size
        if kind in (WHOLE, LAST):
            messages.append(message)
            message = b""
    return messages


def _values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_mlflow():
    """Return for each run its name, status, times in milliseconds, tags, configuration and metrics."""
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = [one for one in client.search_experiments() if one.name == "probe"]
    return [
        {
            "name": run.info.run_name,
            "status": run.info.status,
            "times": [run.info.start_time, run.info.end_time],
            "tags": run.data.tags,
            "config": run.data.params,
            "metrics": run.data.metrics,
        }
        for run in client.search_runs([experiment.experiment_id])
    ]


def read_trackio(folder):
    """Return for each run its name, configuration, metrics and number of rows."""
    import trackio

    with sqlite3.connect(folder / "trackio" / "probe.db") as database:
        rows = database.execute("SELECT run_name, metrics FROM metrics").fetchall()
    runs = []
    for run in trackio.Api().runs("probe"):
        metrics = [json.loads(found) for name, found in rows if name == run.name]
        runs.append({"name": run.name, "config": run.config, "metrics": metrics[0], "rows": len(metrics)})
    return runs


if __name__ == "__main__":
    here = Path.cwd()
    found = {"wandb": read_wandb(here), "mlflow": read_mlflow(), "trackio": read_trackio(here)}
    sys.stdout.write(json.dumps(found))
