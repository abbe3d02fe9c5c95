"""A whole forward pass beside one of the alternatives."""

from __future__ import annotations

from typing import Any

from .bench import Bench


def beside(bench: Bench, variant: str, batch: int, peer: str) -> dict[str, Any]:
    """As benchmarks/gpu.py times them; what is not installed says so."""
    if bench.device != "cuda":
        runner, images = (
            bench.runner(variant, bench.dtype, bench.batch(batch)),
            bench.images(bench.batch(batch)),
        )
        model = bench.network(variant)
        return {
            "seconds": {
                "swsl": bench.seconds(lambda: runner.forward(images)),
                peer: bench.seconds(lambda: model(images)),
            }
        }
    import gpu

    row = gpu.forward(variant, bench.model_file(variant), bench.dtype, batch, [peer], 0.5)
    bench.expect(row["error"] <= 1e-2, f"logits off by {row['error']:.3g}")
    for name, why in row["skipped"].items():
        bench.note(skipped=f"{name}: {why}")
    if "swsl" not in row["seconds"]:
        raise RuntimeError(row["skipped"]["swsl"])
    return row
