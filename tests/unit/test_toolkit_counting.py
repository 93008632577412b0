"""Operation counts against counts by hand and against torch's flop counter on the whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from workbench import InputError, Model
from workbench.subjects.networks import SmallCNN, resnet20
from workbench.toolkit import count_operations, total_count


def by_name(module: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    return {count.name: (count.parameters, count.macs) for count in count_operations(module, shape)}


def test_convolution_and_linear_layer_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
    counts = by_name(model, (3, 8, 8))
    assert counts == {"0": (8 * 27 + 8, 4 * 4 * 8 * 27), "2": (1280 + 10, 1280)}


def test_groups_transposed_and_one_dimensional_convolutions_by_hand() -> None:
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    assert by_name(grouped, (8, 5, 5)) == {"": (80, 25 * 8 * 9)}
    transposed = nn.ConvTranspose2d(4, 6, 2, stride=2)
    assert by_name(transposed, (4, 3, 3)) == {"": (4 * 6 * 4 + 6, 9 * 4 * 6 * 4)}
    assert by_name(nn.Conv1d(2, 5, 3), (2, 10)) == {"": (35, 8 * 2 * 5 * 3)}


def test_resnet20_has_the_published_size() -> None:
    """He et al. 2015, table 6: 0.27 M parameters. The convolutions by hand: 40.55 M multiply-accumulates at 32x32."""
    stem, stage1 = 1024 * 27 * 16, 6 * 1024 * 9 * 16 * 16
    stage2 = 256 * 9 * (16 * 32 + 5 * 32 * 32)
    stage3 = 64 * 9 * (32 * 64 + 5 * 64 * 64)
    total = total_count(count_operations(resnet20(), (3, 32, 32)))
    assert total.macs == stem + stage1 + stage2 + stage3 + 640
    assert total.parameters == sum(parameter.numel() for parameter in resnet20().parameters()) == 269_722
    assert total.flops == 2 * total.macs


def test_parts_add_up_to_the_whole() -> None:
    model = SmallCNN(10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 1, 8, 8))
    assert total_count(count_operations(model, (1, 8, 8))).flops == counter.get_total_flops()


def test_attention_is_counted() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    total = total_count(count_operations(layer, (5, 16)))
    projections, products, feed_forward = 5 * 16 * 16 * 4, 2 * 2 * 5 * 5 * 8, 2 * 5 * 16 * 32
    assert total.macs == projections + products + feed_forward


def test_model_is_left_as_it_was() -> None:
    model = SmallCNN(10).train()
    model.block2.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_operations(model, (1, 8, 8))
    assert model.training
    assert not model.block2.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_shape_the_model_does_not_take() -> None:
    with pytest.raises(InputError, match="input_shape"):
        count_operations(SmallCNN(10), (3, 8, 8))


def test_a_model_that_wraps_a_network_counts_like_the_network() -> None:
    network = SmallCNN(10)
    counts = count_operations(network, (1, 8, 8))
    wrapped = count_operations(Model(network, mean=0.5, std=0.5), (1, 8, 8))
    assert [(c.name, c.parameters, c.macs) for c in wrapped] == [(c.name, c.parameters, c.macs) for c in counts]
    assert not network.block1.conv._forward_hooks
    assert not network.block1.conv._forward_pre_hooks


def test_a_layer_used_twice_counts_twice() -> None:
    layer = nn.Linear(6, 6)
    (count,) = count_operations(nn.Sequential(layer, nn.ReLU(), layer), (6,))
    assert (count.parameters, count.macs) == (42, 72)
