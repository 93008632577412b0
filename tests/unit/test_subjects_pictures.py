"""Pictures of files: idx, folders of classes, parquet; orientation, colours and sizes, and what is damaged."""

import gzip
import struct

import numpy as np
import pytest
import workbench.subjects.loaders as loaders
from PIL import Image
from workbench.errors import InputError

from unit.subject_cases import RNG, SHARED, colour, opened, parquet_file

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
