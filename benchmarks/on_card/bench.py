"""What cases compute on: the card, or the CPU with small networks in its place, so that what they do can be tried without one."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
SITE = "site"  # in the folder for work: what is built, for Python
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

Note = Callable[..., None]


def make_bench(device: str, work: Path) -> Bench:
    return Card(work) if device == "cuda" else StandIn(work)


class Bench:
    """A device, and models for it."""

    device: str
    dtype: str
    """The narrow one that networks are measured in."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.note: Note = lambda **_: None
        self._rates: dict[str, float] = {}

    def begin(self, note: Note) -> None:
        """A case that says its notes to ``note``, whatever becomes of it later."""
        self.note = note

    def differs(self, text: str) -> None:
        """Something is not as it should be, and the case goes on."""
        self.note(differs=text)

    def expect(self, condition: bool, text: str) -> None:
        if not condition:
            self.differs(text)

    # What the stand-in does otherwise.

    def batch(self, size: int) -> int:
        return size

    def count(self, number: int) -> int:
        return number

    def network(self, variant: str) -> torch.nn.Module:
        """With seeded weights, on the CPU."""
        raise NotImplementedError

    def export(self, model: torch.nn.Module, path: Path) -> None:
        raise NotImplementedError

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def sound(self) -> bool:
        return True

    @contextmanager
    def room(self, extra: int) -> Iterator[None]:
        """No more of the device's memory than is held already and ``extra`` bytes."""
        yield

    # The same on all.

    def model_file(self, variant: str) -> Path:
        """Frozen; made once for all processes."""
        path = self.work / f"{variant}.pt"
        if not path.exists():
            part = path.with_name(f"part-{os.getpid()}.pt")
            self.export(self.network(variant), part)
            part.replace(path)
        return path

    def runner(self, variant: str, dtype: str, batch_size: int) -> Any:
        from swsl.deploy.runner import Runner

        return Runner(self.model_file(variant), device=self.device, dtype=dtype, batch_size=batch_size)

    def images(self, count: int, height: int = 224, width: int = 224, seed: int = 0) -> torch.Tensor:
        """Normal numbers on the device, N×3×height×width, float32."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, height, width, generator=generator).to(self.device)

    def noise(self, height: int, width: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)

    def seconds(self, work: Callable[[], Any], budget: float = 0.3, least: int = 5) -> float:
        """The fastest of the calls that fit into the budget, the device's work included."""
        work()
        self.synchronize()
        best = math.inf
        runs, end = 0, time.perf_counter() + budget
        while runs < least or time.perf_counter() < end:
            start = time.perf_counter()
            work()
            self.synchronize()
            best = min(best, time.perf_counter() - start)
            runs += 1
        return best

    def rates(self) -> dict[str, float]:
        """Measured now, once in a process: bytes a second that a copy reads and writes, and operations a second of a product of
        matrices in the narrow dtype."""
        if not self._rates:
            kind = getattr(torch, self.dtype)
            size = self.count(1 << 28)
            source = torch.empty(size, dtype=torch.uint8, device=self.device)
            target = torch.empty_like(source)
            side = 8192 if size == 1 << 28 else 64
            a = torch.randn(side, side, device=self.device).to(kind)
            self._rates = {
                "bandwidth": 2 * size / self.seconds(lambda: target.copy_(source)),
                "matrix": 2 * side**3 / self.seconds(lambda: a @ a),
            }
        return self._rates


class Card(Bench):
    device, dtype = "cuda", "float16"

    def network(self, variant: str) -> torch.nn.Module:
        import report

        return report.seeded(variant)

    def export(self, model: torch.nn.Module, path: Path) -> None:
        from swsl.deploy.export import export_model

        export_model(model, path)  # type: ignore[arg-type]

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def sound(self) -> bool:
        try:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    @contextmanager
    def room(self, extra: int) -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + extra) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()


class StandIn(Bench):
    """The CPU, with a network of four blocks and a few images: what cases say on it means nothing, but that they run."""

    device, dtype = "cpu", "float32"

    def batch(self, size: int) -> int:
        return min(size, 3)

    def count(self, number: int) -> int:
        return min(number, 4)

    def network(self, variant: str) -> torch.nn.Module:
        import swsl

        torch.manual_seed(0)
        return swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=3).eval()

    def export(self, model: torch.nn.Module, path: Path) -> None:
        import swsl
        from swsl.deploy.export import export_model

        spec = swsl.PreprocessSpec(input_size=(64, 64))
        export_model(model, path, spec=spec, labels=["a", "b", "c"])  # type: ignore[arg-type]

    def runner(self, variant: str, dtype: str, batch_size: int) -> Any:
        return super().runner(variant, "float32", batch_size)

    def images(self, count: int, height: int = 224, width: int = 224, seed: int = 0) -> torch.Tensor:
        return super().images(count, min(height, 64), min(width, 64), seed)
