"""What the tests of data and models share: small pictures and networks, and where real data lie."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from workbench.subjects import open_data
from workbench.subjects.builtin import DATASETS
from workbench.subjects.networks import SmallCNN

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_weights = pytest.mark.skipif(
    not (SHARED / "weights").is_dir() or not (SHARED / "cifar10").is_dir(), reason="the published weights are not here"
)
RNG = np.random.default_rng(0)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def opened(spec):
    """A data set by name or path."""
    return open_data(str(spec), datasets=DATASETS)


def colour(n=4, height=6, width=5):
    """Random pictures, (sample, channel, y, x) uint8."""
    return RNG.integers(0, 256, (n, 3, height, width), dtype=np.uint8)


def network(seed=0, channels=3):
    """A small classifier of four classes with weights of its own."""
    torch.manual_seed(seed)
    return SmallCNN(4, channels, 4).eval()


def pictures(n=3, channels=3, side=8, seed=1):
    """Random pictures, (sample, channel, y, x) float32 in 0..1."""
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def encoded(pixels):
    """A picture (channel, y, x) or (y, x) as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels).save(stream, "PNG")
    return stream.getvalue()


def parquet_file(path, images, labels=None, names=None, column="image", rows=3):
    """A parquet file of PNG pictures, laid out as Hugging Face does; skips without pyarrow."""
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
