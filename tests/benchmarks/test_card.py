"""benchmarks/card.py without a card: fake children fail in every way, and the others' results are there all the same."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import card
from on_card.cases import PACKAGE, Case, all_cases
from on_card.page import page
from on_card.run import read

FAKE = Path(__file__).with_name("fake_card.py")
WAYS = {  # how a case fails, and what is said of it
    "raises": "failed",
    "exits": "failed",
    "ends quietly": "crashed",
    "crashes": "crashed",
    "hangs": "hung",
    "loses the device": "failed",
    "waits for another": "hung",
}
HANGING = [way for way, status in WAYS.items() if status == "hung"]
KEYS = [case.key for case in all_cases()]
ONE_OF_EACH_STAGE = list({case.stage: case.key for case in reversed(all_cases())}.values())

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """Runs card.py with cases that fail in the ways given; returns the results, with the page and the exit status."""
    monkeypatch.setattr(card, "WORK", tmp_path)
    monkeypatch.setattr(card, "driver", lambda: "NVRM: Xid 31")
    monkeypatch.setenv("FAKE_CARD_WORK", str(tmp_path))

    def run(
        ways: dict[str, str], *arguments: str, cases: list[Case] | None = None, patience: float = 3
    ) -> dict[str, Any]:
        monkeypatch.setenv("FAKE_CARD", json.dumps(ways))
        if cases is None:  # only what hangs need not be waited for
            cases = [
                dataclasses.replace(case, usual=0, limit=patience if ways.get(case.key) in HANGING else 100)
                for case in all_cases()
            ]
        path = tmp_path / "card.json"
        status = card.main(
            ["--results", str(path), *arguments], cases=cases, command=[sys.executable, "-S", str(FAKE)]
        )
        assert not list(tmp_path.glob("*.part"))
        return {**read(path), "page": capsys.readouterr().out, "status": status}

    return run


def is_running(process: int) -> bool:
    """Not one that has ended, and whose new parent has not asked yet how."""
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def statuses(found: dict[str, Any]) -> dict[str, str]:
    return {key: row["status"] for key, row in found["cases"].items()}


def asked(folder: Path) -> list[list[str]]:
    """Process, whether launches were waited for, and case, in their order."""
    return [line.split(" ", 2) for line in (folder / "asked.txt").read_text("utf-8").splitlines()]


def check(found: dict[str, Any], key: str, way: str) -> None:
    """One case has failed in this way, and all else is there."""
    row = found["cases"][key]
    assert row["status"] == WAYS[way], row
    assert row["message"]
    assert "about to fail" in row["log"]
    assert row["notes"] == [{"differs": "seen before it failed"}]
    assert row["driver"] == "NVRM: Xid 31"
    assert row["again"].endswith(f'--only "{key}"')
    if way not in ("exits", "loses the device"):  # whose messages do not speak of CUDA
        assert row["alone"]["status"] == WAYS[way]
    expected = dict.fromkeys(KEYS, "done") | {key: row["status"]}
    if key == PACKAGE:
        expected |= {case.key: "not run" for case in all_cases() if case.needs}
    assert statuses(found) == expected
    assert found["status"] == 1
    assert f"1. **{key}** {row['status']}" in found["page"]


def test_all_is_well(run: Run, tmp_path: Path) -> None:
    found = run({})
    assert statuses(found) == dict.fromkeys(KEYS, "done")
    assert found["status"] == 0
    assert [key for _, _, key in asked(tmp_path)] == KEYS
    assert len({process for process, _, _ in asked(tmp_path)}) < len(KEYS)  # a stage's cases share one
    text = found["page"]
    assert text.startswith("# Fake 100, driver 1.2, torch 0\n")
    assert f"{len(KEYS)} as they should be, 0 differ, 0 broken, 0 not run" in text
    assert (
        "50_32x4d, batch of 256**: 3 ms, the layers 2 ms, between them 1 ms; stage 1, 1×1 1 ms (bound 0.5 ms)"
        in text
    )
    assert "1 × cuDNN fused: no such kernel" in text
    assert "100000 images a second in the kernels, 50% of the bandwidth" in text
    assert "2.00 × the speed of one after the other" in text
    assert "50_32x4d, batch of 1, beside eager: 2 ms; eager 3 ms, 1.50 × ours" in text


def test_the_others_go_on_after_failures(run: Run) -> None:
    """One of the ways in each of three stages; all of them are the slow test's."""
    ways = {
        "engine: graphs": "crashes",
        "layers: 50_32x4d, batch of 1": "raises, once",
        "kernels: compute-sanitizer": "differs",
    }
    found = run(ways)
    assert statuses(found) == dict.fromkeys(KEYS, "done") | {
        "engine: graphs": "crashed", "layers: 50_32x4d, batch of 1": "failed"
    }  # fmt: skip
    assert found["cases"]["engine: graphs"]["message"] == "its process ended with SIGKILL"
    failed = found["cases"]["layers: 50_32x4d, batch of 1"]
    assert failed["message"].endswith("\nwith a second line")
    assert failed["alone"] == {"status": "done", "notes": []}
    assert 'File "' in failed["error"]
    text = found["page"]
    assert "1. **layers: 50_32x4d, batch of 1** failed" in text  # its page's order is the cases'
    assert "2. **engine: graphs** crashed" in text
    assert text.index("## Broken") < text.index("## Differs") < text.index("## Where the time goes")
    assert "- **kernels: compute-sanitizer**: off by 1" in text
    assert "alone, each launch waited for: done: as it should be" in text


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", ONE_OF_EACH_STAGE)
def test_every_failure_of_every_stage(run: Run, tmp_path: Path, key: str, way: str) -> None:
    check(run({key: way}), key, way)
    if way == "waits for another":  # what it had started ends too
        process = int((tmp_path / "sleeper").read_text())
        end = time.monotonic() + 60
        while is_running(process):
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_everything_fails_alike(run: Run, way: str) -> None:
    found = run({key: way for key in KEYS if key != PACKAGE}, patience=0.3)
    assert statuses(found) == dict.fromkeys(KEYS, WAYS[way]) | {PACKAGE: "done"}


def test_what_is_missing_is_done_by_a_second_call(run: Run, tmp_path: Path) -> None:
    cases = [
        dataclasses.replace(case, usual=1e6 if case.stage in ("layers", "tests") else 0)
        for case in all_cases()
    ]
    found = run({"engine: graphs": "raises"}, cases=cases)
    late = [case.key for case in cases if case.usual]
    assert {key for key, status in statuses(found).items() if status == "not run"} == set(late)
    assert f"the time was up: {late[0]}" in found["page"]
    (tmp_path / "asked.txt").unlink()
    found = run({}, "--resume")
    assert statuses(found) == dict.fromkeys(KEYS, "done")
    again = [case.key for case in cases if case.every_call or case.usual] + ["engine: graphs"]
    assert [key for _, _, key in asked(tmp_path)] == again
    assert found["cases"][late[0]]["call"] == 2


def test_one_case_by_its_name_and_the_page_alone(run: Run, tmp_path: Path) -> None:
    found = run({"engine: graphs": "crashes"}, "--only", "engine: graphs")
    assert statuses(found) == {PACKAGE: "done", "engine: graphs": "crashed"}
    processes = [(blocking, key) for _, blocking, key in asked(tmp_path)]
    assert processes == [("0", PACKAGE), ("0", "engine: graphs"), ("1", "engine: graphs")]
    assert run({}, "--page")["page"] == found["page"]
    with pytest.raises(SystemExit, match="no case “engine: x”; there are environment: machine"):
        run({}, "--only", "engine: x")
    with pytest.raises(SystemExit):
        run({})  # or these results would be lost


def test_a_program_that_was_ended_itself_leaves_what_it_knew() -> None:
    rows = {
        "environment: machine": {"status": "done", "card": "A"},
        "environment: rates": {"status": "done", "card": "B"},
        "engine: graphs": {"status": "running", "notes": []},
    }
    text = page(all_cases(), {"cases": rows})
    assert "TIMES OF SEVERAL CARDS: A, B" in text
    assert "1. **engine: graphs** running: this program was ended while it ran" in text


def test_functions_of_all_cases_are_there() -> None:
    """Without importing them, which takes seconds."""
    for case in all_cases():
        module, _, name = case.function.partition(".")
        assert f"\ndef {name}(bench: Bench" in (ROOT / "benchmarks" / "on_card" / f"{module}.py").read_text(
            "utf-8"
        ), case
    assert len(set(KEYS)) == len(KEYS)


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The very functions, with small networks."""
    monkeypatch.setattr(card, "WORK", tmp_path / "work")
    path = tmp_path / "card.json"
    status = card.main(["--device", "cpu", "--results", str(path)])
    broken = {
        key: row for key, row in read(path)["cases"].items() if row["status"] not in ("done", "not run")
    }
    assert not broken, broken
    assert status == 0
