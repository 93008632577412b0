"""How numbers and names read: the same in tables, axes, captions and hover texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = [
    "bytes_text",
    "cell_texts",
    "duration_text",
    "label_text",
    "number_text",
    "plain_name",
    "power_text",
    "shorten",
    "shorten_all",
    "value_text",
]


def plain_name(name: str) -> str:
    """`expected_calibration_error` -> `expected calibration error`; `series/loss` -> `loss`."""
    return name.removeprefix("series/").replace("_", " ")


def shorten(text: str, most: int = 28) -> str:
    """Keep both ends of a long label: `features.stage3.block...conv2.weight`."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[-(most - 1 - head) :]}"


def shorten_all(texts: Sequence[str], most: int = 28) -> list[str]:
    """Labels that stay distinct when shortened: what all begin or end with goes first (`features.` and `.weight`)."""
    if all(len(text) <= most for text in texts):
        return list(texts)
    parts = [text.split(".") for text in texts]
    start, stop = 0, 0
    if len(texts) > 1:
        room = min(map(len, parts)) - 1  # one part of each must stay
        while start < room and len({part[start] for part in parts}) == 1:
            start += 1
        while stop < room - start and len({part[-1 - stop] for part in parts}) == 1:
            stop += 1
    cut = [".".join(part[start : len(part) - stop]) for part in parts]
    for room in (most, 2 * most):
        short = [shorten(text, room) for text in cut]
        if len(set(short)) == len(set(texts)):
            return short
    return [f"{text} #{index + 1}" if short.count(text) > 1 else text for index, text in enumerate(short)]


def number_text(value: float | int | bool | None, digits: int = 4) -> str:
    """A number for reading: `digits` significant digits, thousands separated, powers of ten when far from 1."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e7 or size < 1e-4:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}".replace("-", "−")


def value_text(value: float, digits: int = 4) -> str:
    """A number from an array, where whole numbers are most likely counts: `134`, `0.8123`."""
    whole = math.isfinite(value) and value == round(value) and abs(value) < 1e7
    return number_text(int(value) if whole else float(value), digits)


_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def power_text(value: float) -> str:
    """A tick of a logarithmic axis: `0.01`, `20`, `10⁵`, `3×10⁻⁷`."""
    if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 9_999.5:
        return f"{value:g}".replace("-", "−")
    mantissa, _, exponent = f"{value:.6e}".partition("e")
    factor = f"{float(mantissa):g}"
    raised = f"10{str(int(exponent)).translate(_RAISED)}"
    return raised if factor == "1" else f"{factor}×{raised}".replace("-", "−")


def cell_texts(values: Sequence[Any]) -> list[str]:
    """The cells of one table column. Floats of comparable size share their number of decimals, so that points align."""
    floats = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v) and v != 0]
    decimals = None
    if floats and min(floats) >= 1e-4 and max(floats) < 1e7:
        largest, smallest = max(floats), min(floats)
        whole = max(0, 3 - math.floor(math.log10(largest)))
        needed = max(0, 1 - math.floor(math.log10(smallest)))  # two digits of the smallest value survive
        decimals = min(max(whole, needed), 6)
        if needed > decimals:
            decimals = None
    if floats and all(value == round(value) for value in floats) and max(floats) < 1e7:
        decimals = 0

    def text(value: Any) -> str:
        if isinstance(value, float) and math.isfinite(value) and decimals is not None:
            return f"{value:,.{decimals}f}".replace("-", "−")
        if value is None or isinstance(value, (bool, int, float)):
            return number_text(value)
        return str(value)

    return [text(value) for value in values]


def label_text(label: Any) -> str:
    """A coordinate label or a cell of an array as text."""
    if hasattr(label, "item"):
        label = label.item()
    if isinstance(label, bool):
        return "yes" if label else "no"
    if isinstance(label, float):
        return f"{label:.6g}"
    if isinstance(label, bytes):
        return label.decode("utf-8", "replace")
    return str(label)


def duration_text(seconds: float | None) -> str:
    """`0.42 s`, `12.3 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def bytes_text(count: int | None) -> str:
    """`812 B`, `1.4 MB` (powers of 1000)."""
    if count is None:
        return "–"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
