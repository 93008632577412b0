"""Data by name and path: every format is read as it was written, and what is damaged or unclear is one clear error."""

import gzip
import io
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import workbench.subjects.loaders as loaders
import xarray as xr
import zarr
from PIL import Image
from safetensors.torch import save_file
from workbench.errors import InputError
from workbench.subjects import dataset_digest, open_data
from workbench.subjects.builtin import DATASETS, PHOTOS
from workbench.subjects.cifar import read_pickle

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
RNG = np.random.default_rng(0)


def opened(spec):
    return open_data(str(spec), datasets=DATASETS)


def colour(n=4, height=6, width=5):
    return RNG.integers(0, 256, (n, 3, height, width), dtype=np.uint8)


# ------------------------------------------------------------------------------------------------------------- built in


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data, reference = opened("digits"), load_digits()
    np.testing.assert_array_equal(data["image"][:, 0] * 16, reference.images)
    np.testing.assert_array_equal(data["label"], reference.target)
    assert data["image"].dtype == np.float32
    assert data["class"].values.tolist() == list("0123456789")


def test_the_parts_of_digits_are_disjoint_stratified_and_fixed():
    whole, train, test = (opened(f"digits(split={split})") for split in ("all", "train", "test"))
    rows = {split: {row.tobytes() for row in data["image"].values} for split, data in (("a", train), ("b", test))}
    assert not rows["a"] & rows["b"]
    assert train.sizes["sample"] + test.sizes["sample"] == whole.sizes["sample"] == 1797
    share = np.bincount(train["label"]) / np.bincount(whole["label"])
    assert np.abs(share - 0.7).max() < 0.01
    assert dataset_digest(train) == dataset_digest(opened("digits(split=train)"))


def test_scaled_digits_keep_range_and_mean():
    small, large = opened("digits[:50]"), opened("digits(size=16)[:50]")
    assert large["image"].shape == (50, 1, 16, 16)
    assert 0 <= float(large["image"].min()) <= float(large["image"].max()) <= 1
    # Each 2x2 block of a bilinear doubling averages a 3x3 neighbourhood with weights (1, 6, 1) / 8 along each axis.
    weights = np.array([1, 6, 1]) / 8
    inner = large["image"].values.reshape(50, 8, 2, 8, 2).mean(axis=(2, 4))[:, 1:-1, 1:-1]
    pixels = small["image"].values[:, 0]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(1, 2))
    np.testing.assert_allclose(inner, np.einsum("nijab,a,b->nij", windows, weights, weights), atol=1e-6)


def test_photos_are_crops_of_the_named_photos():
    from skimage import data as photos

    data = opened("photos(size=64, count=25)")
    assert data["image"].shape == (25, 3, 64, 64)
    assert data["image"].dtype == np.uint8
    assert data["name"].values[:10].tolist() == list(PHOTOS)
    for crop, name in zip(data["image"].values, data["name"].values, strict=True):
        photo = getattr(photos, str(name))()
        photo = photo if photo.ndim == 3 else np.stack([photo] * 3, axis=-1)
        windows = np.lib.stride_tricks.sliding_window_view(photo[..., 0], (64, 64))
        candidates = np.argwhere((windows[..., 0, 0] == crop[0, 0, 0]) & (windows[..., 63, 63] == crop[0, 63, 63]))
        assert any(np.array_equal(photo[y : y + 64, x : x + 64].transpose(2, 0, 1), crop) for y, x in candidates)
    assert len({crop.tobytes() for crop in data["image"].values}) == 25
    assert dataset_digest(data) == dataset_digest(opened("photos(size=64, count=25)"))
    grey = opened("photos(size=64, gray=True)")
    assert grey["image"].shape == (10, 1, 64, 64)
    np.testing.assert_array_equal(grey["image"].sel(sample=1)[0], photos.camera()[224:288, 224:288])


@pytest.mark.parametrize("spec", ["photos(size=2000)", "photos(size=400, count=99)", "digits(split=val)", "digits(size=2)"])
def test_arguments_out_of_range_are_refused(spec):
    with pytest.raises(InputError):
        opened(spec)


def test_names_arguments_and_slices_are_checked():
    with pytest.raises(InputError, match="Did you mean 'digits'"):
        opened("digts")
    with pytest.raises(InputError, match=r"digits\(split='all', size=8\)"):
        opened("digits(sise=3)")
    with pytest.raises(InputError, match="at least one sample"):
        opened("digits[5:5]")
    assert opened("digits[10:20:2]").sizes["sample"] == 5
    np.testing.assert_array_equal(opened("digits[-3:]")["label"], opened("digits")["label"][-3:])


def test_registered_functions_may_return_anything_that_becomes_data():
    datasets = {"mine": lambda n=3: (np.zeros((n, 1, 2, 2), np.float32), np.arange(n))}
    data = open_data("mine(n=5)[1:]", datasets=datasets)
    assert data["label"].values.tolist() == [1, 2, 3, 4]


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
    batches = {name: cifar_batch(4, i) for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])}
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


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


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
    np.savez(tmp_path / "cifar10" / "part.npz", x_train=image[:4], y_train=np.arange(4), x_test=image[4:], y_test=[8, 9])
    assert opened("cifar10")["label"].values.tolist() == [8, 9]
    assert opened("cifar10(split=train)")["label"].values.tolist() == [0, 1, 2, 3]
    whole = opened("cifar10(split=all)")
    assert whole["split"].values.tolist() == ["train"] * 4 + ["test"] * 2
    np.testing.assert_array_equal(whole["image"], image)


# --------------------------------------------------------------------------------------------------------------- arrays


def test_npz_names_are_recognised_by_the_table(tmp_path):
    image, label = colour(), np.arange(4, dtype=np.uint8)
    for names in (("x", "y"), ("images", "labels"), ("image", "label"), ("x_test", "y_test"), ("test_images", "test_labels")):
        np.savez(tmp_path / "a.npz", **dict(zip(names, (image, label), strict=True)))
        data = opened(tmp_path / "a.npz")
        np.testing.assert_array_equal(data["image"], image)
        assert data["label"].dtype == np.int64
    np.savez(tmp_path / "p.npz", predictions=np.full((4, 2), 0.5, np.float32), ground_truth=label[:, None])
    assert dict(opened(tmp_path / "p.npz").sizes) == {"sample": 4, "class": 2}
    assert set(opened(tmp_path / "p.npz").data_vars) == {"probability", "label"}
    np.savez(tmp_path / "q.npz", predictions=label, logits=np.zeros((4, 2)))
    assert set(opened(tmp_path / "q.npz").data_vars) == {"prediction", "logit"}


def test_parts_of_an_npz_are_chosen_by_split(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=colour(3), y_train=[0, 1, 2], x_test=colour(2), y_test=[3, 4])
    assert opened(path)["label"].values.tolist() == [3, 4]
    assert opened(f"{path}(split=train)[:2]")["label"].values.tolist() == [0, 1]
    assert opened(f"{path}(split=all)")["label"].values.tolist() == [0, 1, 2, 3, 4]
    assert opened(f"{path}(image=x_train, label=y_train)")["label"].values.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="train, test, all"):
        opened(f"{path}(split=val)")


def test_names_that_are_not_recognised_are_asked_for(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, bilder=colour(), klassen=np.arange(4))
    with pytest.raises(InputError, match="image=NAME"):
        opened(path)
    assert opened(f"{path}(image=bilder, label=klassen)").sizes["sample"] == 4
    with pytest.raises(InputError, match="bilder, klassen"):
        opened(f"{path}(image=picture)")
    np.savez(path, x=colour(), images=colour())
    with pytest.raises(InputError, match="'x' and 'images'"):
        opened(path)


def test_layouts_are_named_never_guessed(tmp_path):
    image, path = colour(), tmp_path / "a.npz"
    np.savez(path, image=image.transpose(0, 2, 3, 1))
    with pytest.raises(InputError, match="layout=NHWC"):
        opened(path)
    np.testing.assert_array_equal(opened(f"{path}(layout=NHWC)")["image"], image)
    np.savez(path, image=image[:, 0])
    with pytest.raises(InputError, match="layout=NHW"):
        opened(path)
    np.testing.assert_array_equal(opened(f"{path}(layout=NHW)")["image"], image[:, :1])
    np.savez(path, image=image[0].transpose(2, 1, 0))
    np.testing.assert_array_equal(opened(f"{path}(layout=WHC)")["image"], image[:1])
    for wrong in ("NHWC", "NN", "HQ"):
        with pytest.raises(InputError, match="layout"):
            opened(f"{path}(layout={wrong})")


def test_npy_safetensors_and_zarr(tmp_path):
    image = colour()
    np.save(tmp_path / "a.npy", image)
    np.testing.assert_array_equal(opened(tmp_path / "a.npy")["image"], image)
    np.save(tmp_path / "f.npy", np.eye(3))
    with pytest.raises(InputError, match="variable=feature"):
        opened(tmp_path / "f.npy")
    assert opened(f"{tmp_path}/f.npy(variable=feature)")["feature"].dims == ("sample", "feature")
    save_file({"images": torch.from_numpy(image), "labels": torch.arange(4), "logits": torch.ones(4, 2).bfloat16()},
              tmp_path / "a.safetensors")
    data = opened(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(data["image"], image)
    assert data["logit"].dtype == np.float32
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", data=image, chunks=(2, 3, 6, 5))
    group.create_array("y", data=np.arange(4))
    np.testing.assert_array_equal(opened(f"{tmp_path}/a.zarr[1:3]")["image"], image[1:3])
    assert opened(f"{tmp_path}/a.zarr[1:3]")["label"].values.tolist() == [1, 2]


def test_a_zarr_of_xarray_keeps_names_and_coordinates(tmp_path):
    data = xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), colour()), "label": ("sample", np.arange(4))},
        coords={"class": list("abcd")},
    )
    data.to_zarr(tmp_path / "set", consolidated=False)
    xr.testing.assert_equal(opened(tmp_path / "set"), data)
    assert dataset_digest(opened(tmp_path / "set")) == dataset_digest(data)


def test_large_data_stay_lazy(tmp_path, monkeypatch):
    data = xr.Dataset({"image": (("sample", "channel", "y", "x"), colour(20))})
    data.to_zarr(tmp_path / "a.zarr", consolidated=False)
    monkeypatch.setattr(loaders, "IN_MEMORY", 1000)
    lazy = opened(tmp_path / "a.zarr")
    assert lazy["image"].chunks is not None
    assert dataset_digest(lazy) == dataset_digest(data)
    assert opened(f"{tmp_path}/a.zarr[:5]")["image"].chunks is None


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors", "a.parquet", "a.png"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_damaged_files_are_named(name, damage, tmp_path):
    path = tmp_path / name
    if name == "a.npz":
        np.savez(path, image=colour(20))
    elif name == "a.npy":
        np.save(path, colour(20))
    elif name == "a.safetensors":
        save_file({"image": torch.from_numpy(colour(20))}, path)
    elif name == "a.parquet":
        parquet_file(path, colour(20))
    else:
        Image.fromarray(colour(1, 50, 50)[0].transpose(1, 2, 0)).save(path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) * 2 // 3], "noise": b"noise" * 50, "empty": b""}[damage])
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        opened(path)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_arrays_of_objects_are_never_unpickled(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = np.array([Evil(os.system, "touch SHOULD_NOT_EXIST")], dtype=object)
    (np.savez if name == "a.npz" else np.save)(tmp_path / name, evil)
    with pytest.raises(InputError, match="never read"):
        opened(tmp_path / name)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Evil(os.system, "touch SHOULD_NOT_EXIST")))
    with pytest.raises(InputError, match="Pickles can run code"):
        opened(tmp_path / "a.pkl")
    assert not (tmp_path / "SHOULD_NOT_EXIST").exists()


# ------------------------------------------------------------------------------------------------------------------ idx


def idx(array, code=0x08):
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


def mnist(folder, prefix, n, packed=True):
    image, label = RNG.integers(0, 256, (n, 4, 5), dtype=np.uint8), RNG.integers(0, 10, n).astype(np.uint8)
    for kind, array in (("images-idx3", image), ("labels-idx1", label)):
        content = idx(array)
        path = folder / f"{prefix}-{kind}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
    return image, label


@pytest.mark.parametrize("packed", [True, False])
def test_idx_pairs_are_found_by_folder_prefix_and_file(packed, tmp_path):
    image, label = mnist(tmp_path, "t10k", 3, packed)
    first, _ = mnist(tmp_path, "train", 5, packed)
    for spec in (tmp_path, tmp_path / "t10k", tmp_path / f"t10k-images-idx3-ubyte{'.gz' if packed else ''}"):
        data = opened(spec)
        np.testing.assert_array_equal(data["image"][:, 0], image)
        np.testing.assert_array_equal(data["label"], label)
    np.testing.assert_array_equal(opened(f"{tmp_path}(split=train)[2:]")["image"][:, 0], first[2:])


def test_idx_pictures_at_another_size_and_in_colour(tmp_path):
    image, _ = mnist(tmp_path, "t10k", 3)
    data = opened(f"{tmp_path}(size=10, color=true)")
    assert data["image"].shape == (3, 3, 10, 10)
    for channel in range(3):
        expected = Image.fromarray(image[1]).resize((10, 10), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(data["image"][1, channel], np.asarray(expected))
    for wrong, argument in (("size=0", "size"), ("color=3", "color"), ("crop=2", "data")):
        with pytest.raises(InputError) as caught:
            opened(f"{tmp_path}({wrong})")
        assert caught.value.argument == argument


def test_a_relative_path_is_looked_for_in_the_data_folder_too(tmp_path, monkeypatch):
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    image, _ = mnist(tmp_path / "data" / "mnist", "t10k", 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    with pytest.raises(InputError):
        opened("mnist(split=test)")
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    np.testing.assert_array_equal(opened("mnist(split=test)[1:]")["image"][:, 0], image[1:])
    # What is at hand comes first.
    (tmp_path / "mnist").mkdir()
    nearer, _ = mnist(tmp_path / "mnist", "t10k", 2)
    np.testing.assert_array_equal(opened("mnist")["image"][:, 0], nearer)


def test_idx_files_that_cannot_be_right_are_named(tmp_path):
    mnist(tmp_path, "t10k", 3, packed=False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"\0", content[:7], b"\x1f\x8bnoise", b"", b"noise" * 9):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="t10k-images-idx3-ubyte"):
            opened(tmp_path)
    path.write_bytes(idx(np.zeros((4, 4, 5), np.uint8)))
    with pytest.raises(InputError, match="4 labels"):
        opened(tmp_path)


@pytest.mark.parametrize(("dtype", "code"), [(">i2", 0x0B), (">i4", 0x0C), (">f4", 0x0D), (">f8", 0x0E), ("i1", 0x09)])
def test_idx_numbers_are_big_endian(dtype, code, tmp_path):
    from workbench.subjects.array_files import read_idx

    array = np.array([[1, -2], [100, 7]], dtype=dtype)
    (tmp_path / "a.idx").write_bytes(idx(array, code))
    np.testing.assert_array_equal(read_idx(tmp_path / "a.idx", "data"), array)


# ------------------------------------------------------------------------------------------------------------- pictures


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def test_a_folder_of_classes(tmp_path):
    pixels = colour(5).transpose(0, 2, 3, 1)
    for i, name in enumerate(["dog/1.png", "dog/0.png", "cat/9.png", "cat/10.png", "emu/a.bmp"]):
        save(tmp_path / name, pixels[i])
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    data = opened(tmp_path)
    assert data["class"].values.tolist() == ["cat", "dog", "emu"]
    assert data["name"].values.tolist() == ["cat/10.png", "cat/9.png", "dog/0.png", "dog/1.png", "emu/a.bmp"]
    assert data["label"].values.tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_array_equal(data["image"].values, pixels[[3, 2, 1, 0, 4]].transpose(0, 3, 1, 2))
    assert "label" not in opened(tmp_path / "dog")


def test_the_orientation_of_the_camera_is_applied(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # the left half is white
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise to view
    save(tmp_path / "a.png", pixels, exif=exif)
    image = opened(tmp_path)["image"]
    assert image.shape == (1, 3, 16, 8)
    assert (image[0, :, :8] == 255).all()
    assert (image[0, :, 8:] == 0).all()


def test_sizes_must_agree_or_be_chosen(tmp_path):
    save(tmp_path / "a.png", np.arange(12, dtype=np.uint8).reshape(3, 4))
    save(tmp_path / "b.png", np.full((8, 6), 7, np.uint8))
    with pytest.raises(InputError, match=r"2 sizes.*size=64"):
        opened(tmp_path)
    cropped = opened(f"{tmp_path}(crop=2)")["image"]
    np.testing.assert_array_equal(cropped[0, 0], [[1, 2], [5, 6]])
    scaled = opened(f"{tmp_path}(size=10)")["image"]
    assert scaled.shape == (2, 1, 10, 10)
    assert (scaled[1] == 7).all()
    with pytest.raises(InputError, match=r"at most 3.*a\.png"):
        opened(f"{tmp_path}(crop=4)")
    for wrong in ("size=0", "size=2, crop=2", "gray=1", "sise=4"):
        with pytest.raises(InputError):
            opened(f"{tmp_path}({wrong})")


def test_grey_colour_palettes_alpha_and_16_bits(tmp_path):
    grey = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    save(tmp_path / "g" / "a.png", grey)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "g" / "b.png")
    image = opened(tmp_path / "g")["image"]
    assert image.shape == (2, 1, 4, 6)
    np.testing.assert_array_equal(image[0], image[1])
    save(tmp_path / "c" / "a.png", grey)
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 128)])
    save(tmp_path / "c" / "b.png", rgba)
    Image.fromarray(rgba[..., :3]).quantize(64).save(tmp_path / "c" / "c.png")
    image = opened(tmp_path / "c")["image"].values
    assert image.shape == (3, 3, 4, 6)
    assert (image[:2] == grey).all()
    assert (image[2] == grey).all()
    assert opened(f"{tmp_path}/c(gray=True)")["image"].shape == (3, 1, 4, 6)


def test_a_folder_too_deep_says_which_to_open(tmp_path):
    save(tmp_path / "train" / "cat" / "a.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match=r"Name one of its parts.*train"):
        opened(tmp_path)
    with pytest.raises(InputError, match="an existing path"):
        opened(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"Did you mean .*train"):
        opened(tmp_path / "trian")


def test_a_damaged_picture_is_named_also_when_it_is_read_late(tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / f"{i}.png", colour(1, 40, 40)[0].transpose(1, 2, 0))
    path = tmp_path / "2.png"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"2\.png"):
        opened(tmp_path)
    monkeypatch.setattr(loaders, "IN_MEMORY", 100)
    lazy = opened(tmp_path)
    with pytest.raises(InputError, match=r"2\.png"):
        lazy.load()


def encoded(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels).save(stream, "PNG")
    return stream.getvalue()


def parquet_file(path, images, labels=None, names=None, column="image", rows=3):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {column: [{"bytes": encoded(image), "path": f"{i}.png"} for i, image in enumerate(images)]}
    if labels is not None:
        table["label"] = list(labels)
    table = pyarrow.table(table)
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows)


def test_parquet_in_the_hugging_face_layout(tmp_path):
    images = colour(8)
    parquet_file(tmp_path / "data" / "test-00000-of-00002.parquet", images[:5], [0, 1, 2, 0, 1], list("abc"))
    parquet_file(tmp_path / "data" / "test-00001-of-00002.parquet", images[5:], [2, 2, 0], list("abc"))
    parquet_file(tmp_path / "data" / "train-00000-of-00001.parquet", images[:1], [1], list("abc"))
    data = opened(tmp_path)
    np.testing.assert_array_equal(data["image"], images)
    assert data["label"].values.tolist() == [0, 1, 2, 0, 1, 2, 2, 0]
    assert data["class"].values.tolist() == list("abc")
    np.testing.assert_array_equal(opened(f"{tmp_path}[2:7:2]")["image"], images[2:7:2])
    assert opened(f"{tmp_path}(split=train)")["label"].values.tolist() == [1]


def test_parquet_columns_text_labels_and_sizes(tmp_path):
    images, path = colour(4), tmp_path / "a.parquet"
    parquet_file(path, images, ["dog", "cat", "dog", "emu"], column="img")
    data = opened(path)
    assert (data["label"].values.tolist(), data["class"].values.tolist()) == ([1, 0, 1, 2], ["cat", "dog", "emu"])
    with pytest.raises(InputError, match="picture columns img"):
        opened(f"{path}(image=picture)")
    parquet_file(path, [images[0], images[1][:, :4]], [0, 1])
    with pytest.raises(InputError, match=r"row group 0, row 1.*size=64"):
        opened(path)
    assert opened(f"{path}(size=4)")["image"].shape == (2, 3, 4, 4)
    parquet_file(path, [images[0][0], images[1]], [0, 1])
    with pytest.raises(InputError, match="colour in"):
        opened(path)
    assert opened(f"{path}(gray=False)")["image"].shape[1] == 3
    parquet_file(path, images, [0, 1, None, 2])
    with pytest.raises(InputError, match="empty ones in column 'label'"):
        opened(path)


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="MNIST is not here")
def test_mnist_as_published():
    data = opened(SHARED / "mnist" / "t10k")
    assert data["image"].shape == (10_000, 1, 28, 28)
    assert np.bincount(data["label"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert round(float((data["image"] / 255).mean()), 4) == 0.1325


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="CIFAR-10 is not here")
def test_cifar10_as_published(monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(SHARED))
    data = opened("cifar10")
    # The published order of the test set begins: cat, ship, ship, airplane, frog, frog, automobile, frog, cat, automobile.
    assert data["label"].values[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    pytest.importorskip("pyarrow")
    compressed = opened(f"{SHARED / 'cifar10' / 'jpeg_test.parquet'}[:20]")
    assert compressed["image"].shape == (20, 3, 32, 32)
