"""Data by name and path: every format is read as it was written, and what is damaged or unclear is one clear error."""

import os
import pickle

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
from workbench.subjects.builtin import PHOTOS

from unit.subject_cases import Evil, colour, opened, parquet_file

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


@pytest.mark.parametrize(
    "spec", ["photos(size=2000)", "photos(size=400, count=99)", "digits(split=val)", "digits(size=2)"]
)
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


# --------------------------------------------------------------------------------------------------------------- arrays


def test_npz_names_are_recognised_by_the_table(tmp_path):
    image, label = colour(), np.arange(4, dtype=np.uint8)
    for names in (
        ("x", "y"),
        ("images", "labels"),
        ("image", "label"),
        ("x_test", "y_test"),
        ("test_images", "test_labels"),
    ):
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
    save_file(
        {"images": torch.from_numpy(image), "labels": torch.arange(4), "logits": torch.ones(4, 2).bfloat16()},
        tmp_path / "a.safetensors",
    )
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
