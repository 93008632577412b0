"""What people hold becomes a data set with the glossary's names, or one error that says what to change."""

import dask.array
import numpy as np
import pytest
import torch
import workbench.subjects.data as data_module
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from workbench.errors import InputError
from workbench.method import DataRole
from workbench.subjects import as_dataset, check_dataset, check_model_fits, dataset_digest
from workbench.subjects.grammar import split_arguments, split_slice

IMAGE = ("sample", "channel", "y", "x")
ROLE = DataRole("pictures", {"image": IMAGE}, {"label": ("sample",)})
RNG = np.random.default_rng(0)


def pictures(n=4, channels=3, height=6, width=5):
    return RNG.random((n, channels, height, width)).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- as_dataset


@pytest.mark.parametrize(
    "wrap",
    [
        lambda image, label: {"image": image, "label": label},
        lambda image, label: (image, label),
        lambda image, label: (torch.from_numpy(image), torch.from_numpy(label)),
        lambda image, label: (dask.array.from_array(image), label.tolist()),
        lambda image, label: xr.Dataset({"image": (IMAGE, image), "label": ("sample", label)}),
        lambda image, label: TensorDataset(torch.from_numpy(image), torch.from_numpy(label)),
        lambda image, label: DataLoader(TensorDataset(torch.from_numpy(image), torch.from_numpy(label)), batch_size=3),
        lambda image, label: [{"image": i, "label": k} for i, k in zip(image, label, strict=True)],
    ],
    ids=["mapping", "tuple", "torch", "dask", "Dataset", "torch Dataset", "DataLoader", "items"],
)
def test_everything_people_hold_becomes_the_same_data_set(wrap):
    image, label = pictures(), np.array([2, 0, 1, 1])
    value = wrap(image, label)
    if isinstance(value, list):  # a map-style Dataset of dicts
        items = value

        class Items(Dataset):
            def __len__(self):
                return len(items)

            def __getitem__(self, index):
                return items[index]

        value = Items()
    data = as_dataset(value)
    assert data["image"].dims == IMAGE
    np.testing.assert_array_equal(data["image"], image)
    np.testing.assert_array_equal(data["label"], label)
    assert data["label"].dtype == np.int64


def test_lone_arrays_take_the_first_name_of_the_role():
    assert list(as_dataset(pictures())) == ["image"]
    data = as_dataset(np.eye(3), variables={"logit": ("sample", "class")})
    assert data["logit"].dims == ("sample", "class")
    named = xr.DataArray(np.eye(3), dims=("sample", "feature"), name="feature")
    assert list(as_dataset(named)) == ["feature"]
    assert as_dataset(xr.DataArray(pictures()))["image"].dims == IMAGE


def test_conventional_dtypes_are_given_and_laziness_is_kept():
    lazy = as_dataset({"image": dask.array.ones((4, 1, 2, 2), dtype=np.float64), "label": np.arange(4, dtype=np.uint8)})
    assert lazy["image"].chunks is not None
    assert (lazy["image"].dtype, lazy["label"].dtype) == (np.float32, np.int64)
    assert as_dataset(np.zeros((1, 1, 2, 2), np.uint8))["image"].dtype == np.uint8
    assert as_dataset(torch.zeros(1, 1, 2, 2).bfloat16())["image"].dtype == np.float32


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pictures().transpose(0, 2, 3, 1), r"transpose\(0, 3, 1, 2\)"),
        (pictures()[:, 0], r"image\[:, None\]"),
        ({"imgae": pictures()}, "Did you mean 'image'"),
        ({"image": pictures(), "label": [0, 1]}, "image: 4, label: 2"),
        ((pictures(), [0] * 4, [1] * 4), "at most 2 arrays"),
        ({}, "empty mapping"),
        ([[1, 2], [3]], "mapping of names"),
        ({"label": [[1, 2], [3]]}, "rectangular"),
        ({"label": [object(), object()]}, "dtype object"),
        (3, "got int"),
        (TensorDataset(torch.zeros(0, 3)), "at least one sample"),
    ],
)
def test_what_cannot_be_data_is_one_clear_error(value, message):
    with pytest.raises(InputError, match=message):
        as_dataset(value)


def test_items_of_different_sizes_are_refused():
    class Ragged(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.zeros(3, 4 + index, 4)

    with pytest.raises(InputError, match="items of one size"):
        as_dataset(Ragged())


# -------------------------------------------------------------------------------------------------------- check_dataset


def with_value(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"image": with_value(pictures(), (2, 1, 0, 3), np.nan)}, r"finite.*sample=2, channel=1, y=0, x=3"),
        ({"image": with_value(pictures(), (3, 0, 0, 0), np.inf)}, "inf at sample=3"),
        ({"image": pictures() * 255}, "divide by 255"),
        ({"image": pictures() - 0.5}, "standardised"),
        ({"image": np.zeros((1, 3, 2, 2), np.int16)}, "uint8"),
        ({"image": pictures(0)}, "at least one"),
        ({"image": pictures(), "label": np.array([0, 1, -1, 2])}, "class indices from 0"),
        ({"image": pictures(), "label": np.array([0.5, 1, 1, 2])}, "int64"),
    ],
)
def test_values_that_do_not_fit_are_named(variables, message):
    with pytest.raises(InputError, match=message):
        check_dataset("data", ROLE, as_dataset(variables))


def test_names_dims_labels_and_probabilities():
    image = pictures()
    check_dataset("data", ROLE, as_dataset(image))
    with pytest.raises(InputError, match=r"\.rename\(images='image'\)"):
        check_dataset("data", ROLE, xr.Dataset({"images": (IMAGE, image)}))
    with pytest.raises(InputError, match="Rename with"):
        check_dataset("data", ROLE, xr.Dataset({"image": (("n", "channel", "y", "x"), image)}))
    labelled = as_dataset((image, [0, 1, 2, 3]))
    check_dataset("data", ROLE, labelled.assign_coords({"class": list("abcd")}))
    with pytest.raises(InputError, match=r"class indices 0\.\.2.*Count classes from 0"):
        check_dataset("data", ROLE, labelled.assign_coords({"class": list("abc")}))
    role = DataRole("outputs", {"probability": ("sample", "class")})
    rows = np.full((3, 4), 0.25, np.float32)
    check_dataset("data", role, as_dataset({"probability": rows}))
    with pytest.raises(InputError, match=r"sum of 0\.75 at sample=1"):
        check_dataset("data", role, as_dataset({"probability": with_value(rows, (1, 0), 0)}))
    with pytest.raises(InputError, match="Pass scores as `logit`"):
        check_dataset("data", role, as_dataset({"probability": np.array([[2.0, -1.0]])}))


def test_nan_is_accepted_where_the_role_allows_it():
    role = DataRole("features", {"feature": ("sample", "feature")}, allow_nan=True)
    value = np.array([[1.0, np.nan]])
    check_dataset("data", role, as_dataset({"feature": value}))
    with pytest.raises(InputError, match="no infinities"):
        check_dataset("data", role, as_dataset({"feature": np.array([[1.0, np.inf]])}))


def test_lazy_data_are_checked_block_by_block(monkeypatch):
    monkeypatch.setattr(data_module, "BLOCK_BYTES", 1000)
    bad = with_value(pictures(50), (37, 0, 0, 0), np.nan)
    lazy = as_dataset({"image": dask.array.from_array(bad, chunks=(7, 3, 6, 5))})
    with pytest.raises(InputError, match="sample=37"):
        check_dataset("data", ROLE, lazy)


# ----------------------------------------------------------------------------------------------------- check_model_fits


def test_a_model_that_fits_is_left_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(90), nn.Dropout(), nn.Linear(90, 3))
    model[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    image = as_dataset(pictures())["image"]
    check_model_fits("model", model, image, labels=xr.DataArray([0, 1, 2, 2], dims="sample"))
    check_model_fits("model", model.double(), (image * 255).astype(np.uint8))
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value.double(), model.state_dict()[key].double()) for key, value in state.items())


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (nn.Conv2d(1, 2, 3), None, r"accepts pictures of shape \(2, 3, 6, 5\)"),
        (nn.Flatten(0), None, "logits of shape"),
        (nn.Sequential(nn.Flatten(), nn.Linear(90, 1)), None, r"shape \(2, 1\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(90, 2)), [0, 1, 2, 0], r"0\.\.2, got 2 logits"),
        (nn.LSTM(5, 2), None, "accepts pictures"),
        (nn.Sequential(nn.Flatten(), nn.Threshold(2.0, float("nan"))), None, "finite outputs"),
        (nn.MaxPool2d(2, return_indices=True), None, "returns a tensor, got tuple"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model, labels, message):
    labels = None if labels is None else xr.DataArray(labels, dims="sample")
    with pytest.raises(InputError, match=message):
        check_model_fits("model", model, as_dataset(pictures())["image"], labels=labels)


def test_other_tasks_may_return_any_finite_tensor():
    check_model_fits("model", nn.Conv2d(3, 3, 3), as_dataset(pictures())["image"], task="restoration")


# ------------------------------------------------------------------------------------------------------- dataset_digest


def data():
    return xr.Dataset(
        {"image": (IMAGE, np.arange(360, dtype=np.float32).reshape(4, 3, 6, 5)), "label": ("sample", np.arange(4))},
        coords={"class": list("abcd")},
    )


def test_the_digest_is_of_the_content_alone(monkeypatch):
    expected = dataset_digest(data())
    assert dataset_digest(data().chunk({"sample": 3, "y": 2})) == expected
    assert dataset_digest(data().assign_attrs(name="x")) == expected
    noted = data()
    noted["image"].attrs["unit"], noted["image"].encoding["dtype"] = "1", "float16"
    assert dataset_digest(noted) == expected
    assert dataset_digest(data()[["label", "image"]]) == dataset_digest(data()[["image", "label"]])
    fortran = data()
    fortran["image"].values = np.asfortranarray(fortran["image"].values)
    assert dataset_digest(fortran) == expected
    monkeypatch.setattr(data_module, "BLOCK_BYTES", 100)
    assert dataset_digest(data()) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.isel(sample=slice(3)),
        lambda d: d.isel(sample=[1, 0, 2, 3]),
        lambda d: d.rename(image="clean"),
        lambda d: d.rename(y="row"),
        lambda d: d.assign(image=d["image"].astype(np.float64)),
        lambda d: d.assign(image=d["image"].where(d["image"] != 7, 7.0001)),
        lambda d: d.assign_coords({"class": list("abce")}),
        lambda d: d.drop_vars("class"),
        lambda d: d.assign_coords(name=("sample", list("wxyz"))),
    ],
    ids=["fewer", "order", "name", "dim", "dtype", "value", "coordinate", "without", "another"],
)
def test_every_change_of_content_changes_the_digest(change):
    assert dataset_digest(change(data())) != dataset_digest(data())


def test_python_objects_have_no_digest():
    with pytest.raises(InputError, match="dtype object"):
        dataset_digest(xr.Dataset({"a": ("sample", np.array([object(), 1], dtype=object))}))


# -------------------------------------------------------------------------------------------------------------- grammar


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("digits", ("digits", {})),
        ("digits()", ("digits", {})),
        ("photos(size=64, gray=True)", ("photos", {"size": 64, "gray": True})),
        ("a.npz(layout=NHWC, image='x y')", ("a.npz", {"layout": "NHWC", "image": "x y"})),
        ("net(mean=(0.5, -1.0))", ("net", {"mean": (0.5, -1.0)})),
        ("folder (1)/a.npz", ("folder (1)/a.npz", {})),
        ("folder (1)", ("folder (1)", {})),
        ("a (1)(size=3)", ("a (1)", {"size": 3})),
        ("photos(16)", ("photos(16)", {})),
    ],
)
def test_arguments_are_literals_or_words(spec, expected):
    assert split_arguments(spec, "data") == expected


@pytest.mark.parametrize(
    "spec", ["a(x=f())", "a(x=)", "a(x=1, 2)", "a(x=1, **y)", "a(x=__import__('os').name)", "a(x=1;2)"]
)
def test_arguments_are_never_code(spec):
    with pytest.raises(InputError, match="arguments such as"):
        split_arguments(spec, "data")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("digits[:200]", ("digits", slice(None, 200))),
        ("digits[5:]", ("digits", slice(5, None))),
        ("digits(size=16)[-10:-1:2]", ("digits(size=16)", slice(-10, -1, 2))),
        ("digits[::3]", ("digits", slice(None, None, 3))),
        ("digits[3]", ("digits[3]", None)),
        ("digits[a:b]", ("digits[a:b]", None)),
        ("digits", ("digits", None)),
    ],
)
def test_slices(spec, expected):
    assert split_slice(spec) == expected
