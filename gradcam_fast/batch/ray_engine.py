"""Explains photos with Ray: on all cores and machines of a cluster, or of this machine."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow

try:
    import ray
    import ray.data
except ImportError as error:
    raise ImportError("--engine ray needs Ray, which is not installed; run pip install 'gradcam-fast[ray]'") from error

from ..exceptions import PhotoError
from ..pipeline import map_table
from ..pipeline.map_table import ROWS_PER_PART, MapTable
from ..pipeline.output_lock import lock_folder, remove_parts
from ..pipeline.photo_files import PhotoFile, wanted_name
from .explain import keys_of, table_of
from .ray_sink import TableSink

if TYPE_CHECKING:
    from ray.data import Dataset

    from ..pipeline.map_table import Key
    from .explain import Explain

__all__ = ["Actors", "Outcome", "explain_photos", "explained"]

# How often Ray repeats the work of a process that died. Its own limit is none: a photo that kills would do so for ever.
_RETRIES = 2
# A call keeps an actor busy for seconds, so that what it costs to make one is small, and little is lost with the actor.
_BATCHES_PER_CALL = 4
# One call runs and one waits, so that an actor never idles. The waiting one fails with it.
_CALLS_PER_ACTOR = 2
# Ray calls an actor in a thread of its own. There glibc returns the memory of every forward to the system, and to get
# its pages again costs as much as the forward; with one arena for all threads glibc keeps them.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Actors:
    """How many processes explain, and what each of them gets of the cluster.

    Attributes:
        count: how many; None for as many as fit.
        cpus: cores of each.
        gpus: of each; a fraction lets several share one. None for one if the cluster has any, and the network is not
            told to run elsewhere.
    """

    count: int | None = None
    cpus: int = 1
    gpus: float | None = None

    def fitted(self, device: str | None, others: int = 1) -> Actors:
        """With a count that fits into the cluster beside ``others`` tasks of one core, which read and write.

        Args:
            device: as in `NetworkSource`.

        Raises:
            ValueError: they do not fit; Ray would wait for ever.
        """
        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 0)), resources.get("GPU", 0)
        takes_gpu = gpus > 0 and (device is None or device.startswith("cuda"))
        each = float(takes_gpu) if self.gpus is None else self.gpus
        count = self.count
        if count is None:
            count = max(1, (cpus - others) // self.cpus)
            count = min(count, max(1, int(gpus / each))) if each else count
        if count * self.cpus + others > cpus:
            raise ValueError(
                f"{count} actors of {self.cpus} CPUs, and {others} more for tasks that read and write, need "
                f"{count * self.cpus + others} CPUs, but the cluster has {cpus}; use fewer actors or CPUs for each"
            )
        if count * each > gpus:
            raise ValueError(f"{count} actors need {count * each:g} GPUs, but the cluster has {gpus:g}; use fewer")
        return replace(self, count=count, gpus=each)


@dataclass(frozen=True)
class Outcome:
    """What a run has done.

    Attributes:
        explained: how many photos have maps.
        errors: why the others have none, one sentence each, with the photo's path.
        earlier: how many photos an earlier run had done.
    """

    explained: int
    errors: tuple[str, ...]
    earlier: int


def explained(dataset: Dataset, explain: Explain, actors: Actors | None = None) -> Dataset:
    """The maps of a dataset of photos, one row for each photo and class; computed when the result is consumed.

    Args:
        dataset: its columns are those that `Explain` takes: those of ``ray.data.read_binary_files(...,
            include_paths=True)``, or of a Parquet file with ``path`` and, if need be, ``bytes``.
        actors: the processes; None for one on each core but one.

    Raises:
        ValueError: the actors do not fit into the cluster.
    """
    # Where a dataset is checkpointed, an actor of Ray's takes one more core to leave out what is done.
    others = 1 if dataset.context.checkpoint_config is None else 2
    return _mapped(dataset, explain, (actors or Actors()).fitted(explain.source.device, others), _CALLS_PER_ACTOR)


def explain_photos(
    photos: Sequence[str | os.PathLike[str]] | pyarrow.Table,
    out: Path,
    explain: Explain,
    actors: Actors | None = None,
    *,
    resume: bool = False,
    progress: bool = False,
    max_failures: int = 100,
    rows_per_part: int = ROWS_PER_PART,
) -> Outcome:
    """Explain photo files with Ray, and write the table ``out/maps.parquet``, as the command line does.

    Every photo gets its rows, or one row with an error. Ray repeats the work of a process that died; photos that are
    then still missing are explained once more, each by itself, and where that fails, too, the row says so.

    Args:
        photos: paths or addresses that all machines can read, or a table of them as for `Explain`.
        out: a folder that all machines share. One run at a time writes to it.
        explain: what is asked; its ``threads`` are the cores of an actor, if it has none.
        actors: the processes; None for one on each core but one.
        resume: whether to add to an existing table. Photos that have rows in it are left out, also rows with errors.
        progress: whether Ray shows its progress bars.
        max_failures: how many pieces of work may fail before the run ends with an error. Photos that kill their process
            fail one by one, a full disk fails all.
        rows_per_part: how many rows a file of the table has at least; if the run is killed, no more of them are lost.

    Raises:
        ValueError, FileExistsError: the photos, the question, the actors or an existing table are not as needed; raised
            before any work.
        RuntimeError: another run writes to ``out``, or too much has failed.
    """
    wanted = dict.fromkeys(keys_of(_listing(photos)))
    note, folder = explain.settings, out / "maps.parquet"
    with lock_folder(out) as is_locked, _ray(progress, max_failures):
        actors = (actors or Actors()).fitted(explain.source.device)
        table = MapTable(folder, note, resume=resume)
        folder.mkdir(exist_ok=True)
        if is_locked:
            remove_parts([folder])
        todo = _missing(wanted, table)
        # Then what is missing is explained alone: no photo shares a call, or waits for another one, and fails with it.
        for photos_per_call, calls_per_actor in ((_BATCHES_PER_CALL * explain.batch_size, _CALLS_PER_ACTOR), (1, 1)):
            if rest := _missing(todo, table):
                sink = TableSink(folder, explain.schema, table.number, rows_per_part)
                maps = _mapped(_dataset(rest, photos_per_call), explain, actors, calls_per_actor)
                _write(maps, sink)
                table = MapTable(folder, note, resume=True)
        for path, name in _missing(todo, table):
            reason = f"explaining it failed {_RETRIES + 1} times by itself: its process died, or Ray's log tells why"
            table.append_error(Path(path), name, PhotoError(f"{path}: {reason}"))
        table.flush()
        failed = set(todo) & table.failed
        errors = tuple(error for key, error in map_table.errors(folder) if key in failed)
    return Outcome(len(todo) - len(failed), errors, len(wanted) - len(todo))


def _listing(photos: Sequence[str | os.PathLike[str]] | pyarrow.Table) -> pyarrow.Table:
    if not isinstance(photos, pyarrow.Table):
        return table_of((os.fspath(path), wanted_name(PhotoFile(Path(path)))) for path in photos)
    if "bytes" in photos.schema.names:
        raise ValueError(
            "the table of photos has a column bytes, but explain_photos reads files; leave it out, or use explained"
        )
    return photos


def _missing(photos: Sequence[Key] | dict[Key, None], table: MapTable) -> list[Key]:
    return [key for key in photos if key not in table and key not in table.failed]


def _dataset(photos: list[Key], photos_per_call: int) -> Dataset:
    listing = table_of(photos)
    return ray.data.from_arrow(
        [listing.slice(start, photos_per_call) for start in range(0, len(photos), photos_per_call)]
    )


def _mapped(dataset: Dataset, explain: Explain, actors: Actors, calls_per_actor: int) -> Dataset:
    with _without_deprecations():  # there is no other way yet to give max_task_retries
        return dataset.map_batches(
            _ExplainActor,
            fn_constructor_args=(replace(explain, threads=explain.threads or actors.cpus),),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors.count, max_tasks_in_flight_per_actor=calls_per_actor),
            num_cpus=actors.cpus,
            num_gpus=actors.gpus,
            runtime_env={"env_vars": _ENVIRONMENT},
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )


def _write(maps: Dataset, sink: TableSink) -> None:
    try:
        maps.write_datasink(sink)
    except ray.exceptions.RayError as error:
        reason = str(error.cause if isinstance(error, ray.exceptions.RayTaskError) else error)
        last = next((line for line in reversed(reason.splitlines()) if line.strip()), type(error).__name__)
        raise RuntimeError(f"Ray gave up ({last.strip()}); what it wrote stays, and --resume goes on") from error


class _ExplainActor:
    """A process of the cluster that has loaded the network; one that cannot load it ends the run."""

    def __init__(self, explain: Explain) -> None:
        explain.load()
        self._explain = explain

    def __call__(self, photos: pyarrow.Table) -> pyarrow.Table:
        return self._explain(photos)


@contextmanager
def _ray(progress: bool, max_failures: int) -> Iterator[None]:
    """Ray as the process has it, or as ``RAY_ADDRESS`` names it, or started on this machine until the block ends."""
    starts = not ray.is_initialized()
    if starts:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with _without_deprecations():  # a copy sets deprecated names, too
        context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = progress
    context.print_on_execution_start = False
    context.max_errored_blocks = max_failures
    try:
        with ray.data.DataContext.current(context), _quiet_terminal():
            yield
    finally:
        if starts:
            ray.shutdown()


@contextmanager
def _without_deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def _quiet_terminal() -> Iterator[None]:
    """Let Ray Data write its plans, and the tracebacks of work that it repeats, to its log files only."""
    handlers = [h for h in logging.getLogger("ray.data").handlers if isinstance(h, logging.StreamHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
