"""Where the time of a forward pass goes: of each layer the time of each way to compute it, beside what the card could do."""

from __future__ import annotations

from typing import Any

from .bench import Bench


def ways(bench: Bench, variant: str, batch: int) -> dict[str, Any]:
    """Each layer with its ways, bytes, operations and bound; then how much of the whole each kind takes beyond its bound."""
    import roofline

    size = bench.batch(batch)
    runner = bench.runner(variant, bench.dtype, size)
    images = bench.images(size)
    found = runner.profile(images)
    whole = bench.seconds(lambda: runner.forward(images))
    rates = bench.rates()
    layers = roofline.fused_layers(variant) if bench.device == "cuda" else [None] * len(found)
    if [layer.shape for layer in found] != [layer.shape for layer in layers if layer]:
        bench.expect(bench.device != "cuda", "the plan is another than benchmarks/roofline.py knows")
        layers = [None] * len(found)
    rows = []
    for timed, layer in zip(found, layers, strict=True):
        row: dict[str, Any] = {
            "shape": timed.shape,
            "chosen": timed.kernel,
            "seconds": timed.seconds,
            "operations": 2 * timed.multiply_adds,
            "ways": {way.kernel: way.trouble or way.seconds for way in timed.ways},
        }
        if layer is not None:
            moved = layer.bytes(size)
            bound = max(moved / rates["bandwidth"], row["operations"] / rates["matrix"])
            row |= {
                "kind": layer.kind,
                "stage": layer.stage,
                "bytes": moved,
                "bound": bound,
                "share": bound / timed.seconds,
            }
        rows.append(row)
    kinds: dict[str, list[float]] = {}
    for row in rows:
        total = kinds.setdefault(
            f"{row.get('stage', '')} {row.get('kind', row['chosen'])}".strip(), [0.0, 0.0]
        )
        total[0] += row["seconds"]
        total[1] += row.get("bound", 0.0)
    return {
        "whole": whole,
        "sum": sum(row["seconds"] for row in rows),
        "kinds": kinds,
        "layers": rows,
        "reason": runner.info.reason,
    }
