"""A folder of photographs through Ray Data on one and on two nodes, against one machine's runner with the same cores.

    pip install '.[ray]'
    python benchmarks/cluster.py --docs docs/scale.md

The nodes are Ray's of this one machine, each with its own object store and as many of the machine's cores as its share is. Rounds
take turns: the single machine's command, Ray on one node of all cores, Ray on two nodes of half each. Every run ends in Parquet. What
starts before the first image (Ray, actors, the model) and ends after the last is timed apart, by a run over one image in the same
round: a rate is of the images alone. What Ray adds to an image is the difference of both times an image.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import report
import torch
from folder import make_photographs, memory

from swsl.bulk.outputs import BulkOutput
from swsl.bulk.parquet import ParquetOutput
from swsl.bulk.ray import KEPT_WORKERS, Options, Shipped
from swsl.bulk.ray_inputs import find_inputs
from swsl.bulk.ray_job import run
from swsl.bulk.ray_parts import Parts
from swsl.bulk.ray_sources import Place
from swsl.bulk.run_record import run_record
from swsl.deploy.export import export_model
from swsl.deploy.runner import Runner

STORE = 200 << 20


def single(model: Path, paths: list[str], cores: int, target: Path) -> None:
    runner = Runner(model, cores=cores)
    record = run_record(runner, outputs=["predictions"], top_k=5)
    output: BulkOutput = ParquetOutput(target, record, resume=False, outputs=["predictions"], widths={})
    with output:
        for result in runner.stream(paths, top_k=5, max_wait=None):
            output.write([result])


@contextlib.contextmanager
def nodes(count: int, cores: int) -> Iterator[None]:
    import ray
    from ray.cluster_utils import Cluster

    each = {"num_cpus": cores // count, "object_store_memory": STORE}
    kept = {"num_workers_soft_limit": KEPT_WORKERS}
    cluster = Cluster(
        initialize_head=True, head_node_args={**each, "include_dashboard": False, "_system_config": kept}
    )
    try:
        for _ in range(count - 1):
            cluster.add_node(**each)
        cluster.wait_for_nodes()
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def on_ray(model: Path, paths: list[str], target: Path) -> None:
    shipped = Shipped(model, Options())
    shipped.send()
    parts = Parts(str(target), shipped.record)
    parts.open(False)
    run(find_inputs(paths), parts, shipped, device="cpu")
    assert len(parts.done) == len(paths)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--image", type=Path, default=report.ROOT / "swsl" / "cli" / "chelsea.jpg", help="what is cropped"
    )
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 392), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--variant", default="swsl_resnext50_32x4d")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="an even number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--docs", type=Path, metavar="FILE", help="its tables between the markers are replaced"
    )
    arguments = parser.parse_args()
    cores, load = arguments.cores, os.getloadavg()[0]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        paths = make_photographs(arguments.image, folder / "photos", arguments.count, tuple(arguments.size))
        bytes_each = statistics.mean(os.path.getsize(path) for path in paths)
        model = folder / "model.pt"
        export_model(report.seeded(arguments.variant), model)
        targets = (folder / f"out{number}" for number in range(10**6))
        ways: dict[str, Callable[[list[str]], None]] = {
            "one machine": lambda chosen: single(model, chosen, cores, next(targets)),
            **dict.fromkeys(
                ("Ray, one node", "Ray, two nodes"), lambda chosen: on_ray(model, chosen, next(targets))
            ),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        starts: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(arguments.rounds):
            for way, work in ways.items():
                with nodes(1 + ("two" in way), cores) if "Ray" in way else contextlib.nullcontext():
                    if "Ray" in way:
                        work(paths[:64])  # workers are started once, as a long run starts them
                    start = seconds(lambda work=work: work(paths[:1]))
                    rate = (len(paths) - 1) / (seconds(lambda work=work: work(paths)) - start)
                rates[way].append(rate)
                starts[way].append(start)
                print(
                    f"round {number + 1}: {way}: {rate:.1f} images/s, {start:.1f} s to begin and end",
                    flush=True,
                )

        listing = seconds(lambda: find_inputs([str(folder / "photos")])) / len(paths)
        before = memory("VmRSS")
        names = (f"s3://bucket/photographs/{number:012}.jpg" for number in range(10**6))
        places = [Place(name, None, name.removeprefix("s3://")) for name in names]
        done = {
            place.name.removeprefix("s") for place in places
        }  # of the rows, which are read from the parts
        held = (memory("VmRSS") - before) / len(done)

    middle = {way: statistics.median(found) for way, found in rates.items()}
    begin = {way: statistics.median(found) for way, found in starts.items()}
    shares = {
        way: statistics.median(a / b for a, b in zip(found, rates["one machine"], strict=True))
        for way, found in rates.items()
    }
    added = {way: (1 / middle[way] - 1 / middle["one machine"]) * 1e3 * cores for way in middle}
    where = report.environment(cores, "torch", "pillow", "pyarrow", "ray")
    table = [
        "| | images/s | of one machine's | added to an image, core-ms | to begin and end, s |",
        "|---|---|---|---|---|",
        *(
            f"| {way} | {middle[way]:.1f} | {f'{shares[way]:.3f} | {added[way]:.2f}' if 'Ray' in way else ' | '} | {begin[way]:.1f} |"
            for way in middle
        ),
        "",
        f"{arguments.count} photographs of {arguments.size[0]}×{arguments.size[1]} ({bytes_each / 1e3:.0f} kB), {arguments.variant}, "
        f"float32, {cores} cores in all; medians of {arguments.rounds} rounds in which they take turns. Load average when it began: "
        f"{load:.1f}. {where}",
    ]
    a_core = middle["Ray, one node"] / cores
    model_rows = ["| | 1 node | 10 nodes | 100 nodes |", "|---|---|---|---|"]
    counts = (1, 10, 100)
    rate_of = [a_core * 64 * count for count in counts]
    cells = {
        "images/s": [f"{rate:,.0f}" for rate in rate_of],
        "100 million images, hours": [f"{1e8 / rate / 3600:,.1f}" for rate in rate_of],
        "bytes read, MB/s": [f"{rate * bytes_each / 1e6:,.0f}" for rate in rate_of],
        "parts written a minute": [f"{rate * 60 / 4096:,.1f}" for rate in rate_of],
        "tasks a second for the driver": [f"{rate / 512 + 2 * rate / 4096:,.1f}" for rate in rate_of],
        "to list 100 million, minutes": [f"{1e8 * listing / 60:,.0f}"] * 3,
        "the driver's memory for their names, GB": [f"{1e8 * held / 1e9:,.0f}"] * 3,
    }
    model_rows += [f"| {what} | {' | '.join(found)} |" for what, found in cells.items()]
    model_rows += [
        "",
        f"On paper, for nodes of 64 cores like those above: {a_core:.2f} images a second and core, {listing * 1e6:.0f} µs to list one "
        f"(of a local disk), {held:.0f} bytes of the driver for a name, tasks of 512 images, parts of 4,096.",
    ]
    print("\n".join([*table, "", *model_rows]))
    if arguments.docs:
        report.write_table(arguments.docs, "ray", "\n".join(table))
        report.write_table(arguments.docs, "ray-model", "\n".join(model_rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
