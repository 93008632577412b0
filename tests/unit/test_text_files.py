"""Text becomes token ids in windows: bytes, tables of a tokenizer, the source of Python; and what is refused."""

import sys

import numpy as np
import pytest
from PIL import Image
from workbench.errors import InputError, MissingDependencyError
from workbench.subjects import load_model, open_data
from workbench.subjects.builtin import DATASETS, FACTORIES
from workbench.subjects.text_files import python_source, windows

TEXT = "Ein Satz mit Umlauten: äöü, und noch einer. " * 20


def test_bytes_of_a_file_come_back_as_the_text(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    data = open_data(f"{tmp_path / 'a.txt'}(length=16)", datasets=DATASETS)
    assert data["token_id"].dims == ("sample", "token")
    assert data["token_id"].dtype == np.int64
    encoded = TEXT.encode()
    assert data.sizes == {"sample": len(encoded) // 16, "token": 16}
    assert bytes(data["token_id"].values.ravel().tolist()) == encoded[: len(encoded) // 16 * 16]


def test_the_files_of_a_folder_are_read_in_order_of_their_names(tmp_path):
    for name, text in (("b.MD", "bbbb"), ("a.txt", "aaaa"), ("c.csv", "no")):
        (tmp_path / name).write_text(text)
    (tmp_path / "folder.txt").mkdir()
    data = open_data(f"{tmp_path}(length=4)", datasets=DATASETS)
    assert [bytes(row).decode() for row in data["token_id"].values.astype(np.uint8)] == ["aaaa", "bbbb"]


def test_a_read_me_beside_folders_of_pictures_is_not_the_data(tmp_path):
    (tmp_path / "README.md").write_text(TEXT)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "cat" / "a.png")
    with pytest.raises(InputError, match="Name one of its parts"):
        open_data(tmp_path, datasets=DATASETS)


@pytest.mark.parametrize("arguments", ["heads=0", "blocks=0", "width=2.5", "width=10, heads=4"])
def test_a_language_model_of_no_size_is_refused(arguments):
    with pytest.raises(InputError, match=r"an integer from 1|a multiple of heads"):
        load_model(f"small-gpt({arguments})", factories=FACTORIES)


def test_a_slice_picks_windows():
    whole = open_data("python-source(split=test, length=32)", datasets=DATASETS)
    part = open_data("python-source(split=test, length=32)[5:9]", datasets=DATASETS)
    np.testing.assert_array_equal(part["token_id"], whole["token_id"][5:9])


def test_the_source_of_python_is_split_by_file():
    parts = {split: python_source(split, 64)["token_id"].values for split in ("train", "test", "all")}
    sizes = {split: values.size for split, values in parts.items()}
    assert sizes["all"] > 1_000_000
    assert abs(sizes["train"] + sizes["test"] - sizes["all"]) <= 128
    assert sizes["test"] < 0.2 * sizes["train"]
    seen = {row.tobytes() for row in parts["train"]}
    assert np.mean([row.tobytes() in seen for row in parts["test"]]) < 0.01


def test_a_tokenizers_table_is_used_as_it_stands(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    table = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "ein": 1, "satz": 2}, unk_token="[UNK]"))
    table.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    table.enable_truncation(2)  # as saved by many: it concerns sentences, not a stream of text
    table.enable_padding(length=9, pad_id=2)
    table.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("ein satz ein wort")
    for where in (tmp_path, tmp_path / "tokenizer.json"):
        data = open_data(f"{tmp_path / 'text'}(length=4, tokenizer='{where}')", datasets=DATASETS)
        assert data["token_id"].values.tolist() == [[1, 2, 1, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("(length=1)", "from 2"),
        ("(length=100000)", "at least 100000 tokens"),
        ("(tokenizer='/nowhere/at/all')", "tokenizer='/nowhere/at/all'"),
        ("(tokenizer=5)", "tokenizer: expected text"),
        ("(size=3)", "length, tokenizer"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, arguments, message):
    pytest.importorskip("tokenizers")
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        open_data(f"{tmp_path / 'a.txt'}{arguments}", datasets=DATASETS)


def test_other_encodings_and_negative_ids_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("äöü".encode("latin-1") * 100)
    with pytest.raises(InputError, match="UTF-8"):
        open_data(tmp_path / "a.txt", datasets=DATASETS)
    from workbench.method import DataRole
    from workbench.subjects import check_dataset

    role = DataRole("text", variables={"token_id": ("sample", "token")})
    with pytest.raises(InputError, match="token ids from 0"):
        check_dataset("data", role, windows([0, 1, -1, 2], 2))


def test_without_the_library_a_tokenizer_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    assert open_data(tmp_path / "a.txt", datasets=DATASETS).sizes["token"] == 128
    with pytest.raises(MissingDependencyError, match=r"vision-workbench\[transformers\]"):
        open_data(f"{tmp_path / 'a.txt'}(tokenizer=gpt2)", datasets=DATASETS)
