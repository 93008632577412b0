"""Averages of weights against direct arithmetic, batch norms included; averaged outputs; heads from text."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from workbench import InputError
from workbench.subjects.builtin import small_cnn

from workbench_calibration.wise import (
    OUTCOMES,
    average,
    check_states,
    cooled_head,
    estimate_statistics,
    interpolate,
    logit_layer,
    mean_of_logits,
    mean_of_probabilities,
    outcome_shares,
    outcomes,
    running_statistics,
)
from workbench_calibration.zero_shot import text_head, zero_shot_classifier


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair():
    """A pretrained network and what a few steps of training make of it, statistics included."""
    torch.manual_seed(0)
    pre = small_cnn(3, width=4)
    with torch.no_grad():
        pre.train()(draw(32, 1, 8, 8))
    tuned = copy.deepcopy(pre).train()
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(tuned(draw(32, 1, 8, 8, seed=step + 1) + 0.5), torch.arange(32) % 3).backward()
        optimizer.step()
    return pre.eval(), tuned.eval()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_every_floating_entry_is_interpolated_and_counters_are_copied(alpha):
    pre, tuned = pair()
    one, other = pre.state_dict(), tuned.state_dict()
    merged = interpolate(one, other, alpha)
    assert set(merged) == set(other)
    for key, value in merged.items():
        if "num_batches" in key:
            assert value.dtype == torch.int64
            assert int(value) == int(other[key]) == 5 != int(one[key])
        else:
            expected = (1 - alpha) * one[key].double() + alpha * other[key].double()
            assert torch.allclose(value.double(), expected, atol=1e-6)
            assert not torch.equal(one[key], other[key])  # so the comparison says something
    assert {"head.weight", "head.bias", "block1.bn.running_var"} <= set(merged)
    image = draw(5, 1, 8, 8, seed=9)
    with torch.no_grad():
        if alpha in (0.0, 1.0):
            assert torch.equal(average(pre, one, other, alpha)(image), (pre if alpha == 0 else tuned)(image))
    assert all(torch.equal(value, pre.state_dict()[key]) for key, value in one.items())  # the parts stay as they are


def test_half_precision_is_averaged_in_single():
    one, other = ({"w": torch.tensor([value], dtype=torch.float16)} for value in (60000.0, 60032.0))
    merged = interpolate(one, other, 0.5)["w"]  # the sum alone would overflow in float16
    assert merged.dtype == torch.float16
    assert float(merged) in (60000.0, 60032.0)
    bf = interpolate(
        {"w": torch.tensor([1.0], dtype=torch.bfloat16)}, {"w": torch.tensor([2.0], dtype=torch.bfloat16)}, 0.25
    )
    assert float(bf["w"]) == 1.25


def test_the_average_of_linear_models_is_the_mean_of_their_logits():
    one, other = nn.Linear(6, 4), nn.Linear(6, 4)
    x = draw(7, 6)
    merged = average(one, one.state_dict(), other.state_dict(), 0.5)
    with torch.no_grad():
        assert torch.allclose(merged(x), mean_of_logits(one(x), other(x)), atol=1e-6)


def test_three_ways_with_running_statistics():
    pre, tuned = pair()
    one, other, image = pre.state_dict(), tuned.state_dict(), draw(50, 1, 8, 8, seed=20)
    assert len(running_statistics(pre)) == 8
    kept, mixed, measured = (
        average(pre, one, other, 0.5, bn, image).state_dict() for bn in ("keep", "interpolate", "re-estimate")
    )
    for key in running_statistics(pre):
        assert torch.equal(kept[key], other[key])
        assert torch.allclose(mixed[key], (one[key] + other[key]) / 2)
        assert not torch.allclose(measured[key], mixed[key])
    for key in set(one) - running_statistics(pre):
        if "num_batches" not in key:
            assert torch.equal(kept[key], mixed[key])
            assert torch.equal(measured[key], mixed[key])


def test_measured_statistics_are_those_of_what_the_layer_receives():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    image = draw(24, 1, 6, 6) * 2 + 1
    estimate_statistics(net, image, batch_size=8)
    with torch.no_grad():
        parts = [net[0](image[first::3]) for first in range(3)]
    assert net[1].running_mean == pytest.approx(
        torch.stack([x.mean((0, 2, 3)) for x in parts]).mean(0).numpy(), abs=1e-5
    )
    assert net[1].running_var == pytest.approx(torch.stack([x.var((0, 2, 3)) for x in parts]).mean(0).numpy(), rel=1e-4)
    assert net[3].running_mean == pytest.approx(np.zeros(3), abs=1e-5)  # normalised before; no dropout
    assert net[1].momentum == 0.1
    assert all(module.training for module in net)


def test_measured_statistics_do_not_depend_on_whether_images_are_sorted_by_class():
    image = draw(96, 2, 4, 4) + 5 * (torch.arange(96) // 24)[:, None, None, None]  # four classes, one after the other
    net = nn.Sequential(nn.BatchNorm2d(2))
    estimate_statistics(net, image, batch_size=24)
    assert net[0].running_var == pytest.approx(image.var((0, 2, 3)).numpy(), rel=0.05)


def test_a_batch_of_one_image_is_never_normalised_by_itself():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))
    estimate_statistics(net, draw(9, 1, 2, 2), batch_size=8)
    assert torch.isfinite(net[1].running_var).all()


def test_models_that_do_not_belong_together_are_refused():
    pre, _ = pair()
    with pytest.raises(InputError, match=r"head.weight \(3, 16\) and \(5, 16\)"):
        check_states(pre.state_dict(), small_cnn(5, width=4).state_dict())
    with pytest.raises(InputError, match="in one only"):
        check_states(pre.state_dict(), nn.Linear(2, 2).state_dict())
    check_states(pre.state_dict(), small_cnn(3, width=4).state_dict())


def test_a_cooled_head_divides_logits():
    pre, _ = pair()
    image = draw(4, 1, 8, 8, seed=3)
    cooled = copy.deepcopy(pre)
    head = logit_layer(pre, image)
    assert head == "head"
    cooled.load_state_dict(cooled_head(head, pre.state_dict(), 4.0))
    with torch.no_grad():
        assert torch.allclose(cooled(image), pre(image) / 4, atol=1e-6)


class Gated(nn.Module):
    """Its head is not the linear layer registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.gate = nn.Linear(6, 3), nn.Linear(4, 6)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.head(torch.sigmoid(self.gate(values)))


def test_the_head_is_what_gives_the_logits_wherever_it_is_registered():
    torch.manual_seed(0)
    values = torch.rand(5, 4)
    assert logit_layer(Gated().eval(), values) == "head"
    squashed = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()).eval()
    with torch.no_grad():
        squashed[0].weight.mul_(20)
    with pytest.raises(InputError, match="halves the logits nowhere"):
        logit_layer(squashed, values)
    assert logit_layer(nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)).eval(), values) == "0"


def test_averaged_outputs():
    one, other = draw(6, 4), 5 * draw(6, 4, seed=1)
    assert torch.allclose(
        mean_of_probabilities(one, other).softmax(1), (one.softmax(1) + other.softmax(1)) / 2, atol=1e-6
    )
    assert torch.allclose(mean_of_logits(one, other), (one + other) / 2)
    certain = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]])
    assert mean_of_probabilities(*certain).softmax(1) == pytest.approx(np.full((1, 2), 0.5))


def test_outcomes_are_counted_sample_by_sample():
    rng = np.random.default_rng(0)
    right = rng.random((3, 500)) < 0.6
    kinds = outcomes(*right)
    named = ["".join("TF"[not r] for r in row) for row in right.T]
    assert [OUTCOMES[k] for k in kinds] == named
    share = outcome_shares(kinds)
    assert share == pytest.approx([named.count(kind) / 500 for kind in OUTCOMES])
    assert share.sum() == pytest.approx(1)


class Words(nn.Module):
    """A stand-in for a vision-language model: texts are sums of word vectors, images are projected."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 5)
        self.visual = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def encode_text(self, tokens):
        return self.table(tokens).sum(1)


def tokenize(texts):
    return torch.tensor([[sum(map(ord, word)) % 50 for word in text.split()] for text in texts])


def test_the_head_is_the_mean_direction_of_the_filled_templates():
    model = Words()
    templates = ("a photo of {}", "one bad {} here")
    head = text_head(model.encode_text, tokenize, ["cat", "owl"], templates, scale=7.0).numpy()
    for row, name in zip(head, ("cat", "owl"), strict=True):
        unit = [model.encode_text(tokenize([t.format(name)]))[0].detach().numpy() for t in templates]
        mean = np.mean([u / np.linalg.norm(u) for u in unit], axis=0)
        assert row == pytest.approx(7 * mean / np.linalg.norm(mean), abs=1e-5)
    classifier = zero_shot_classifier(model, tokenize, ["cat", "owl"], templates)
    image = draw(3, 1, 4, 4)
    feature = model.visual(image)
    unit = feature / feature.norm(dim=1, keepdim=True)
    expected = np.exp(3.0) * unit.detach().numpy() @ (head / 7).T
    assert classifier(image).detach().numpy() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match="templates"):
        text_head(model.encode_text, tokenize, ["cat"], ("a photo",))


def test_an_open_clip_model_becomes_a_classifier():
    open_clip = pytest.importorskip("open_clip", reason="needs open-clip-torch")
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    torch.manual_seed(0)
    clip = open_clip.model.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    tokens = open_clip.SimpleTokenizer()
    names = ["cat", "grey owl", "lorry"]
    classifier = zero_shot_classifier(clip, tokens, names, ("a photo of a {}.",)).eval()
    image = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        left, right, scale = clip(image, tokens([f"a photo of a {name}." for name in names]))
        assert torch.allclose(classifier(image), scale * left @ right.T, atol=1e-4)
