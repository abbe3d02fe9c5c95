"""Does the cases within a time, whatever becomes of the processes that do them."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cases import Case

TAIL = 6000  # characters of a failed case's output that are kept
SOUND = ("done",)
Results = dict[str, Any]


def write(results: Results, path: Path) -> None:
    """Atomically: the machine may go at any moment."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(part, path)


def read(path: Path) -> Results:
    if not path.exists():
        return {"calls": 0, "cases": {}}
    results: Results = json.loads(path.read_text("utf-8"))
    return results


def to_do(cases: Sequence[Case], results: Results) -> list[Case]:
    """What is missing, in its order; then what failed before, for something may have been mended."""
    found = results["cases"]

    def rank(case: Case) -> int | None:
        status = found.get(case.key, {}).get("status", "not run")
        if case.every_call or status == "not run":
            return 0
        return None if status in SOUND else 1

    return [case for wanted in (0, 1) for case in cases if rank(case) == wanted]


class Child:
    """A process for cases, with whatever it starts in a group of its own."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.reading, writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.log = log
        self.mark = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                start_new_session=True,
                env=environment,
            )
        os.close(writing)
        self._buffer = b""

    def ask(self, case: Case) -> None:
        self.mark = self.log.stat().st_size
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{case.key}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:  # it has ended since: `messages` will find that out
            pass

    def next(self, deadline: float) -> dict[str, Any] | None:
        """Its next message, or None where it has ended. Raises TimeoutError."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.reading, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TimeoutError
                part = os.read(self.reading, 1 << 16)
                if not part:
                    return None
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def output(self) -> str:
        """The end of what it and its programs have printed since it was asked."""
        with self.log.open("rb") as file:
            file.seek(self.mark)
            return file.read().decode("utf-8", "replace")[-TAIL:]

    def end(self) -> int:
        """Its exit status, negative for a signal. What it started ends too."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.reading)
        return status

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end()


class Runner:
    """Cases, one after the other, each in a process of its stage; the next one gets another where one failed."""

    def __init__(
        self,
        command: Sequence[str],
        path: Path,
        work: Path,
        *,
        again: str,
        driver: Callable[[], str],
        environment: dict[str, str],
    ) -> None:
        """
        Args:
            command: what starts a child, but for the number of its pipe.
            path: of the results.
            work: a folder for logs and whatever cases make.
            again: the command line that does a case alone, but for its key.
            driver: what the system's log says of the card.
            environment: of the children.
        """
        self.command, self.path, self.work = command, path, work
        self.again, self.driver, self.environment = again, driver, environment
        self.results = read(path)
        self.child: Child | None = None
        self.stage = ""

    def run(self, cases: Sequence[Case], seconds: float) -> Results:
        """Until all are done or the time is up."""
        deadline = time.monotonic() + seconds
        self.results["calls"] += 1
        here: set[str] = set()  # done in this call: what an earlier one built is gone
        try:
            for case in cases:
                left = deadline - time.monotonic()
                if case.needs and case.needs not in here:
                    self._put_off(case, f"it needs “{case.needs}”")
                elif left < case.usual:
                    self._put_off(case, f"{left:.0f} s were left, and it takes {case.usual:.0f}")
                elif self._do(case, deadline):
                    here.add(case.key)
        finally:
            if self.child is not None:
                self.child.kill()
        return self.results

    def _put_off(self, case: Case, why: str) -> None:
        """Keeps what an earlier call has found out."""
        if self.results["cases"].get(case.key, {}).get("status", "not run") == "not run":
            self._record(case, {"status": "not run", "why": why})

    def _record(self, case: Case, row: Results) -> None:
        self.results["cases"][case.key] = row
        if case.key == "environment: machine" and row["status"] == "done":
            self.results["machine"] = row["result"]
        write(self.results, self.path)

    def _do(self, case: Case, deadline: float) -> bool:
        self._record(case, {"status": "running", "notes": []})
        row = self._try(case, min(case.limit, deadline - time.monotonic()), {})
        row["call"] = self.results["calls"]
        row["card"] = self.results.get("machine", {}).get("card", "")
        self._record(case, row)
        if row["status"] in SOUND:
            return True
        self._end()
        row["again"] = f"{self.again} {json.dumps(case.key, ensure_ascii=False)}"
        row["driver"] = self.driver()
        self._record(case, row)
        text = row.get("error", "") + row["log"]
        left = deadline - time.monotonic()
        if left > 2 * case.usual + 15 and (row["status"] != "failed" or "CUDA" in text):
            alone = self._try(case, min(case.limit, 2 * case.usual + 15), {"CUDA_LAUNCH_BLOCKING": "1"})
            self._end()
            row["alone"] = {
                key: alone[key] for key in ("status", "message", "error", "log", "notes") if key in alone
            }
            self._record(case, row)
        return False

    def _try(self, case: Case, limit: float, extra: dict[str, str]) -> Results:
        if self.child is not None and (self.stage != case.stage or self.child.process.poll() is not None):
            self._end()
        start = time.monotonic()
        if self.child is None:
            log = self.work / f"{case.stage}.log"
            self.child = Child(self.command, log, self.environment | extra)
            self.stage = case.stage
        child = self.child
        child.ask(case)
        row: Results = {"status": "running", "notes": []}
        try:
            while (message := child.next(start + limit)) is not None:
                if "note" in message:
                    row["notes"].append(message["note"])
                    if not extra:
                        self._record(case, row)
                    continue
                row |= message["end"]
                if not row.pop("sound"):
                    row.setdefault("message", "the device can no longer be used afterwards")
                row["status"] = "failed" if "message" in row else "done"
                break
            else:
                output = child.output()
                status = self._end()
                what = signal.Signals(-status).name if status < 0 else f"exit status {status}"
                row |= {"status": "crashed", "message": f"its process ended with {what}", "log": output}
        except TimeoutError:
            row |= {"status": "hung", "message": f"not done after {limit:.0f} s", "log": child.output()}
            child.kill()
            self.child = None
        row.setdefault("seconds", time.monotonic() - start)
        if row["status"] == "failed":
            row["log"] = child.output()
        return row

    def _end(self) -> int:
        child, self.child = self.child, None
        return child.end() if child else 0
