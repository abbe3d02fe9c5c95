"""The cases, in the order of what an hour with a card is worth most for.

Nothing here imports torch: the process that watches over the others, which may crash or hang, stays light.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

PACKAGE = "build: package"
SMALL, LARGE = "swsl_resnext50_32x4d", "swsl_resnext101_32x8d"
BATCHES = (256, 1, 32)


@dataclass(frozen=True)
class Case:
    """One thing to find out, in a process that others do not share if it fails."""

    stage: str
    name: str
    function: str
    """``module.function`` of this package, called with a `Bench` and ``arguments``."""
    usual: float
    """Seconds that it is expected to take on an H100: with less time left it is put off."""
    limit: float
    """Seconds after which it is killed."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: str = PACKAGE
    """The case without which this one cannot be done, or ""."""
    every_call: bool = False
    """A machine starts bare: what an earlier call made is not there."""

    @property
    def key(self) -> str:
        return f"{self.stage}: {self.name}"


def all_cases() -> list[Case]:
    """Those that say whether anything works come first, then where the time goes, then the rest."""
    return list(_all())


def _all() -> Iterator[Case]:
    yield Case("environment", "machine", "environment.machine", 15, 60, needs="", every_call=True)
    yield Case("environment", "rates", "environment.rates", 10, 60, needs="")
    yield Case("build", "package", "build.package", 110, 400, needs="", every_call=True)
    for name in ("test_cuda_kernels_gpu", "test_packed_resample_gpu"):
        yield Case("kernels", name, "build.kernel_test", 15, 90, {"name": name})
    yield _logits("float16")
    yield Case("engine", "odd shapes", "engine.odd_shapes", 20, 90)
    yield Case("preprocessing", "1,000 odd images", "preprocessing.equality", 20, 120, {"count": 1000})
    yield Case("preprocessing", "rate", "preprocessing.rate", 15, 90)
    yield from _layers(SMALL, 12)
    yield from _networks(SMALL, "eager", 10)
    yield Case("engine", "graphs", "engine.graphs", 10, 60)
    yield Case("engine", "two lanes", "engine.lanes", 15, 60)
    yield Case("engine", "out of memory", "engine.memory", 20, 90)
    yield Case("engine", "more than 2³¹ values", "engine.large", 45, 200)
    yield from map(_logits, ("bfloat16", "float32", "tf32"))
    yield from _layers(LARGE, 20)
    yield from _networks(LARGE, "eager", 15)
    yield Case("kernels", "compute-sanitizer", "build.sanitizer", 30, 120)
    yield from _networks(SMALL, "TensorRT", 40)
    for file in ("test_cuda", "test_nvjpeg"):
        yield Case("tests", file, "build.test_file", 90, 300, {"file": f"tests/deploy/{file}.py"})
    yield from _networks(SMALL, "compile", 60)
    yield from _networks(LARGE, "TensorRT", 60)
    yield from _networks(LARGE, "compile", 90)


def _short(variant: str) -> str:
    return variant.removeprefix("swsl_resnext")


def _logits(dtype: str) -> Case:
    return Case("engine", f"logits in {dtype}", "engine.logits", 20, 120, {"dtype": dtype})


def _layers(variant: str, usual: float) -> Iterator[Case]:
    for batch in BATCHES:
        name = f"{_short(variant)}, batch of {batch}"
        arguments = {"variant": variant, "batch": batch}
        yield Case("layers", name, "layers.ways", usual, 90, arguments)


def _networks(variant: str, peer: str, usual: float) -> Iterator[Case]:
    for batch in BATCHES:
        name = f"{_short(variant)}, batch of {batch}, beside {peer}"
        arguments = {"variant": variant, "batch": batch, "peer": peer}
        yield Case("networks", name, "networks.beside", usual, 3 * usual + 60, arguments)
