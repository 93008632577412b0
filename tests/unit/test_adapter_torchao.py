"""Configurations of torchao as methods: integers and sizes by count, the library's logits, a model that loads again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import workbench
import xarray as xr
from torch import nn
from workbench.errors import SkippedError
from workbench.host import Host

from workbench_adapters.torchao import TorchaoQuantization, TorchaoWeightOnly

pytest.importorskip("torchao", reason="needs the extra torchao")
WIDTHS = (64, 96, 3)


class Int8Dynamic(TorchaoQuantization):
    id = "quantization.torchao_int8_dynamic"
    title = "Weights and activations of the linear layers in 8 bits, by torchao"

    def config(self, params):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)


@pytest.fixture
def bench(tmp_path):
    return workbench.open(tmp_path / "store", host=Host(found=[]))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first, hidden, last = WIDTHS
    return nn.Sequential(nn.Flatten(), nn.Linear(first, hidden), nn.ReLU(), nn.Linear(hidden, last)).eval()


@pytest.fixture
def data() -> xr.Dataset:
    image = np.random.default_rng(0).random((60, 1, 8, 8), dtype=np.float32)
    label = network()(torch.from_numpy(image)).argmax(1).numpy()
    label[:6] = (label[:6] + 1) % 3  # so that the model is right on 54 of 60
    return xr.Dataset({"image": (("sample", "channel", "y", "x"), image), "label": ("sample", label)})


def logits(model: nn.Module, data: xr.Dataset) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(data["image"].values)).numpy()


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (8, 32), (4, 32), (2, None)])
def test_integers_scales_logits_and_sizes(bench, data, bits, group_size):
    from torchao.quantization import quantize_

    run = bench.run(TorchaoWeightOnly, model=network(), data=data, bits=bits, group_size=group_size, progress=False)
    direct = network()
    quantize_(direct, TorchaoWeightOnly().config(TorchaoWeightOnly.Params(bits=bits, group_size=group_size)))
    assert np.allclose(run["logit"], logits(direct, data), atol=1e-6)
    weight = network()[1].weight.detach().numpy()
    start, scale_start = (int(run[name][1]) for name in ("weight_start", "scale_start"))
    levels = run["integer_weight"].values[:start].astype(int).reshape(96, -1, group_size or 64)
    scale, zero = (run[name].values[:scale_start].reshape(96, -1, 1) for name in ("scale", "zero_point"))
    assert levels.min() >= -(2 ** (bits - 1))
    assert levels.max() <= 2 ** (bits - 1) - 1
    restored = ((levels - zero) * scale).reshape(96, 64)
    assert np.allclose(restored, direct[1].weight.dequantize().detach(), atol=1e-6)
    # Nearest rounding; the largest weight of a row may be one level beyond the range.
    assert (np.abs(restored - weight).reshape(levels.shape) <= scale * (0.51 if bits > 2 else 1.01)).all()
    error = ((restored - weight) ** 2).sum() / (weight**2).sum()
    assert float(run["relative_error"][0]) == pytest.approx(error, rel=1e-4)
    held, packed = (float(run["layer_bytes"][row, 0]) for row in (1, 2))
    assert float(run["layer_bytes"][0, 0]) == 96 * 64 * 4
    assert held - packed == 96 * 64 * (8 - bits) / 8
    assert 96 * 64 + scale.size * 4 <= held <= 96 * 64 + scale.size * (4 + 8)  # integers, scales, perhaps zero points
    assert float(run["model_bytes"][0]) == 4 * sum(parameter.numel() for parameter in network().parameters())


def test_the_stored_model_is_plain_and_says_what_torchaos_says(bench, data):
    run = bench.run(TorchaoWeightOnly, model=network(), data=data, bits=4, progress=False)
    again = run.model(into=network())
    assert type(again.network[1].weight.data) is torch.Tensor
    assert np.allclose(logits(again, data), run["logit"], atol=1e-5)
    assert float(run["stored_gap"]) < 1e-5
    assert run.metrics["accuracy_full_precision"] == pytest.approx(0.9)
    assert run.metrics["accuracy"] == pytest.approx((run["logit"].argmax("class") == run["label"]).mean())
    unlike = logits(network(), data).argmax(1) != run["logit"].values.argmax(1)
    assert run.metrics["agreement"] == pytest.approx(1 - unlike.mean())


def test_a_configuration_that_quantises_activations_says_that_the_stored_model_does_not(bench, data):
    run = bench.run(Int8Dynamic, model=network(), data=data, progress=False)
    from torchao.quantization import quantize_

    direct = network()
    quantize_(direct, Int8Dynamic().config(None))
    assert np.allclose(run["logit"], logits(direct, data), atol=1e-5)
    assert float(run["stored_gap"]) > 1e-5
    assert np.allclose(logits(run.model(into=network()), data), run["logit"], atol=float(run["stored_gap"]) + 1e-6)


def test_layers_that_it_cannot_quantise_are_said(bench, data):
    convolutions = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(SkippedError, match="no linear layer"):
        bench.run(TorchaoWeightOnly, model=convolutions, data=data, progress=False)
