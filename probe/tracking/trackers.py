"""Log records to experiment trackers. A tracker that fails never stops a grid, and its library is imported only here.

Each tracker has a run for each record. A record that a tracker has already is not logged twice. Projects, servers and
folders come from the environment variables of each library; the default project is `probe`.
"""

from __future__ import annotations

import contextvars
import io
import logging
import os
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from probe import paths
from probe.environment import DISTRIBUTION
from probe.errors import ExtraMissingError, ProbeError, ResultsError, TrackerError, shorten, summarize
from probe.names import unknown_name
from probe.records.record import check_folder
from probe.records.schema import RunRecord
from probe.tracking.contents import TrackedRun, describe_run

logger = logging.getLogger(__name__)

PROJECT = "probe"
LONGEST_TAG = 64  # characters that wandb allows
BATCH = 100  # parameters that MLflow takes at once
FINISH_SECONDS = 120.0  # time limit for wandb to upload one record
ID_TAG = "probe.id"
COMPLETE = "probe-complete"  # empty file in the folder of an offline run of wandb that was logged to its end
# The libraries send no usage statistics to their makers unless the user sets these variables.
NO_STATISTICS = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
LOCAL_SCHEMES, LOCAL_HOSTS = ("", "file", "sqlite"), ("localhost", "127.0.0.1", "::1")


class Tracker(Protocol):
    """A tracker that is set up. `destination` says where records are logged to."""

    destination: str

    def log(self, run: TrackedRun) -> bool:
        """Log a run and return True; return False if the tracker has it. After an exception, it may not be logged."""


class Trackers:
    """Trackers that records are logged to.

    Args:
        trackers: the trackers by name.
        option: option of the command `log` that names the results folder, for a message; empty for the default folder.

    Attributes:
        num_logged: number of records that were logged to each tracker.
        num_skipped: number of records that each tracker already had.
        failed: names of the trackers that failed. Nothing more is logged to them.
    """

    def __init__(self, trackers: dict[str, Tracker], option: str = "") -> None:
        self._trackers = trackers
        self._option = option
        self.num_logged = dict.fromkeys(trackers, 0)
        self.num_skipped = dict.fromkeys(trackers, 0)
        self.failed: list[str] = []

    def log(self, record: RunRecord) -> None:
        """Log a record to all trackers that have not failed. If a tracker fails, warn once and leave it out."""
        for name, tracker in self._trackers.items():
            if name in self.failed:
                continue
            try:
                is_logged = tracker.log(describe_run(record))
            except Exception as err:  # the record is written, and the grid continues
                logger.debug("%s", record.spec, exc_info=True)
                logger.warning(
                    "cannot log %s to %s (%s); nothing more is logged to %s; log the missing records later with "
                    "`python -m probe log %s%s`",
                    *(record.spec, name, _without_password(summarize(err)), name, name, self._option),
                )
                self.failed.append(name)
            else:
                (self.num_logged if is_logged else self.num_skipped)[name] += 1

    def destinations(self) -> dict[str, str]:
        """Return where each tracker has logged to."""
        return {name: tracker.destination for name, tracker in self._trackers.items()}

    def report(self) -> None:
        """Log the number of records that were logged to each tracker."""
        for name, destination in self.destinations().items():
            if self.num_logged[name]:
                logger.info("records logged to %s: %d (%s)", name, self.num_logged[name], destination)


def open_trackers(
    names: Sequence[str], *, offline: bool = False, num_recorded: int = 0, results_dir: str | Path | None = None
) -> Trackers:
    """Import the libraries of some trackers, and check what can be checked without logging.

    Args:
        names: names of trackers, of `TRACKERS`, or one name.
        offline: do not use the network. wandb then logs into a folder, from which `wandb sync` uploads.
        num_recorded: number of runs that have records already and are not logged, for a message.
        results_dir: folder of the records, for messages; None is the default of `probe.paths`.

    Raises:
        UnknownNameError: there is no such tracker.
        ExtraMissingError: the library of a tracker is not installed.
        TrackerError: a tracker is not set up, or needs the network.
    """
    names = (names,) if isinstance(names, str) else names
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
    folder = paths.results_dir(results_dir)
    option = "" if folder == paths.results_dir(None) else f" --results-dir {shlex.quote(str(folder))}"
    if names and num_recorded:
        logger.info(
            "%d of the runs have records already, which are not logged; log them with `python -m probe log %s%s`",
            *(num_recorded, " ".join(names), option),
        )
    return Trackers({name: _open_tracker(name, offline) for name in dict.fromkeys(names)}, option)


def _open_tracker(name: str, offline: bool) -> Tracker:
    for variable, value in NO_STATISTICS.items():  # before the first import
        os.environ.setdefault(variable, value)
    try:
        return TRACKERS[name](offline)
    except ProbeError:
        raise
    except Exception as err:  # each library has its own
        reason = _without_password(summarize(err))
        raise TrackerError(f"{name} is not set up ({reason}); correct its settings, or do not log to {name}") from err


class _Wandb:
    """Weights & Biases. Only the contents of records are logged: no files, code, output, or facts about the machine."""

    def __init__(self, offline: bool) -> None:
        self._wandb = _import("wandb")
        settings = self._wandb.setup().settings  # from WANDB_* and wandb's own files
        if settings.mode == "disabled":
            raise TrackerError("wandb is disabled by WANDB_MODE; unset WANDB_MODE, or do not log to wandb")
        self._mode = "offline" if offline else settings.mode
        self._project = settings.project or PROJECT
        if self._mode == "online" and not self._wandb.login(prompt=False, verify=False):
            raise TrackerError("wandb has no API key; run `wandb login`, or log into a folder with --offline")
        self._settings = self._wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        self._folder = Path(settings.wandb_dir)
        self._is_local = self._mode in ("offline", "dryrun")
        self.destination = f"project {self._project}"
        if self._is_local:
            _check_wandb_folder(self._folder)
            self.destination = f"{self._folder}, from which `wandb sync` uploads"

    def log(self, run: TrackedRun) -> bool:
        if self._is_local and any(self._folder.glob(f"offline-run-*-{run.id}/{COMPLETE}")):
            return False
        tags = dict.fromkeys(shorten(tag, LONGEST_TAG) for tag in run.tags.values())
        found = self._wandb.init(
            project=self._project,
            id=run.id,
            name=run.name,
            config=dict(run.config),
            tags=list(tags),
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            reinit="create_new",  # a run that the user has opened continues
            settings=self._settings,
        )
        try:
            if self._mode == "online":
                self.destination = found.project_url or self.destination
            # A command may have been killed before the metrics were logged. The summary does not support `in`.
            is_new = not found.resumed or not run.metrics.keys() <= set(found.summary.keys())
            if is_new:
                found.log(dict(run.metrics))
            folder = Path(found.settings.sync_dir)
        except Exception:
            found.finish(exit_code=1)
            raise
        found.finish(exit_code=int(run.has_failed))
        if self._is_local:
            (folder / COMPLETE).touch()
        return is_new


def _check_wandb_folder(folder: Path) -> None:
    """Check that wandb can write to its folder: otherwise wandb silently writes to a temporary folder.

    Raises:
        TrackerError: the folder cannot be written to.
    """
    try:
        check_folder(folder, f"the folder {folder} of wandb", option="WANDB_DIR")
    except ResultsError as err:
        raise TrackerError(f"cannot write to {folder}; set WANDB_DIR to a different folder") from err


class _Mlflow:
    """MLflow: a server, or without MLFLOW_TRACKING_URI the database `mlflow.db` in the current folder."""

    def __init__(self, offline: bool) -> None:
        mlflow = _import("mlflow")
        self._entities = import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or ""
        self._name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        address = urlsplit(str(self._client.tracking_uri))
        is_path = address.scheme in LOCAL_SCHEMES and str(self._client.tracking_uri) != "databricks"
        server = address.hostname or address.scheme or address.path
        if offline and not is_path and address.hostname not in LOCAL_HOSTS:
            raise TrackerError(
                f"MLflow logs to the server {server}, which --offline forbids; set "
                "MLFLOW_TRACKING_URI=sqlite:///mlflow.db, or remove --offline"
            )
        place = _without_password(str(self._client.tracking_uri))
        self.destination = f"experiment {self._experiment or self._name} of {place}"

    def log(self, run: TrackedRun) -> bool:
        client, entities = self._client, self._entities
        if not self._experiment:
            known = client.get_experiment_by_name(self._name)
            self._experiment = known.experiment_id if known is not None else client.create_experiment(self._name)
        found = client.search_runs([self._experiment], f"tags.`{ID_TAG}` = '{run.id}'", max_results=1)
        if found and found[0].info.end_time is not None:
            return False
        start, end = int(1000 * run.started), int(1000 * run.ended)
        if found:  # a command was killed before the run was complete; equal values replace themselves
            run_id = found[0].info.run_id
        else:
            tags = {**run.tags, ID_TAG: run.id}
            run_id = client.create_run(self._experiment, start_time=start, tags=tags, run_name=run.name).info.run_id
        params = [entities.Param(name, str(value)) for name, value in run.config.items()]
        for first in range(0, len(params), BATCH):
            client.log_batch(run_id, params=params[first : first + BATCH])
        client.log_batch(run_id, metrics=[entities.Metric(name, value, end, 0) for name, value in run.metrics.items()])
        client.set_terminated(run_id, status="FAILED" if run.has_failed else "FINISHED", end_time=end)
        return True


class _Trackio:
    """Trackio: the folder TRACKIO_DIR, or the Space or server that its environment variables name."""

    def __init__(self, offline: bool) -> None:
        remote = next((name for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL") if os.environ.get(name)), None)
        if offline and remote is not None:
            raise TrackerError(f"{remote} names a server for Trackio, which --offline forbids; unset {remote}")
        self._trackio = _import("trackio")
        self._offline = offline
        place = (
            os.environ[remote].partition("?")[0] if remote is not None else import_module("trackio.utils").TRACKIO_DIR
        )
        self.destination = f"project {PROJECT} in {place}"

    def log(self, run: TrackedRun) -> bool:
        # an empty context, so that a run that the user has opened continues
        return contextvars.Context().run(self._log, run)

    def _log(self, run: TrackedRun) -> bool:
        # Trackio has no ids that users choose, so its names contain them.
        name = f"{run.name} {run.id}"
        own = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        is_new = False
        caught: list[warnings.WarningMessage]
        with (
            _offline_hub(self._offline),
            redirect_stdout(io.StringIO()),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            try:
                self._trackio.init(PROJECT, name=name, resume="must", **own)
            except ValueError:  # there is no such run
                is_new = True
                self._trackio.init(PROJECT, name=name, config=dict(run.config), **own)
                self._trackio.log(dict(run.metrics))
            self._trackio.finish()
        for warning in caught:  # Trackio raises no errors while it logs
            if warning.category is UserWarning:
                raise TrackerError(str(warning.message))
        return is_new


TRACKERS: dict[str, Callable[[bool], Tracker]] = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}


def _without_password(text: str) -> str:
    """Return a text without the user names and passwords in its addresses."""
    return re.sub("//[^/@ ]*@", "//", text)


@contextmanager
def _offline_hub(offline: bool) -> Iterator[None]:
    """Let `huggingface_hub` refuse the network in the block, if `offline`: Trackio asks it for the user's name."""
    constants: Any = import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as err:
        raise ExtraMissingError(
            f"logging to {name} needs its library; install it with pip install '{DISTRIBUTION}[{name}]'"
        ) from err
