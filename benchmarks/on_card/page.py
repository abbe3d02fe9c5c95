"""The page at the end: what works, what differs and where the time goes, in the order in which somebody should act."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .cases import Case

Row = dict[str, Any]
BROKEN = ("crashed", "hung", "failed", "running")
MOST = 12  # lines of a list


def page(cases: Sequence[Case], results: dict[str, Any]) -> str:
    rows = {
        case.key: results["cases"].get(case.key, {"status": "not run", "why": "not begun"}) for case in cases
    }
    broken = {key: row for key, row in rows.items() if row["status"] in BROKEN}
    differing = {key: row for key, row in rows.items() if key not in broken and list(_differences(row))}
    fine = [key for key, row in rows.items() if row["status"] == "done" and key not in differing]
    missing = {key: row for key, row in rows.items() if row["status"] == "not run"}
    lines = [f"# {_card(results)}"]
    lines += [
        f"{len(fine)} as they should be, {len(differing)} differ, {len(broken)} broken, {len(missing)} not run.",
        "",
    ]
    for title, part in (
        ("Broken: mend these first", _broken(broken)),
        ("Differs", _differing(differing)),
        ("Where the time goes", _times(rows)),
        ("Beside others", _peers(rows)),
        ("As it should be", _list(fine)),
        ("Not run", _missing(missing)),
    ):
        found = list(part)
        if found:
            lines += [f"## {title}", *found, ""]
    return "\n".join(lines)


def _card(results: dict[str, Any]) -> str:
    machine = results.get("machine", {})
    cards = sorted({row["card"] for row in results["cases"].values() if row.get("card")})
    text = f"{machine.get('card', 'unknown card')}, driver {machine.get('driver_version', 'unknown')}, {machine.get('packages', '')}"
    return text + (f"; TIMES OF SEVERAL CARDS: {', '.join(cards)}" if len(cards) > 1 else "")


def _differences(row: Row) -> Iterator[str]:
    for note in row.get("notes", ()):
        if "differs" in note:
            yield note["differs"]


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else ""


def _broken(rows: dict[str, Row]) -> Iterator[str]:
    for number, (key, row) in enumerate(rows.items(), 1):
        yield f"{number}. **{key}** {row['status']}: {_first_line(row.get('message', 'this program was ended while it ran'))}"
        if row.get("driver"):
            yield f"   - the driver: {_first_line(row['driver'])}"
        if "alone" in row:
            alone = row["alone"]
            said = _first_line(alone.get("message", "")) or "as it should be"
            yield f"   - alone, each launch waited for: {alone['status']}: {said}"
        for text in _differences(row):
            yield f"   - before that: {_first_line(text)}"
        for note in row.get("notes", ()):
            if "failed" in note:
                yield f"   - {note['failed']}"
        if "again" in row:
            yield f"   - again: `{row['again']}`"


def _differing(rows: dict[str, Row]) -> Iterator[str]:
    for key, row in rows.items():
        texts = list(dict.fromkeys(_differences(row)))
        yield f"- **{key}**: {_first_line(texts[0])}"
        yield from (f"  - {_first_line(text)}" for text in texts[1:4])
        if len(texts) > 4:
            yield f"  - and {len(texts) - 4} more"


def _times(rows: dict[str, Row]) -> Iterator[str]:
    """Of each plan the kinds of layers by what they take beyond their bound, and layers whose way was the best of few."""
    for key, row in rows.items():
        if not key.startswith("layers: ") or row["status"] != "done" or "kinds" not in row.get("result", {}):
            continue
        result = row["result"]
        gap = result["whole"] - result["sum"]
        kinds = sorted(result["kinds"].items(), key=lambda item: item[1][1] - item[1][0])
        largest = ", ".join(
            f"{kind} {_ms(seconds)}" + (f" (bound {_ms(bound)})" if bound else "")
            for kind, (seconds, bound) in kinds[:5]
        )
        yield f"- **{key.removeprefix('layers: ')}**: {_ms(result['whole'])}, the layers {_ms(result['sum'])}, between them {_ms(gap)}; {largest}"
        refused: dict[str, int] = {}
        for layer in result["layers"]:
            for way, took in layer["ways"].items():
                if isinstance(took, str):
                    text = f"{way}: {_first_line(took)[:120]}"
                    refused[text] = refused.get(text, 0) + 1
        yield from (
            f"  - {count} × {text}" for text, count in sorted(refused.items(), key=lambda item: -item[1])[:3]
        )
    rate = rows.get("preprocessing: rate", {}).get("result", {})
    if "kernels" in rate:
        yield (
            f"- **preprocessing**: {rate['images a second']:.0f} images a second in the kernels, {rate['of the bandwidth']:.0%} of the "
            f"bandwidth; of a call of {_ms(rate['whole call'])} they take {_ms(rate['kernels'])}"
        )
    lanes = rows.get("engine: two lanes", {}).get("result", {})
    if "together" in lanes:
        yield f"- **two lanes**: {lanes['alone'] / lanes['together']:.2f} × the speed of one after the other"


def _peers(rows: dict[str, Row]) -> Iterator[str]:
    for key, row in rows.items():
        if not key.startswith("networks: ") or row["status"] != "done":
            continue
        times = dict(row["result"]["seconds"])
        own = times.pop("swsl")
        skipped = [note["skipped"] for note in row.get("notes", ()) if "skipped" in note]
        others = [f"{peer} {_ms(seconds)}, {seconds / own:.2f} × ours" for peer, seconds in times.items()]
        yield f"- {key.removeprefix('networks: ')}: {_ms(own)}; {', '.join(others or map(_first_line, skipped))}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _list(keys: Iterable[str]) -> Iterator[str]:
    text = ", ".join(keys)
    if text:
        yield text + "."


def _missing(rows: dict[str, Row]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for key, row in rows.items():
        why = row.get("why", "")
        reasons.setdefault("the time was up" if " s were left" in why else why, []).append(key)
    for why, keys in reasons.items():
        more = f" and {len(keys) - MOST} more" if len(keys) > MOST else ""
        yield f"- {why}: {', '.join(keys[:MOST])}{more}"
