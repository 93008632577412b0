"""CIFAR as it is published: binaries, and pickles that are read without unpickling anything but arrays."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from workbench.errors import InputError
from workbench.subjects.cifar import read_pickle

from unit.subject_cases import RNG, SHARED, Evil, opened

# ---------------------------------------------------------------------------------------------------------------- CIFAR


def cifar_batch(n, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, 10, n).tolist()


def old_pickle(content):
    """As Python 2 wrote it: protocol 2, byte strings, numpy's old module name."""
    opcodes = pickle.dumps(content, protocol=2)
    return opcodes.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.fixture
def cifar_python(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batches = {
        name: cifar_batch(4, i) for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])
    }
    for name, (pixels, labels) in batches.items():
        (folder / name).write_bytes(old_pickle({b"data": pixels, b"labels": labels, b"batch_label": b"x"}))
    (folder / "batches.meta").write_bytes(old_pickle({b"label_names": [f"c{i}".encode() for i in range(10)]}))
    return tmp_path, batches


def test_cifar_pickles_are_read_without_unpickling_anything_but_arrays(cifar_python):
    root, batches = cifar_python
    for spec in (f"cifar10(root='{root}')", root / "cifar-10-batches-py"):
        data = opened(spec)
        np.testing.assert_array_equal(data["image"].values.reshape(4, -1), batches["test_batch"][0])
        assert data["label"].values.tolist() == batches["test_batch"][1]
        assert data["class"].values.tolist() == [f"c{i}" for i in range(10)]
    whole = opened(f"cifar10(root='{root}', split=all)")
    assert whole["split"].values.tolist() == ["train"] * 20 + ["test"] * 4
    np.testing.assert_array_equal(whole["image"].values[4:8].reshape(4, -1), batches["data_batch_2"][0])


def test_cifar_binaries_agree_with_the_pickles(cifar_python, tmp_path):
    root, batches = cifar_python
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, (pixels, labels) in batches.items():
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    ours, theirs = opened(f"cifar10(root='{folder}', split=train)"), opened(f"cifar10(root='{root}', split=train)")
    xr.testing.assert_equal(ours.drop_vars("class"), theirs.drop_vars("class"))
    assert ours["class"].values[0] == "airplane"
    (folder / "test_batch.bin").write_bytes(b"\0" * 1000)
    with pytest.raises(InputError, match=r"rows of 3073 bytes.*test_batch\.bin"):
        opened(folder)


def test_cifar100_takes_the_fine_labels(tmp_path):
    pixels, _ = cifar_batch(3, 0)
    content = {b"data": pixels, b"fine_labels": [7, 99, 3], b"coarse_labels": [1, 2, 3]}
    (tmp_path / "test").write_bytes(old_pickle(content))
    (tmp_path / "meta").write_bytes(old_pickle({b"fine_label_names": [f"f{i}".encode() for i in range(100)]}))
    assert opened(tmp_path)["label"].values.tolist() == [7, 99, 3]


@pytest.mark.parametrize(
    "evil",
    [
        Evil(os.system, "touch SHOULD_NOT_EXIST"),
        Evil(eval, "open('SHOULD_NOT_EXIST', 'w')"),
        Evil(getattr, "text", "upper"),
        Evil(np.ndarray, (2,)),
        Evil(np.lib.format.open_memmap, "SHOULD_NOT_EXIST", "w+", "u1", (3,)),
        np.array([Evil(os.system, "touch SHOULD_NOT_EXIST")], dtype=object),
        np.array([1, "text", None], dtype=object),
        np.zeros(2, dtype=[("a", "u1")]),
        Path("x"),
    ],
    ids=["system", "eval", "getattr", "ndarray", "memmap", "nested", "objects", "structured", "path"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_with_anything_but_arrays_are_refused_and_not_run(evil, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": evil, b"labels": [1]}, protocol=protocol))
    with pytest.raises(InputError, match="test_batch"):
        opened(tmp_path)
    assert not (tmp_path / "SHOULD_NOT_EXIST").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickled_arrays_of_numbers_come_back(protocol, tmp_path):
    content = {"a": np.arange(6.0).reshape(2, 3), "b": [np.array(3, ">i2"), b"\x00\xff"], "c": "text"}
    (tmp_path / "p").write_bytes(pickle.dumps(content, protocol=protocol))
    back = {(k.decode() if isinstance(k, bytes) else k): v for k, v in read_pickle(tmp_path / "p").items()}
    np.testing.assert_array_equal(back["a"], content["a"])
    assert int(back["b"][0]) == 3
    assert back["b"][1] == b"\x00\xff"


@pytest.mark.parametrize("cut", [0, 5, 100, 4000])
def test_cut_cifar_pickles_are_named(cut, cifar_python):
    root, _ = cifar_python
    path = root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="test_batch"):
        opened(root / "cifar-10-batches-py")


def test_cifar10_that_is_not_there_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz"):
        opened("cifar10")
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        opened("cifar10")
    image = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    (tmp_path / "cifar10").mkdir()
    np.savez(
        tmp_path / "cifar10" / "part.npz", x_train=image[:4], y_train=np.arange(4), x_test=image[4:], y_test=[8, 9]
    )
    assert opened("cifar10")["label"].values.tolist() == [8, 9]
    assert opened("cifar10(split=train)")["label"].values.tolist() == [0, 1, 2, 3]
    whole = opened("cifar10(split=all)")
    assert whole["split"].values.tolist() == ["train"] * 4 + ["test"] * 2
    np.testing.assert_array_equal(whole["image"], image)


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="CIFAR-10 is not here")
def test_cifar10_as_published(monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(SHARED))
    data = opened("cifar10")
    # The published order of the test set begins: cat, ship, ship, airplane, frog, frog, automobile, frog, cat, automobile.
    assert data["label"].values[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    pytest.importorskip("pyarrow")
    compressed = opened(f"{SHARED / 'cifar10' / 'jpeg_test.parquet'}[:20]")
    assert compressed["image"].shape == (20, 3, 32, 32)
