"""A run on many machines: what a user has named, through Ray Data, into a folder of Parquet parts.

Tasks that read and write count as no CPU, since they wait most of the time: where actors fill the cluster they would wait for ever
otherwise. A node that leaves takes its actor, its blocks and its tasks with it; Ray makes them anew where there is room. Where there is
none, the run begins again with the nodes that are left, at the rows that there are.
"""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ..system.progress import say
from .ray import Pool, Shipped, answers, room_for
from .ray_inputs import Inputs
from .ray_parts import Parts
from .ray_sources import BLOCK, Images, Table, Unit, blocks
from .rows import written_name

_PART_ROWS = (16, 4096)
"""Of a part at least, for short runs and for long ones: what is not yet in a part is lost in a kill."""
_READ_ROWS = (32, 512)
"""Images of a reading task, likewise."""
_CORES_READ_FOR = 16
"""So many of an actor's cores one reading task feeds: each opens 32 files at a time."""
_LOST_NODE_S = 30.0
"""How long a run waits for another node in the place of one that has left."""
_VAIN_ATTEMPTS = 3
"""So often in a row may a run begin again without a new row in between."""


class NodeLostError(RuntimeError):
    """A node has left the cluster, and none has come in its place."""


def run(
    inputs: Inputs, parts: Parts, shipped: Shipped, *, cpus_per_actor: int | None = None, device: str = "auto"
) -> None:
    """A row in the folder for each input that has none yet.

    Args:
        inputs: from `find_inputs`.
        parts: opened, with this process as the only writer. Afterwards it knows the rows.
        shipped: the model and what is asked of it.
        cpus_per_actor, device: as in `swsl.bulk.ray.classify`.

    Raises:
        ValueError: the cluster has no room for an actor.
        RuntimeError: Ray gave up; what was written is kept.
    """
    import ray.exceptions as lost

    gone = (
        NodeLostError,
        lost.ActorDiedError,
        lost.ActorUnavailableError,
        lost.NodeDiedError,
        lost.ObjectLostError,
        lost.OutOfMemoryError,
        lost.WorkerCrashedError,
    )
    parts.settle()
    vain = 0
    while True:
        before = len(parts.done)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="ray")  # for whoever writes pipelines
                _attempt(inputs, parts, shipped, room_for(cpus_per_actor, device))
        except (lost.RayError, NodeLostError) as error:
            cause = _cause(error)
            text = str(cause).strip()
            if not isinstance(cause, gone) or "creation task" in text:  # of an actor, which would fail again
                raise RuntimeError(
                    f"ray: {text.splitlines()[-1] if text else type(cause).__name__}"
                ) from error
            parts.settle()
            vain = 0 if len(parts.done) > before else vain + 1
            if vain == _VAIN_ATTEMPTS:
                raise RuntimeError(
                    f"ray: {type(cause).__name__} {vain} times without a new row between: {text.splitlines()[0]}; --resume tries again"
                ) from error
            say(f"swsl: {type(cause).__name__}; going on from {len(parts.done):,} rows")
            continue
        if not parts.settle():
            missing = inputs.without_row(parts.done)
            if missing:
                raise RuntimeError(
                    f"ray: {missing[0]}{f' and {len(missing) - 1:,} others' * (len(missing) > 1)} got no row, though Ray Data reports no "
                    "error; --resume tries again"
                )
            return
        vain = 0 if len(parts.done) > before else vain + 1
        if vain == _VAIN_ATTEMPTS:
            raise RuntimeError(
                f"{parts.place.name}: {vain} attempts ended in parts that have rows of other parts, and in no new row"
            )


def _cause(error: BaseException) -> BaseException:
    """What went wrong first, below Ray's wrapping. Its ``__cause__`` is Ray Data's, of whatever went wrong."""
    below = getattr(error, "cause", None)
    return _cause(below) if isinstance(below, BaseException) else error


def _attempt(inputs: Inputs, parts: Parts, shipped: Shipped, pool: Pool) -> None:
    import ray
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    left = inputs.about(parts.done)
    units = inputs.units(parts.done, _within(_READ_ROWS, left // (16 * pool.actors)))
    if not units:
        return
    if ray.available_resources().get("CPU", 0) < pool.cores:
        say("swsl: the cluster's CPUs are taken for now; waiting for some")
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 2 * BLOCK
    context.checkpoint_config = CheckpointConfig(
        id_column="path", checkpoint_path=parts.checkpoint, override_filesystem=parts.place.files
    )
    context.custom_execution_callback_classes = [
        *context.custom_execution_callback_classes,
        _node_watch(len(_alive())),
    ]
    # Ray Data says that nothing can run where no CPU is left. Here everything else runs without.
    logging.getLogger("ray.data.dataset").addFilter(_without_alarm)
    with ray.data.DataContext.current(context):
        images = ray.data.read_datasource(
            _datasource(units, parts.done),
            num_cpus=0,
            concurrency=pool.actors * max(pool.cores // _CORES_READ_FOR, 1),
            override_num_blocks=len(units),
        )
        rows = answers(images, shipped, pool, image="image", id="path", error="error", counted=pool.cores)
        rows.write_parquet(
            parts.place.path,
            filesystem=parts.place.files,
            min_rows_per_file=_within(_PART_ROWS, left // (8 * pool.actors)),
            ray_remote_args={"num_cpus": 0},
            concurrency=pool.actors,
            schema=shipped.columns.schema,
        )


def _without_alarm(record: logging.LogRecord) -> bool:
    return "will hang unless more CPUs are freed up" not in record.getMessage()


def _within(bounds: tuple[int, int], wanted: int) -> int:
    return min(max(wanted, bounds[0]), bounds[1])


def _alive() -> list[str]:
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def _node_watch(nodes: int) -> type:
    """What Ray Data asks at each step of a run that has begun with so many nodes. An actor that Ray makes anew waits for a node that has
    room for it, and its tasks with it, without an end or a word."""
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class NodeWatch(ExecutionCallback):
        def __init__(self) -> None:
            self._asked = time.monotonic()
            self._missing_since: float | None = None

        def on_execution_step(self, executor: Any) -> None:
            now = time.monotonic()
            if now - self._asked < 1:
                return
            self._asked = now
            if len(_alive()) >= nodes:
                self._missing_since = None
            elif self._missing_since is None:
                self._missing_since = now
            elif now - self._missing_since > _LOST_NODE_S:
                raise NodeLostError("a node has left the cluster, and none has come in its place")

    return NodeWatch


def _datasource(units: Sequence[Unit], done: set[str]) -> Any:
    """Ray Data's, whose tasks read a unit each."""
    import ray
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    files = {written_name(unit.place.name): set[str]() for unit in units if not isinstance(unit, Images)}
    for row in done if files else ():
        for end in (*(found.start() for found in re.finditer("/", row)), len(row)):
            if row[:end] in files:
                files[row[:end]].add(row)
    by_column = any(isinstance(unit, Table) and unit.id for unit in units)
    all_of_them = ray.put(done) if by_column else None

    def skipped(unit: Unit) -> Any:
        if isinstance(unit, Images):
            return set()
        return all_of_them if isinstance(unit, Table) and unit.id else files[written_name(unit.place.name)]

    class Bytes(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(partial(_read, unit, skipped(unit)), unknown) for unit in units]

    return Bytes()


def _read(unit: Unit, skipped: Any) -> Iterator[Any]:
    import ray

    found: set[str] = skipped if isinstance(skipped, set) else ray.get(skipped)
    yield from blocks(unit, found.__contains__)


def check_reach(inputs: Inputs, parts: Parts) -> None:
    """That every node sees this machine's files, where these are what is read or written.

    Raises:
        ValueError: a node does not.
    """
    import ray
    import ray.exceptions as lost
    from pyarrow import fs
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    places = [
        *inputs.images[:1],
        *(unit.place for unit in inputs.shards[:1]),
        *(unit.place for unit in inputs.tables[:1]),
    ]
    here = [
        place.path
        for place in places
        if isinstance(place.files, fs.LocalFileSystem) and os.path.exists(place.path)
    ]
    if isinstance(parts.place.files, fs.LocalFileSystem):
        here.append(os.path.abspath(parts.record_path))
    unseen_there: Any = ray.remote(num_cpus=0)(_unseen)
    for node in ray.nodes() if here else ():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                unseen = ray.get(unseen_there.options(scheduling_strategy=there).remote(here))
            except (lost.TaskUnschedulableError, lost.NodeDiedError, lost.WorkerCrashedError):
                continue  # it has left meanwhile
            if unseen:
                raise ValueError(
                    f"{unseen[0]}: is a file of this machine that node {node['NodeManagerAddress']} does not see; put it on a disk that "
                    "all nodes share, or into an object store (s3://…)"
                )


def _unseen(names: list[str]) -> list[str]:
    return [name for name in names if not os.path.exists(name)]
