"""What an hour with a card is worth most for, in one command: it builds, checks, measures, and prints a page of what to do next.

    python benchmarks/card.py --minutes 9 --results card.json                # goes as far as the time allows
    python benchmarks/card.py --minutes 9 --results card.json --resume       # goes on with what is missing
    python benchmarks/card.py --results card.json --only "engine: graphs"    # one case
    python benchmarks/card.py --results card.json --page                     # the page once more

On a bare machine: torch with CUDA, nvcc, CMake, ninja, pybind11, Pillow 13, numpy, pytest; what else is installed (torch-tensorrt,
nvidia-nvjpeg) is used. Each case ends in its time or is killed with all it started; none stops the next; each result is in
the file as soon as it is there. Objects that lie in build/card are used.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from on_card import child
from on_card.cases import Case, all_cases
from on_card.page import page
from on_card.run import Runner, read, to_do

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "card"


def driver() -> str:
    """The last lines of the kernel's log that a card's driver wrote."""
    if shutil.which("dmesg") is None:
        return ""
    done = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace")
    return "\n".join([line for line in done.stdout.splitlines() if "Xid" in line or "NVRM" in line][-5:])


def chosen(cases: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """Those named, and those that they need."""
    unknown = set(only) - {case.key for case in cases}
    if unknown:
        raise SystemExit(
            f"--only: no case “{unknown.pop()}”; there are {', '.join(case.key for case in cases)}"
        )
    needed = {case.needs for case in cases if case.key in only}
    return [case for case in cases if case.key in only or case.key in needed]


def main(
    arguments: Sequence[str] | None = None,
    *,
    cases: Sequence[Case] | None = None,
    command: Sequence[str] = (),
) -> int:
    """Returns 1 where something is broken. ``cases`` and ``command``, which starts a child but for its last arguments: a test's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=Path("card.json"), metavar="FILE", help="where results go (card.json)"
    )
    parser.add_argument("--minutes", type=float, default=9, help="after which it has ended (9)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with what FILE lacks, then what has failed"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="these alone")
    parser.add_argument("--page", action="store_true", help="print what FILE has, and do nothing")
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a rehearsal with small networks"
    )
    options = parser.parse_args(arguments)
    cases = all_cases() if cases is None else cases
    path: Path = options.results.resolve()
    if options.page:
        print(page(cases, read(path)))
        return 0
    if path.exists() and not (options.resume or options.only):
        parser.error(f"{path} is there: --resume goes on with it")
    WORK.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    again = shlex.join(
        ["python", "benchmarks/card.py", "--device", options.device, "--results", path.name, "--only"]
    )
    site = os.pathsep.join([str(WORK / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    runner = Runner(
        command or [sys.executable, str(Path(__file__).resolve()), "--child", options.device, str(WORK)],
        path,
        WORK,
        again=again,
        driver=driver,
        environment=os.environ | {"PYTHONPATH": site, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
    )
    wanted = chosen(cases, options.only) if options.only else to_do(cases, runner.results)
    results = runner.run(wanted, 60 * options.minutes)
    print(page(cases, results))
    return int(
        any(
            results["cases"].get(case.key, {}).get("status") not in ("done", "not run", None)
            for case in cases
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        raise SystemExit(child.main(sys.argv[2:]))
    raise SystemExit(main())
