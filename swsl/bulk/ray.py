"""The runner as a step of Ray Data: `classify` and `embed` of any Dataset that holds the bytes of images, on one machine or many.

    import ray
    from swsl.bulk import ray as swsl_ray

    images = ray.data.read_parquet("images/")  # a column of bytes, and one that names each image
    answers = swsl_ray.classify(images, model="model.pt", image="jpeg", id="key", top_k=5)

The rows have the columns of `swsl.bulk.parquet`, an image that cannot be used being a row with its error. What computes are actors: one
a node (`cpus_per_actor`), on GPUs one a GPU. Each has a runner of its own, which keeps to the actor's cores. The model's file goes
from this process through Ray's object store: nodes need no common disk.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch

from ..deploy.frozen import FrozenRunner
from ..deploy.protocol import AnyRunner
from ..deploy.runner import Runner, build_info
from ..image import MAX_PIXELS, Fetched, ImageError
from ..prediction import Output, Result
from ..system.files import replacing
from ..version import __version__
from ..weights import file_sha256
from .parquet import Columns
from .run_record import Record, run_record

if TYPE_CHECKING:
    from ray.data import Dataset

TASK_RETRIES = 5
"""How often a batch is tried again whose actor has died under it, by an image that kills its process say; Ray Data's default is for
ever. Actors are made anew as often as it takes."""

KEPT_WORKERS = 16
"""Of a node: processes that Ray keeps while they wait for a task, as ``num_workers_soft_limit``. Its default is a node's CPUs, and on a
node of few it would start a process, a second of one core, for almost every task that reads or writes."""


class Options(NamedTuple):
    """What decides the rows, and the device and batches that make them; as `swsl.Runner` has them."""

    outputs: tuple[Output, ...] = ("predictions",)
    top_k: int = 5
    dtype: str = "float32"
    batch_size: int = 0
    exif_orientation: bool = False
    max_pixels: int = MAX_PIXELS

    @property
    def of_runner(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "exif_orientation": self.exif_orientation,
            "max_pixels": self.max_pixels,
        }


class Pool(NamedTuple):
    """The actors that a cluster has room for, all alike."""

    actors: int
    cores: int
    """Of each."""
    gpus: int
    """Of each: 0 or 1."""

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def classify(
    dataset: Dataset,
    *,
    model: str | os.PathLike[str],
    image: str = "image",
    id: str = "path",  # noqa: A002
    top_k: int = 5,
    outputs: Output | Sequence[Output] = "predictions",
    cpus_per_actor: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int = 0,
    exif_orientation: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """A row for each row of the dataset, in no promised order, computed when the dataset that this returns is.

    Args:
        dataset: of the bytes of image files and their names.
        model: the frozen module, a file of this machine.
        image: the column of bytes, or of structs with a field ``bytes`` as Hugging Face's are.
        id: the column that names each image. It becomes ``path``; Ray's checkpoints want the same name before and after, so give
            that column this name if you use them.
        top_k, outputs: as in `swsl.Runner.run`.
        cpus_per_actor: cores of each runner; by default all of a node's, and on GPUs its share of them. Ray counts one less, which is
            left for tasks that read and write.
        device: "cpu", "cuda", or "auto": the cluster's GPUs where it has any.
        dtype: "float32", "bfloat16", "float16" or "tf32". Not "auto": nodes could choose differently.
        batch_size, exif_orientation, max_pixels: as in `swsl.Runner`.

    Raises:
        ImportError: Ray is not there.
        ModelError: ``model`` is missing or no frozen module.
        ValueError: an option out of bounds, or a cluster that has no room for one actor.
    """
    names: Any = [outputs] if isinstance(outputs, str) else list(outputs)
    if not names or not set(names) <= set(get_args(Output)):
        raise ValueError(f"outputs: expected one or more of {', '.join(get_args(Output))}, got {outputs!r}")
    ordered = tuple(name for name in get_args(Output) if name in names)
    options = Options(ordered, top_k, dtype, batch_size, exif_orientation, max_pixels)
    shipped = Shipped(model, options)
    start_ray()
    shipped.send()
    pool = room_for(cpus_per_actor, device)
    # One less than it has: Ray's own reading and writing tasks want a CPU each, and would wait for one for ever.
    return answers(dataset, shipped, pool, image=image, id=id, counted=pool.cores - 1)


def embed(
    dataset: Dataset,
    *,
    model: str | os.PathLike[str],
    image: str = "image",
    id: str = "path",  # noqa: A002
    **options: Any,
) -> Dataset:
    """The pooled features of each image: `classify` with ``outputs="embedding"``, and its other options but ``top_k``."""
    return classify(dataset, model=model, image=image, id=id, outputs="embedding", **options)


def start_ray() -> Any:
    """The module, connected to the cluster that is there, or else to one of this machine.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise ImportError("Ray Data is not there: pip install 'ray[data]'") from error
    if not ray.is_initialized():
        ray.init()
    return ray


def room_for(cpus_per_actor: int | None, device: str) -> Pool:
    """The actors for the nodes that the cluster has now.

    Raises:
        ValueError: there is no room for one.
    """
    nodes = [node["Resources"] for node in start_ray().nodes() if node["Alive"]]
    return pool_of([(int(n.get("CPU", 0)), int(n.get("GPU", 0))) for n in nodes], cpus_per_actor, device)


def pool_of(nodes: Sequence[tuple[int, int]], cpus_per_actor: int | None, device: str) -> Pool:
    """The actors for nodes of so many CPUs and GPUs each. Where nodes differ an actor is as large as most of them are."""
    gpu_nodes = [(cpus, gpus) for cpus, gpus in nodes if gpus and cpus]
    if device.startswith("cuda") and not gpu_nodes:
        raise ValueError(f"device: the cluster has no GPU for {device!r}, by what Ray knows of its nodes")
    if device != "cpu" and gpu_nodes:
        cores = cpus_per_actor or max(min(cpus // gpus for cpus, gpus in gpu_nodes), 1)
        actors = sum(min(gpus, cpus // cores) for cpus, gpus in gpu_nodes)
        found = Pool(actors, cores, 1)
    else:
        sizes = Counter(cpus for cpus, _ in nodes if cpus)
        usual = min((size for size, count in sizes.items() if count == max(sizes.values())), default=0)
        cores = cpus_per_actor or usual
        found = Pool(sum(cpus // cores for cpus, _ in nodes) if cores else 0, cores, 0)
    if not found.actors:
        largest = max((cpus for cpus, _ in nodes), default=0)
        raise ValueError(
            f"cpus_per_actor: no node of the cluster has room for an actor of {max(cores, 1)} CPUs{' and a GPU' * found.gpus}: the "
            f"largest of {len(nodes)} has {largest}, by what Ray knows; ask for fewer, or add nodes"
        )
    return found


class Shipped:
    """A frozen module on its way from this process to every node, with what else an actor must know. It is opened here first, on the
    CPU, so that a bad one fails before Ray is asked for anything.

    Raises:
        ModelError: it is missing or no frozen module.
        ValueError: an option out of bounds.
    """

    def __init__(self, model: str | os.PathLike[str], options: Options) -> None:
        if options.dtype not in ("float32", "bfloat16", "float16", "tf32"):
            raise ValueError(
                f"dtype: expected float32, bfloat16, float16 or tf32, got {options.dtype!r}: nodes could choose differently"
            )
        self.options = options
        path = Path(os.path.abspath(model))
        with open_on(path, options._replace(dtype="float32"), "cpu", 0) as runner:
            self.widths: dict[Output, int] = {
                "logits": len(runner.labels),
                "embedding": runner.embed([]).shape[1],
            }
            record = run_record(runner, outputs=options.outputs, top_k=options.top_k)
            self.record: Record = {**record, "dtype": options.dtype}
        self.version, self.compiled = __version__, build_info()["compiled"]
        self.sha256, self.suffix = file_sha256(path), path.suffix
        self._path = path
        self._bytes: Any = None

    def send(self) -> None:
        """Into the object store of the cluster that this process is connected to."""
        import ray

        self._bytes = ray.put(self._path.read_bytes())

    @property
    def columns(self) -> Columns:
        return Columns(self.options.outputs, self.widths, self.record)

    def local_file(self) -> Path:
        """The module as a file of this node, written once for all actors and runs, and checked each time.

        Raises:
            OSError: the folder is another user's, or full.
        """
        import ray

        folder = Path(tempfile.gettempdir(), f"swsl-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder}: is another user's; set TMPDIR on this node")
        path = folder / (self.sha256 + self.suffix)
        if not path.is_file() or file_sha256(path) != self.sha256:
            with replacing(path) as temporary:
                temporary.write_bytes(ray.get(self._bytes))
        return path


def open_on(path: Path, options: Options, device: str, cores: int) -> AnyRunner:
    """A runner: the compiled one, or PyTorch where it is not built."""
    if build_info()["compiled"]:
        return Runner(path, device=device, dtype=options.dtype, cores=cores, **options.of_runner)
    if options.dtype != "float32":
        raise ValueError(f"dtype: {options.dtype} needs the compiled runner, and {build_info()['reason']}")
    if cores:
        torch.set_num_threads(cores)
    return FrozenRunner(path, device=device, **options.of_runner)


def answers(
    dataset: Dataset,
    shipped: Shipped,
    pool: Pool,
    *,
    image: str,
    id: str,  # noqa: A002
    counted: int,
    error: str | None = None,
) -> Dataset:
    """The dataset's rows through the pool's actors, for each of which Ray counts so many CPUs. The column ``error`` says, where it is
    not null, why there are no bytes."""
    from ray.data import ActorPoolStrategy
    from ray.util.annotations import RayDeprecationWarning

    with warnings.catch_warnings():
        # A parameter of its own for retries, Ray has none yet; pyproject.toml keeps to releases that take this one.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            Answers,
            fn_constructor_args=(shipped, pool.device, pool.cores, image, id, error),
            batch_size=None,  # blocks as they are: their bytes are bounded, where a number of images is not
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(size=pool.actors),
            num_cpus=counted,
            num_gpus=pool.gpus or None,
            scheduling_strategy="SPREAD",  # one that counts a core less than it takes would share its node else
            max_task_retries=TASK_RETRIES,
        )


class Answers:
    """An actor: batches of bytes to batches of rows.

    Args:
        shipped: the model.
        device: "cpu" or "cuda".
        cores: that the runner keeps to. Ray says as many in ``OMP_NUM_THREADS``, which it leaves out if the user has set it.
        image, id, error: the columns to take, the last if there is one.
    """

    def __init__(
        self,
        shipped: Shipped,
        device: str,
        cores: int,
        image: str,
        id: str,  # noqa: A002
        error: str | None,
    ) -> None:
        if shipped.version != __version__:
            raise RuntimeError(
                f"this node has swsl {__version__}, and the run was begun by {shipped.version}; install one on all"
            )
        if shipped.compiled and not build_info()["compiled"]:
            raise RuntimeError(
                f"this node computes by PyTorch, and the machine that began the run by the compiled runner: {build_info()['reason']}"
            )
        self._runner = open_on(shipped.local_file(), shipped.options, device, cores)
        self._options, self._columns = shipped.options, shipped.columns
        self._image, self._id, self._error = image, id, error

    def __call__(self, batch: Any) -> Any:
        for column in (self._image, self._id):
            if column not in batch.column_names:
                raise ValueError(
                    f"the dataset has no column {column!r}; expected one, found {batch.column_names}"
                )
        import pyarrow as pa

        ids = batch[self._id].cast(pa.string()).combine_chunks()
        names = ids.to_pylist()
        failed: list[str | None] = batch[self._error].to_pylist() if self._error else [None] * len(names)
        sources: list[Fetched] = []
        for row, data in enumerate(_bytes_of(batch[self._image])):
            if not failed[row] and data is None:
                failed[row] = f"{names[row]}: is null; expected the bytes of an image file"
            if not failed[row]:
                sources.append(Fetched(data, names[row]))
        made = self._runner.stream(
            sources, top_k=self._options.top_k, outputs=self._options.outputs, max_wait=None
        )
        results = [
            Result(name, error=ImageError(error)) if error else next(made)
            for name, error in zip(names, failed, strict=True)
        ]
        made.close()
        table = self._columns.table(results)
        return table.set_column(
            0, table.schema.field("path"), ids
        )  # to the letter: checkpoints know it by this


def _bytes_of(column: Any) -> Iterator[Any]:
    """What each row of a column holds, where it lies; None for null.

    Raises:
        ValueError: it holds no bytes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise ValueError(f"the column of images holds {column.type}; expected the bytes of image files")
    for chunk in column.chunks:
        for value in chunk:
            buffer = value.as_buffer()
            yield None if buffer is None else memoryview(buffer)
