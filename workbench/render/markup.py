"""HTML in which escaping is not optional: text becomes markup only through `element`.

Names, labels and messages in a store were written by somebody else. `element` escapes every child that was not itself
made by `element`, and every attribute value; `visible` removes what could reorder or hide text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

__all__ = ["Html", "element", "embedded", "join", "visible"]

_VOID = {"br", "hr", "img", "meta"}

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters, but for tab and line ends
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # invisible, line-separating and direction-changing marks
    "\U000e0000-\U000e007f\ud800-\udfff\ufffe\uffff]"  # tags, lone surrogates, no characters at all
)


class Html(str):
    """Text that is markup already. Only `element`, `join` and `embedded` make it."""

    __slots__ = ()


def visible(text: object, most: int = 5_000) -> str:
    """Text without control characters and direction marks (each becomes U+FFFD), cut where it is longer than `most`."""
    plain = _INVISIBLE.sub("\ufffd", str(text).replace("\r\n", "\n").replace("\r", "\n"))
    return plain if len(plain) <= most else f"{plain[:most]}… ({len(plain) - most:,} more characters)"


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """`<name attribute="...">children</name>`. A trailing underscore is dropped (`class_`), other ones become hyphens.

    Children that are None or "" and attributes that are None or False are left out.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_markup(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Children one after the other, each escaped unless it is markup."""
    return Html("".join(_markup(child) for child in children if child is not None))


def embedded(markup: str) -> Html:
    """Markup from a trusted maker: our own drawings and style sheets, never anything read from a store."""
    return Html(markup)


def _markup(value: object) -> str:
    return value if isinstance(value, Html) else html.escape(visible(value), quote=True)
