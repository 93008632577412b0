"""Claims of the restoration networks and of how they are trained: shapes, parameters, objectives, bisection."""

import math

import pytest
import torch
from workbench import InputError
from workbench.toolkit import Recipe

from unit.recording_out import RecordingOut
from workbench_restoration import metrics
from workbench_restoration.networks import ExpectedLossVAE, build_autoencoder, gaussian_divergence
from workbench_restoration.reconstruction import (
    ImageLoss,
    Objective,
    Trained,
    Trainings,
    divergence,
    random_patches,
    train_at_best_rate,
    train_to_divergence,
    turn_and_flip,
)

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("architecture", "channels", "side", "code", "parameters"),
    [
        # Per convolution in * out * k^2 + out; dense layers in * out + out. Encoder, then decoder.
        ("conv", 1, 32, 64, (544 + 32832 + 131200 + 131136) + (133120 + 131136 + 32800 + 513)),
        ("conv5_narrow", 3, 96, 128, (2432 + 51264 + 204928 + 2359424) + (2377728 + 204864 + 51232 + 2403)),
        ("fully_connected", 1, 32, 256, (524800 + 131328) + (131584 + 525312)),
    ],
)
def test_networks_have_the_sizes_of_the_card(architecture, channels, side, code, parameters) -> None:
    network = build_autoencoder(architecture, channels=channels, height=side, width=side, code=code)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    image = torch.rand((2, channels, side, side), generator=torch.Generator().manual_seed(0))
    assert network.encode(image).shape == (2, code)
    restored = network(image)
    assert restored.shape == image.shape
    assert 0 < restored.min() < restored.max() < 1
    torch.testing.assert_close(network.decode(network.encode(image)), restored)


def test_the_papers_network_for_96_pixels_has_its_filters() -> None:
    network = build_autoencoder("conv5", channels=1, height=96, width=96, code=512)
    shapes = [tuple(layer.weight.shape) for layer in network.encoder if hasattr(layer, "weight")]
    assert shapes == [(128, 1, 5, 5), (256, 128, 5, 5), (512, 256, 5, 5), (512, 512 * 12 * 12)]
    assert network(torch.rand(1, 1, 96, 96)).shape == (1, 1, 96, 96)


def test_sides_that_do_not_halve_are_refused() -> None:
    with pytest.raises(InputError, match="sides that are multiples of 8 for the 'conv' network, got 30x32"):
        build_autoencoder("conv", channels=1, height=30, width=32, code=8)
    build_autoencoder("fully_connected", channels=1, height=30, width=31, code=8)


def test_the_divergence_is_that_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn((2, 5, 7), generator=generator, dtype=torch.float64)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(q, standard).sum(1)
    torch.testing.assert_close(gaussian_divergence(mean, log_variance), expected)
    assert gaussian_divergence(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0


def test_the_objective_of_a_vae_is_divergence_plus_weighted_expected_loss() -> None:
    torch.manual_seed(0)
    network = build_autoencoder("fully_connected", channels=1, height=16, width=16, code=4, variational=True)
    assert isinstance(network, ExpectedLossVAE)
    image = torch.rand(3, 1, 16, 16)
    mean, log_variance = network.distribution(image)
    torch.testing.assert_close(network.encode(image), mean)
    parts = []
    for weight in (1.0, 101.0):
        torch.manual_seed(7)
        parts.append(Objective(network, ImageLoss("ssim"), weight)(image))
    torch.manual_seed(7)
    code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
    loss = 1 - metrics.ssim(network.decode(code), image)
    torch.testing.assert_close((parts[1] - parts[0]) / 100, loss, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts[0] - loss, gaussian_divergence(mean, log_variance), atol=1e-4, rtol=1e-4)


def test_losses_are_what_their_names_say() -> None:
    generator = torch.Generator().manual_seed(1)
    image, target = torch.rand((2, 3, 2, 48, 48), generator=generator, dtype=torch.float64)
    for name, expected in (
        ("mse", (image - target).square().mean((1, 2, 3))),
        ("mae", (image - target).abs().mean((1, 2, 3))),
        ("ssim", 1 - metrics.ssim(image, target)),
        ("ms_ssim", 1 - metrics.ms_ssim(image, target, scales=3)),
        ("mix", 0.84 * (1 - metrics.ms_ssim(image, target)) + 0.16 * (image - target).abs().mean((1, 2, 3))),
    ):
        torch.testing.assert_close(ImageLoss(name)(image, target), expected)
    torch.testing.assert_close(ImageLoss("ms_ssim", scales=1)(image, target), ImageLoss("ssim")(image, target))


class Told(ExpectedLossVAE):
    """A stand-in whose divergence is a chosen number, so that the search is tested apart from any training."""

    def __init__(self, nats: float) -> None:
        super().__init__(torch.nn.Identity(), torch.nn.Identity())
        self.mean = math.sqrt(2 * nats)

    def distribution(self, image):
        return torch.full((len(image), 1), self.mean), torch.zeros(len(image), 1)


def test_bisection_finds_the_weight_of_a_known_curve() -> None:
    """Divergence 5 sqrt(C): 30 nats at C = 36."""
    tried = []

    def train(weight: float, step: int) -> Trained:
        assert step == len(tried)
        tried.append(weight)
        return Trained(Told(5 * math.sqrt(weight)), 1e-3, (), (), ())

    found = train_to_divergence(
        train,
        torch.zeros(4, 1, 2, 2),
        target=30.0,
        bracket=(1.0, 1e4),
        steps=30,
        tolerance=1e-3,
        device=torch.device("cpu"),
    )
    assert found.weight == pytest.approx(36, rel=3e-3)
    assert found.divergence == pytest.approx(30, rel=1e-3)
    assert tried[:2] == pytest.approx([100.0, 10.0])
    assert [weight for weight, _ in found.trace] == tried
    assert len(tried) < 15
    assert divergence(found.trained.network, torch.zeros(4, 1, 2, 2), torch.device("cpu")) == found.divergence
    short = train_to_divergence(
        lambda weight, step: Trained(Told(5 * math.sqrt(weight)), 1e-3, (), (), ()),
        torch.zeros(4, 1, 2, 2),
        target=1e6,
        bracket=(1.0, 1e4),
        steps=4,
        tolerance=1e-3,
        device=torch.device("cpu"),
    )
    assert short.weight == max(weight for weight, _ in short.trace)  # out of reach: the nearest one is kept


def test_a_rate_that_diverges_is_passed_over_and_all_of_them_are_an_error() -> None:
    torch.manual_seed(0)
    network = build_autoencoder("fully_connected", channels=1, height=12, width=12, code=4)
    network.decoder[3] = torch.nn.Identity()  # without the sigmoid a huge step overflows
    image = torch.rand((32, 1, 12, 12), generator=torch.Generator().manual_seed(0))

    def train(rates):
        return train_at_best_rate(
            network,
            ImageLoss("mse"),
            image,
            image[:8],
            lambda rate: Recipe(epochs=3, batch_size=8, optimizer="sgd", learning_rate=rate, schedule="constant"),
            rates,
            Trainings(RecordingOut(), len(rates)),
            name="mse",
        )

    trained = train((1e30, 0.01))
    assert trained.rate == 0.01
    assert trained.candidate_loss[0] == math.inf
    assert trained.candidate_loss[1] == trained.validation_loss[-1]
    with pytest.raises(
        InputError, match="learning_rates: expected a rate at which training by mse stays finite, got 1e"
    ):
        train((1e30,))


def test_patches_are_windows_of_the_image_and_symmetries_keep_pairs_together() -> None:
    image = torch.arange(2 * 2 * 9 * 11.0).view(2, 2, 9, 11)
    patches = random_patches(image, 4, 5, torch.Generator().manual_seed(0))
    assert patches.shape == (10, 2, 4, 4)
    for index, patch in enumerate(patches):
        first = int(patch[0, 0, 0]) - (index // 5) * 198
        top, left = divmod(first, 11)
        assert torch.equal(patch, image[index // 5, :, top : top + 4, left : left + 4])
    square, target = torch.rand(1, 2, 6, 6), torch.zeros(1)
    seen = set()
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        turned, same = turn_and_flip(square, target, generator)
        assert same is target
        alone = turn_and_flip(square[:, :1], target, torch.Generator().manual_seed(3))[0]
        assert torch.equal(alone, turn_and_flip(square, target, torch.Generator().manual_seed(3))[0][:, :1])
        seen.add(tuple(turned.flatten().tolist()))
    assert len(seen) == 8
