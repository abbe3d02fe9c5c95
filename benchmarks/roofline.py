"""What a GPU can do at best with these networks: bytes and operations of the fused layers, of other plans too, and the time that they
bound, on paper.

    python benchmarks/roofline.py --page docs/gpu.md

A layer reads its input, its weights and what it adds, and writes its output, each once. The layers are those that the engine runs
(cpp/src/engine/plan/fuse.cpp): a convolution with its bias, addition and ReLU, or a pool.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import report

from swsl.variants import VARIANTS

# NVIDIA H100 SXM: https://www.nvidia.com/en-us/data-center/h100/ (the half of what it gives for sparse matrices).
BANDWIDTH, OPERATIONS = 3.35e12, 990e12
GAP = 1.0e-6  # seconds between two kernels of a graph that depend on each other, about; benchmarks/card.py measures it
SHARED = 227 << 10  # bytes of shared memory that a block can have
ELEMENT = 2  # bytes, of float16
BATCHES = (1, 32, 256)


class Layer(NamedTuple):
    """A fused layer of one image of 224×224."""

    stage: str
    kind: str
    channels: int
    size: int
    """Pixels along a side, of the input."""
    out_channels: int
    out_size: int
    kernel: int
    groups: int
    added: bool
    """Whether the block's input, or what a convolution makes of it, is added."""

    @property
    def shape(self) -> str:
        """As `Runner.profile` writes it."""
        sides = ((self.channels, self.size), (self.out_channels, self.out_size))
        return " → ".join(f"{channels}×{size}×{size}" for channels, size in sides)

    @property
    def weights(self) -> int:
        if "pool" in self.kind:
            return 0
        return self.out_channels * self.channels // self.groups * self.kernel**2

    def values(self) -> int:
        """Read and written of activations, of one image."""
        out = self.out_channels * self.out_size**2
        return self.channels * self.size**2 + out * (2 if self.added else 1)

    def bytes(self, images: int) -> int:
        return ELEMENT * (images * self.values() + self.weights)

    def operations(self, images: int) -> int:
        """Multiplications and additions."""
        return 2 * images * self.weights * self.out_size**2


def fused_layers(variant: str) -> list[Layer]:
    """In the order in which the engine computes them."""
    shape = VARIANTS[variant]
    layers = [
        Layer("stem", "7×7", 3, 224, 64, 112, 7, 1, False),
        Layer("stem", "max pool", 64, 112, 64, 56, 3, 1, False),
    ]
    channels, size = 64, 56
    for index, blocks in enumerate(shape.layers):
        stage, out = f"stage {index + 1}", 256 << index
        width = (64 << index) * shape.width_per_group // 64 * shape.groups
        for block in range(blocks):
            stride = 2 if block == 0 and index > 0 else 1
            after = size // stride
            if block == 0:
                layers.append(Layer(stage, "1×1 beside", channels, size, out, after, 1, 1, False))
            layers += [
                Layer(stage, "1×1 before", channels, size, width, size, 1, 1, False),
                Layer(stage, "3×3", width, size, width, after, 3, shape.groups, False),
                Layer(stage, "1×1 behind", width, after, out, after, 1, 1, True),
            ]
            channels, size = out, after
    layers.append(Layer("head", "average pool", channels, size, channels, 1, size, 1, False))
    layers.append(Layer("head", "classifier", channels, 1, 1000, 1, 1, 1, False))
    return layers


def seconds(moved: float, operations: float, kernels: int) -> float:
    """That no plan of so many kernels beats, if bytes come from and go to the GPU's memory."""
    return max(moved / BANDWIDTH, operations / OPERATIONS) + kernels * GAP


class Plan(NamedTuple):
    """A part of a network in some plan."""

    moved: float
    operations: float
    seconds: float
    kernels: int


def of_layers(layers: Sequence[Layer], images: int) -> Plan:
    """Each layer a kernel."""
    moved = sum(layer.bytes(images) for layer in layers)
    operations = sum(layer.operations(images) for layer in layers)
    bound = sum(seconds(layer.bytes(images), layer.operations(images), 1) for layer in layers)
    return Plan(moved, operations, bound, len(layers))


def blocks(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """A stage's layers, block by block."""
    block: list[Layer] = []
    for layer in layers:
        block.append(layer)
        if layer.added:
            yield block
            block = []


def tile_of(block: Sequence[Layer]) -> int:
    """The side of the largest square of outputs whose inner activations, with the pixels around them, fit in shared memory beside
    32 KB of weights; 0 where none does."""
    inner = next(layer for layer in block if layer.kind == "3×3")
    stride = inner.size // inner.out_size
    best = 0
    for side in range(1, inner.out_size + 1):
        around = (side - 1) * stride + 3
        needed = ELEMENT * inner.channels * (around**2 + side**2) + (32 << 10)
        if needed <= SHARED:
            best = side
    return best


def of_fused_blocks(layers: Sequence[Layer], images: int) -> Plan | None:
    """Each block a kernel: the inner activations stay in shared memory, and the pixels around a tile are computed twice. The shortcut's
    convolution is part of it. None where no tile of at least 4×4 fits."""
    moved = operations = bound = 0.0
    kernels = 0
    for block in blocks(layers):
        tile = tile_of(block)
        if tile < 4:
            return None
        before, inner, behind = block[-3:]
        tiles = -(-inner.out_size // tile)
        stride = inner.size // inner.out_size
        computed = min(inner.size, (tile - 1) * stride + 3) * tiles
        again = (computed / inner.size) ** 2
        read = images * before.channels * (before.size**2) * again
        written = images * behind.out_channels * behind.out_size**2
        part = ELEMENT * (read + written + sum(layer.weights for layer in block))
        work = sum(layer.operations(images) for layer in block) + before.operations(images) * (again - 1)
        moved, operations, kernels = moved + part, operations + work, kernels + 1
        bound += seconds(part, work, 1)
    return Plan(moved, operations, bound, kernels)


def stages(variant: str) -> dict[str, list[Layer]]:
    found: dict[str, list[Layer]] = {}
    for layer in fused_layers(variant):
        found.setdefault(layer.stage, []).append(layer)
    return found


def table() -> str:
    """One row for each network and stage, in Markdown."""
    heads = [f"batch {images} | as fused blocks" for images in BATCHES]
    lines = [
        f"| network | part | kernels | GFLOP an image | {' | '.join(heads)} |",
        "|---|---|---|---" + "|---" * (2 * len(BATCHES)) + "|",
    ]
    for variant in VARIANTS:
        parts = stages(variant)
        rows = []
        totals = [[Plan(0, 0, 0, 0)] * 2 for _ in BATCHES]
        for stage, layers in parts.items():
            cells = []
            for index, images in enumerate(BATCHES):
                now = of_layers(layers, images)
                fused = of_fused_blocks(layers, images) if stage.startswith("stage") else None
                best = fused if fused and fused.seconds < now.seconds else now
                totals[index] = [
                    _sum(total, plan) for total, plan in zip(totals[index], (now, best), strict=True)
                ]
                cells += [_cell(now), _cell(fused) if fused else "–"]
            operations = sum(layer.operations(1) for layer in layers) / 1e9
            rows.append(f"| | {stage} | {len(layers)} | {operations:.2f} | {' | '.join(cells)} |")
        whole = [f"**{_cell(plan)}**" for total in totals for plan in total]
        count, operations = (
            sum(map(len, parts.values())),
            sum(layer.operations(1) for layer in fused_layers(variant)) / 1e9,
        )
        lines += [
            f"| {variant.removeprefix('swsl_resnext')} | all | {count} | {operations:.2f} | {' | '.join(whole)} |",
            *rows,
        ]
    return "\n".join(lines)


def _sum(a: Plan, b: Plan) -> Plan:
    return Plan(a.moved + b.moved, a.operations + b.operations, a.seconds + b.seconds, a.kernels + b.kernels)


def _cell(plan: Plan) -> str:
    """Megabytes and microseconds."""
    return f"{_digits(plan.moved / 1e6)} MB, {_digits(plan.seconds * 1e6)} µs"


def _digits(number: float) -> str:
    """Three of them that count."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


class Published(NamedTuple):
    """What somebody else has measured of a whole forward pass in 16-bit numbers."""

    card: str
    bandwidth: float
    """Bytes a second, by the vendor."""
    network: str
    images_a_second: float
    batch: int
    what: str
    source: str


_TIMM = "https://github.com/huggingface/pytorch-image-models/blob/main/results/benchmark-infer-amp-"
PUBLISHED = (
    Published(
        "RTX 5090", 1.792e12, "50_32x4d", 10198.85, 1024, "torch.compile of 2.9.1, amp", _TIMM + "nchw-pt291-cu130-5090-dynamo.csv"
    ),
    Published(
        "RTX 4090", 1.008e12, "50_32x4d", 4219.51, 512, "eager torch 2.4, amp, channels-last", _TIMM + "nhwc-pt240-cu124-rtx4090.csv"
    ),
    Published(
        "RTX 4090", 1.008e12, "101_32x4d", 2746.89, 512, "eager torch 2.4, amp, channels-last", _TIMM + "nhwc-pt240-cu124-rtx4090.csv"
    ),
    Published(
        "V100 16 GB", 0.9e12, "101_32x4d", 1079.10, 128, "eager torch of 2020, amp, channels-last, with the loading of images",
        "https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Classification/ConvNets/resnext101-32x4d/README.md",
    ),
)  # fmt: skip


def published() -> str:
    """Beside the bytes that fused layers move, in Markdown."""
    lines = [
        "| card | network | measured by others | images a second | of its bandwidth, if layers moved no more than above |",
        "|---|---|---|---|---|",
    ]
    for row in PUBLISHED:
        moved = of_layers(fused_layers(f"swsl_resnext{row.network}"), row.batch).moved / row.batch
        share = row.images_a_second * moved / row.bandwidth
        measured = f"[{row.what}, batch {row.batch}]({row.source})"
        lines.append(
            f"| {row.card} | {row.network} | {measured} | {row.images_a_second:,.0f} | {share:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="its table between the markers is replaced")
    arguments = parser.parse_args()
    text = f"{table()}\n\n{published()}"
    print(text)
    if arguments.page:
        report.write_table(arguments.page, "roofline", text)


if __name__ == "__main__":
    main()
