"""Text as token ids: files of text cut into windows of equal length, and the source of Python's standard library.

Ids are UTF-8 bytes, or what a `tokenizer.json` (of the library `tokenizers`) makes of the text. Such a file holds tables
and no code, so nothing of a stranger is run.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import InputError, MissingDependencyError

__all__ = ["BYTES", "SUFFIXES", "load_text", "python_source", "windows"]

SUFFIXES = (".txt", ".md", ".rst")
BYTES = "bytes"
"""The tokenizer whose ids are the 256 values of a byte."""
HELD_OUT = 20
"""Every so many-th file of the standard library is a test file."""
LONGEST = 1_000_000


def load_text(path: Path, *, length: int = 128, tokenizer: str = BYTES, argument: str = "data") -> xr.Dataset:
    """A file of UTF-8 text, or the files of a folder in order of their names, as `token_id` (sample, token).

    Args:
        path: a file, or a folder of files that end in `SUFFIXES`.
        length: tokens of a window; windows do not overlap and what is left at the end of all text is dropped.
        tokenizer: "bytes", a `tokenizer.json` or a folder with one, or a name on the Hugging Face hub.
        argument: what the data are called, for messages.

    Raises:
        InputError: no text, not UTF-8, shorter than one window, or no such tokenizer.
        MissingDependencyError: a tokenizer other than "bytes" without the library for it.
    """
    files = [path] if path.is_file() else text_files(path)
    texts = []
    for file in files:
        try:
            texts.append(file.read_bytes().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(argument, expected="text in UTF-8", got=f"{str(file)!r}: {error}") from error
    return windows(_ids("".join(texts), tokenizer, argument), length, argument=argument)


def text_files(folder: Path) -> list[Path]:
    """The files of text that lie in a folder, in order of their names."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def windows(ids: Sequence[int] | np.ndarray, length: int, *, argument: str = "data") -> xr.Dataset:
    """Token ids in a row, cut into windows: `token_id` (sample, token) int64.

    Raises:
        InputError: fewer ids than one window has, or a length below 2.
    """
    if not isinstance(length, int) or isinstance(length, bool) or not 2 <= length <= LONGEST:
        raise InputError("length", expected=f"an integer from 2 to {LONGEST:,}", got=repr(length))
    array = np.asarray(ids, dtype=np.int64)
    count = len(array) // length
    if not count:
        raise InputError(argument, expected=f"at least {length} tokens, one window", got=str(len(array)))
    return xr.Dataset({"token_id": (("sample", "token"), array[: count * length].reshape(count, length))})


def python_source(split: str = "all", length: int = 128) -> xr.Dataset:
    """Source of the modules of Python's standard library, about 4 MB, byte by byte in windows.

    Whole files belong to one split: of the top-level modules in order of their names every 20th is for "test". The text
    is that of the Python that runs, so it differs a little between versions.

    Args:
        split: "all", "train" or "test".
        length: bytes of a window.
    """
    if split not in ("all", "train", "test"):
        raise InputError("split", expected="all, train or test", got=repr(split))
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    chosen = [
        file for place, file in enumerate(files) if split == "all" or (place % HELD_OUT == 0) == (split == "test")
    ]
    if not chosen:
        raise InputError("data", expected="the source of Python's standard library", got="none in this installation")
    return windows(np.frombuffer(b"".join(file.read_bytes() for file in chosen), dtype=np.uint8), length)


def _ids(text: str, tokenizer: str, argument: str) -> Any:
    if not isinstance(tokenizer, str):
        raise InputError("tokenizer", expected='text: "bytes", a path or a name', got=repr(tokenizer))
    if tokenizer == BYTES:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(
            f"tokenizer={tokenizer!r} needs the library tokenizers. "
            "Install it with: pip install 'vision-workbench[transformers]'"
        ) from error
    path = Path(os.path.expanduser(tokenizer))
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        table = Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the library raises bare exceptions, whatever is wrong
        reason = str(error).strip().splitlines()[:1]
        raise InputError(
            argument,
            expected='a tokenizer.json, a folder with one, a name on the Hugging Face hub, or "bytes"',
            got=f"tokenizer={tokenizer!r}: {type(error).__name__}: {reason[0] if reason else ''}",
        ) from error
    # A table may ask for texts of a certain length: here text is a stream, of which nothing is cut off and nothing added.
    table.no_truncation()
    table.no_padding()
    return table.encode(text, add_special_tokens=False).ids
