"""Stored arrays become tensors: pictures in 0..1, labels in int64, everything else as it is, read slice by slice."""

import numpy as np
import pytest
import torch
import xarray as xr
from workbench.errors import InputError
from workbench.toolkit.tensors import image_batches, to_tensor


def picture(n=5, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 4, 6)).astype(dtype)


def labelled(values, name="image", dims=("sample", "channel", "y", "x")):
    return xr.DataArray(values, dims=dims, name=name)


def test_uint8_pictures_become_float32_between_zero_and_one():
    values = picture()
    values[0, 0, 0, :2] = 0, 255
    for array in (labelled(values), values, torch.from_numpy(values)):
        tensor = to_tensor(array)
        assert tensor.dtype == torch.float32
        np.testing.assert_array_equal(tensor.numpy(), values.astype(np.float32) / np.float32(255))
        assert tensor[0, 0, 0, 0] == 0
        assert tensor[0, 0, 0, 1] == 1


def test_pictures_in_float_keep_type_and_values():
    values = picture(dtype=np.float32) / np.float32(255)
    assert torch.equal(to_tensor(labelled(values)), torch.from_numpy(values))
    assert to_tensor(labelled(values.astype(np.float64))).dtype == torch.float64


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint16, np.int64, ">i4"])
def test_labels_of_any_integer_type_become_int64(dtype):
    values = np.array([3, 1, 120], dtype=dtype)
    for array in (labelled(values, "label", ("sample",)), values):
        tensor = to_tensor(array)
        assert tensor.dtype == torch.int64
        assert tensor.tolist() == [3, 1, 120]


def test_label_maps_are_labels_and_not_pictures_although_they_have_y_and_x():
    values = picture()[:, 0]
    tensor = to_tensor(labelled(values, "label", ("sample", "y", "x")))
    assert tensor.dtype == torch.int64
    np.testing.assert_array_equal(tensor.numpy(), values)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.float16, np.complex64])
def test_other_types_stay(dtype):
    values = np.ones((2, 3), dtype=dtype)
    assert to_tensor(values).numpy().dtype == dtype


def test_a_type_asked_for_wins_and_integer_pictures_keep_their_255():
    values = picture()
    assert torch.equal(to_tensor(values, dtype=torch.uint8), torch.from_numpy(values))
    half = to_tensor(values, dtype=torch.float64)
    np.testing.assert_array_equal(half.numpy(), values / 255)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
def test_changing_the_tensor_never_changes_the_array(dtype):
    for values in (picture(dtype=dtype), np.arange(4).astype(dtype)):
        before = values.copy()
        for array in (values, torch.from_numpy(values), values[::1]):
            to_tensor(array).zero_()
            to_tensor(array, dtype=torch.from_numpy(values).dtype).zero_()
        np.testing.assert_array_equal(values, before)


def test_read_only_reversed_and_foreign_byte_order_arrays_are_taken():
    values = np.arange(6, dtype=">f4")[::-1]
    values.flags.writeable = False
    assert to_tensor(values).tolist() == [5, 4, 3, 2, 1, 0]


def test_strings_are_refused_by_name():
    with pytest.raises(InputError, match=r"label: expected numbers, got an array of dtype <U3"):
        to_tensor(labelled(np.array(["cat", "dog"]), "label", ("sample",)))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
def test_batches_put_together_are_the_whole(batch_size):
    values = picture()
    for array in (labelled(values), values, torch.from_numpy(values)):
        regions, batches = zip(*image_batches(array, batch_size), strict=True)
        assert [list(range(5))[region] for region in regions] == [
            list(range(start, min(start + batch_size, 5))) for start in range(0, 5, batch_size)
        ]
        assert torch.equal(torch.cat(batches), to_tensor(array))


def test_batches_of_a_stored_array_are_read_slice_by_slice(tmp_path):
    values = picture(n=20)
    labelled(values).to_dataset().chunk({"sample": 5}).to_zarr(tmp_path / "a.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "a.zarr", consolidated=False, chunks=None)["image"]
    stream = image_batches(stored, 5)
    _, first = next(stream)
    assert torch.equal(first, to_tensor(values[:5]))
    assert torch.equal(torch.cat([first, *(batch for _, batch in stream)]), to_tensor(values))
    assert not stored.variable._in_memory, "the whole array was read"


def test_a_failure_while_reading_ahead_reaches_the_caller(tmp_path):
    class Broken:
        ndim = 1

        def __len__(self):
            return 4

        def __getitem__(self, region):
            self.region = region
            return self

        def load(self):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(image_batches(Broken(), 2))


def test_an_empty_array_has_no_batches_and_a_bad_size_is_refused_before_any_work():
    assert list(image_batches(picture(n=0), 4)) == []
    with pytest.raises(InputError, match="batch_size: expected at least 1, got 0"):
        image_batches(picture(), 0)
