"""The parts of DisCoPatch: grouped batch norm, networks, losses, steps, patches, MS-SSIM."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from workbench import InputError

from workbench_detection import discopatch_networks as networks
from workbench_detection import discopatch_training as training
from workbench_detection.discopatch import PRESETS, DisCoPatch, resolve
from workbench_detection.discopatch_scoring import principal_components
from workbench_detection.discopatch_training import Settings, Trainer

TINY = Settings(
    patch=8, patches_train=4, patches_test=4, widths=(4, 8), latent=3, images_per_batch=2, steps=2, learning_rate=1e-3
)
BEFORE_NORM = {f"{part}.{layer}.bias" for part in ("encoder", "decoder") for layer in (0, 3)}
BEFORE_NORM |= {"convolutions.0.bias", "convolutions.1.bias"}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def discriminator(norm="batch", widths=(4, 8), patch=8, seed=0):
    torch.manual_seed(seed)
    network = networks.Discriminator(3, patch, widths, norm)
    for layer in network.norms:
        nn.init.normal_(layer.weight, 1, 0.3)
        nn.init.normal_(layer.bias, 0, 0.3)
    return network


# --- grouped batch normalisation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 3, 16])
def test_grouped_batch_norm_equals_each_group_alone_through_batchnorm_in_train_mode(group):
    layer = nn.BatchNorm2d(5, track_running_stats=False).train()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    activation = 3 * noise(4 * group, 5, 6, 7) + 2
    grouped, mean, variance = networks.grouped_batch_norm(activation, group, layer.weight, layer.bias)
    alone = torch.cat([layer(part) for part in activation.split(group)])
    assert (grouped - alone).abs().max() < 1e-5
    first = activation[:group].transpose(0, 1).flatten(1)
    assert mean[0] == pytest.approx(first.mean(1), abs=1e-5)
    assert variance[0] == pytest.approx(first.var(1, correction=0), rel=1e-5)
    assert mean.shape == variance.shape == (4, 5)


def test_the_discriminator_scores_images_together_as_it_does_one_by_one():
    network = discriminator()
    patches = noise(5 * 6, 3, 8, 8)
    together, statistics = network.score(patches, group_size=6)
    alone = torch.cat([network(part) for part in patches.split(6)])
    assert (together - alone).abs().max() < 1e-5
    assert [tuple(mean.shape) for mean, _ in statistics] == [(5, 4), (5, 8)]
    assert (network(patches) - alone).abs().max() > 1e-2  # one pooled batch is another thing


def test_the_score_of_an_image_does_not_depend_on_its_neighbours():
    network, images = discriminator(), noise(7, 3, 12, 12)
    positions = training.patch_positions((7, 5), 12, 12, 8, np.random.default_rng(0))
    every, _ = training.patch_probabilities(network, images, positions)
    one, _ = training.patch_probabilities(network, images[3:4], positions[3:4])
    assert (every[3] - one[0]).abs().max() < 1e-6
    swapped = images.clone()
    swapped[0] = 5.0
    mixed, _ = training.patch_probabilities(network, images, positions, group=False)
    mixed_swapped, _ = training.patch_probabilities(network, swapped, positions, group=False)
    assert (mixed[3] - mixed_swapped[3]).abs().max() > 1e-4


def test_forward_passes_of_many_blocks_are_joined(monkeypatch):
    network, images = discriminator(), noise(7, 3, 12, 12)
    positions = training.patch_positions((7, 5), 12, 12, 8, np.random.default_rng(0))
    whole, statistics = training.patch_probabilities(network, images, positions)
    monkeypatch.setattr(training, "PATCHES_PER_FORWARD", 11)
    blocks, block_statistics = training.patch_probabilities(network, images, positions)
    assert torch.allclose(whole, blocks, atol=1e-6)
    assert torch.allclose(statistics[1][1], block_statistics[1][1], atol=1e-6)
    assert network.training


@pytest.mark.parametrize("norm", ["group", "instance", "running"])
def test_the_ablations_normalise_each_patch_by_itself_when_scoring(norm):
    network, patches = discriminator(norm).eval(), noise(6, 3, 8, 8)
    scores, statistics = network.score(patches, group_size=3)
    assert torch.allclose(scores[2:3], network.score(patches[2:3], group_size=1)[0], atol=1e-5)
    assert statistics == []
    if norm == "instance":
        hidden = functional.instance_norm(network.convolutions[0](patches), eps=1e-5)
        expected = hidden * network.norms[0].weight[:, None, None] + network.norms[0].bias[:, None, None]
        assert torch.allclose(network.norms[0](network.convolutions[0](patches)), expected, atol=1e-5)


# --- networks ------------------------------------------------------------------------------------------------------


def test_the_papers_discriminator_has_25_megabytes_and_its_shapes():
    paper = PRESETS["paper"]
    with torch.device("meta"):
        vae = networks.VariationalAutoencoder(3, paper["patch"], paper["widths"], paper["latent"])
        network = networks.Discriminator(3, paper["patch"], paper["widths"])
        patches = torch.empty(2, 3, 64, 64)
        reconstruction, mean, log_variance = vae(patches, torch.empty(2, 1024))
        assert reconstruction.shape == patches.shape
        assert mean.shape == log_variance.shape == (2, 1024)
        assert network(patches).shape == (2,)
    convolutions = 9 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024)
    biases_and_norms = 3 * (128 + 256 + 512 + 1024)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == convolutions + biases_and_norms + 4 * 4 * 1024 + 1
    assert 4 * count / 1e6 == pytest.approx(25, abs=0.2)


def test_the_discriminator_is_the_official_stack_of_layers():
    """Convolution, batch norm without running statistics, leaky ReLU; flatten, linear (and a sigmoid outside)."""
    network, patches = discriminator(), noise(6, 3, 8, 8)
    hidden = patches
    for convolution, norm in zip(network.convolutions, network.norms, strict=True):
        hidden = functional.conv2d(hidden, convolution.weight, convolution.bias, stride=2, padding=1)
        hidden = functional.batch_norm(hidden, None, None, norm.weight, norm.bias, training=True, eps=1e-5)
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    assert torch.allclose(network(patches), hidden.flatten(1) @ network.head.weight[0] + network.head.bias, atol=1e-5)


def test_the_code_is_sampled_by_the_reparameterisation():
    torch.manual_seed(0)
    vae = networks.VariationalAutoencoder(3, 8, (4, 8), 3).eval()
    patches, eps = noise(2, 3, 8, 8), noise(2, 3, seed=1)
    reconstruction, mean, log_variance = vae(patches, eps)
    assert torch.allclose(reconstruction, vae.decode(mean + eps * log_variance.exp().sqrt()), atol=1e-6)
    assert reconstruction.abs().max() <= 1


# --- losses --------------------------------------------------------------------------------------------------------


def test_kl_divergence_is_that_of_torch_distributions():
    mean, log_variance = noise(5, 3), noise(5, 3, seed=1)
    normal = torch.distributions.Normal(mean, log_variance.mul(0.5).exp())
    standard = torch.distributions.Normal(torch.zeros(5, 3), torch.ones(5, 3))
    expected = torch.distributions.kl_divergence(normal, standard).sum(1).mean()
    assert float(networks.kullback_leibler(mean, log_variance)) == pytest.approx(float(expected), rel=1e-5)


def test_both_losses_by_hand():
    def d(logit):
        return 1 / (1 + math.exp(-logit))

    real, generated, reconstructed = ([0.3, -1.0], [0.5, 2.0], [-0.7, 0.1])
    parts = {
        "real": -(math.log(d(0.3)) + math.log(d(-1.0))) / 2,
        "generated": -(math.log(1 - d(0.5)) + math.log(1 - d(2.0))) / 2,
        "reconstructed": -(math.log(1 - d(-0.7)) + math.log(1 - d(0.1))) / 2,
    }
    expected = {
        "both": 0.5 * (parts["real"] + 0.5 * parts["generated"] + 0.5 * parts["reconstructed"]),
        "generations": 0.5 * (parts["real"] + parts["generated"]),
        "reconstructions": 0.5 * (parts["real"] + parts["reconstructed"]),
    }
    for negatives, value in expected.items():
        loss, _ = networks.discriminator_loss(*map(torch.tensor, (real, generated, reconstructed)), negatives)
        assert float(loss) == pytest.approx(value, rel=1e-6), negatives
    patches, reconstruction = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, -0.5]])
    mean, log_variance = torch.tensor([[2.0]]), torch.tensor([[0.0]])
    loss, shown = networks.generator_loss(
        patches,
        reconstruction,
        mean,
        log_variance,
        torch.tensor([0.2]),
        torch.tensor([-0.4]),
        kl_weight=0.1,
        reconstruction_weight=0.01,
        generation_weight=0.02,
    )
    vae = 0.25 + 0.1 * 2.0  # mean square error; KL of N(2, 1) is 2
    assert float(shown["vae"]) == pytest.approx(vae, rel=1e-6)
    assert float(loss) == pytest.approx(vae - 0.01 * math.log(d(0.2)) - 0.02 * math.log(d(-0.4)), rel=1e-6)


def test_one_step_equals_two_optimiser_steps_written_out():
    """Official order: VAE step through D, then D step on the same, detached samples in three separate batches."""
    torch.manual_seed(0)
    trainer, twin = (Trainer(3, TINY, torch.device("cpu")) for _ in range(2))
    twin.vae.load_state_dict(trainer.vae.state_dict())
    twin.discriminator.load_state_dict(trainer.discriminator.state_dict())
    patches, eps, code = noise(8, 3, 8, 8).clamp(-1, 1), noise(8, 3, seed=1), noise(8, 3, seed=2)
    values = trainer.step(patches, eps, code)

    bce, one, zero = nn.BCELoss(), torch.ones(8), torch.zeros(8)
    vae, judge = twin.vae, lambda batch: torch.sigmoid(twin.discriminator(batch))
    vae_optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    optimizer = torch.optim.Adam(twin.discriminator.parameters(), lr=1e-3)
    reconstruction, mean, log_variance = vae(patches, eps)
    generation = vae.decode(code)
    divergence = torch.mean(-0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp(), dim=1))
    error = functional.mse_loss(patches, reconstruction) + 1e-4 * divergence
    fooled = bce(judge(reconstruction), one), bce(judge(generation), one)
    (error + 1e-3 * fooled[0] + 1e-3 * fooled[1]).backward()
    vae_optimizer.step()
    optimizer.zero_grad()
    real, fake = bce(judge(patches), one), bce(judge(generation.detach()), zero)
    rebuilt = bce(judge(reconstruction.detach()), zero)
    ((real + 0.5 * fake + 0.5 * rebuilt) / 2).backward()
    optimizer.step()

    expected = {"vae": error, "recon_adv": fooled[0], "gen_adv": fooled[1]}
    expected |= {"d_real": real, "d_gen": fake, "d_recon": rebuilt}
    for name, value in expected.items():
        assert values[name] == pytest.approx(float(value.detach()), rel=1e-4), name
    for mine, other in ((trainer.vae, twin.vae), (trainer.discriminator, twin.discriminator)):
        for (name, value), reference in zip(mine.named_parameters(), other.parameters(), strict=True):
            if name in BEFORE_NORM:
                continue  # a bias before batch norm has a gradient of rounding errors, which Adam blows up
            assert torch.allclose(value, reference, atol=2e-4), name


def test_a_vae_step_leaves_the_discriminator_alone_and_the_other_way_round():
    torch.manual_seed(0)
    trainer = Trainer(3, TINY, torch.device("cpu"))
    patches = noise(8, 3, 8, 8)

    def states():
        return [
            {name: value.clone() for name, value in network.named_parameters()}
            for network in (trainer.vae, trainer.discriminator)
        ]

    before = states()
    reconstruction, generation, _ = trainer.vae_step(patches, noise(8, 3), noise(8, 3, seed=1))
    between = states()
    trainer.discriminator_step(patches, reconstruction, generation)
    after = states()
    assert all(torch.equal(before[1][name], between[1][name]) for name in before[1])
    assert all(torch.equal(between[0][name], after[0][name]) for name in after[0])
    assert not torch.equal(before[0]["decoder.0.weight"], between[0]["decoder.0.weight"])
    assert not torch.equal(between[1]["head.weight"], after[1]["head.weight"])


@pytest.mark.parametrize(("negatives", "expected"), [("both", 0.5), ("generations", 1.0), ("reconstructions", 0.0)])
def test_the_accuracy_on_made_up_patches_counts_those_that_d_is_trained_on(monkeypatch, negatives, expected):
    """A D that answers with the mean of a patch: right about all (dark) generations, about no (bright) reconstruction."""
    trainer = Trainer(3, dataclasses.replace(TINY, negatives=negatives), torch.device("cpu"))
    gain = trainer.discriminator.head.weight.sum() * 0 + 1  # tied to a parameter, so that there is a gradient
    monkeypatch.setattr(trainer.discriminator, "forward", lambda patches: gain * patches.mean((1, 2, 3)))
    dark, bright = torch.full((4, 3, 8, 8), -0.5), torch.full((4, 3, 8, 8), 0.5)
    values = trainer.discriminator_step(bright, reconstruction=bright, generation=dark)
    assert float(values["fake_accuracy"]) == expected
    assert float(values["real_accuracy"]) == 1


# --- MS-SSIM -------------------------------------------------------------------------------------------------------


def pictures(side, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    first = functional.interpolate(
        torch.rand(2, channels, side // 4, side // 4, generator=generator), size=side, mode="bicubic"
    )
    first = first.clamp(0, 1)
    return first, (first + 0.1 * torch.randn(first.shape, generator=generator)).clamp(0, 1)


def test_ms_ssim_equals_pytorch_msssim_on_five_scales():
    peer = pytest.importorskip("pytorch_msssim")
    first, second = pictures(128)
    expected = peer.ms_ssim(first, second, data_range=1.0, size_average=False, win_size=7, win_sigma=1.5)
    assert networks.ms_ssim(first, second) == pytest.approx(expected, abs=1e-5)


def test_ms_ssim_of_small_patches_uses_the_scales_that_fit():
    peer = pytest.importorskip("pytorch_msssim")
    first, second = pictures(8)
    expected = peer.ssim(first, second, data_range=1.0, size_average=False, win_size=7, win_sigma=1.5)
    # one scale carries the whole exponent, the sum of the five (1.0001)
    assert networks.ms_ssim(first, second) == pytest.approx(expected ** sum(networks.SCALE_WEIGHTS), abs=2e-3)
    for side in (8, 16, 32, 64):
        one, two = pictures(side)
        assert networks.ms_ssim(one, one) == pytest.approx([1, 1], abs=1e-5)
        assert bool((networks.ms_ssim(one, two) < 0.999).all())


def test_ms_ssim_has_finite_gradients_even_for_opposite_pictures():
    first, _ = pictures(16)
    opposite = (1 - first).requires_grad_()
    networks.reconstruction_error(first * 2 - 1, opposite * 2 - 1, "ms_ssim").backward()
    assert bool(opposite.grad.isfinite().all())


def test_a_step_with_ms_ssim_reports_one_minus_it():
    torch.manual_seed(0)
    trainer = Trainer(3, Settings(**{**vars(TINY), "reconstruction_loss": "ms_ssim"}), torch.device("cpu"))
    patches, eps = noise(8, 3, 8, 8).tanh(), noise(8, 3, seed=1)
    reconstruction, mean, log_variance = trainer.vae(patches, eps)
    similarity = networks.ms_ssim(reconstruction * 0.5 + 0.5, patches * 0.5 + 0.5).mean()
    expected = 1 - similarity + 1e-4 * networks.kullback_leibler(mean, log_variance)
    assert trainer.step(patches, eps, noise(8, 3, seed=2))["vae"] == pytest.approx(float(expected.detach()), rel=1e-5)


# --- patches, scores, maps -----------------------------------------------------------------------------------------


def test_patches_are_cut_where_the_positions_say():
    images = torch.arange(2 * 3 * 10 * 12, dtype=torch.float32).reshape(2, 3, 10, 12)
    positions = training.patch_positions((2, 5), 10, 12, 4, np.random.default_rng(1))
    patches = training.crop_patches(images, positions, 4).reshape(2, 5, 3, 4, 4)
    for image in range(2):
        for number, (left, top) in enumerate(positions[image]):
            expected = images[image, :, top : top + 4, left : left + 4]
            assert torch.equal(patches[image, number], expected)


def test_positions_are_uniform_over_all_places_where_a_patch_fits():
    positions = training.patch_positions((20_000,), 9, 7, 5, np.random.default_rng(0))
    counts = np.zeros((5, 3))
    np.add.at(counts, (positions[:, 1], positions[:, 0]), 1)
    expected = 20_000 / 15
    assert ((counts - expected) ** 2 / expected).sum() < 36.1  # chi-square of 14 degrees of freedom, 99.9 %


def test_the_image_score_is_one_minus_the_mean_of_d():
    score = training.image_score(torch.tensor([[0.25, 0.75], [1.0, 0.5]]))
    assert score.tolist() == [0.5, 0.25]


def test_the_heat_map_is_the_mean_of_the_patches_over_a_pixel():
    scores, positions = np.array([0.2, 0.6]), np.array([[0, 0], [1, 1]])
    heat = training.heat_map(scores, positions, 2, 3, 4)
    expected = [[0.2, 0.2, 0.4, 0.4], [0.2, 0.4, 0.6, 0.4], [0.4, 0.6, 0.6, 0.4]]
    assert heat == pytest.approx(np.array(expected))


def test_principal_components_are_scikit_learns_of_the_reference():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1]
    reference = np.arange(40) < 25
    expected = PCA(2).fit(values[reference]).transform(values)
    found = principal_components(values, reference)
    assert np.abs(found) == pytest.approx(np.abs(expected))


# --- parameters ----------------------------------------------------------------------------------------------------


def test_the_presets_and_what_overrides_them():
    assert resolve(DisCoPatch.Params(), 256, 256).widths == (128, 256, 512, 1024)
    assert resolve(DisCoPatch.Params(), 32, 32).patch == 16
    chosen = resolve(DisCoPatch.Params(preset="fast", steps=7, negatives="generations"), 32, 40)
    assert (chosen.steps, chosen.negatives, chosen.latent) == (7, "generations", PRESETS["fast"]["latent"])
    paper = resolve(DisCoPatch.Params(preset="paper"), 256, 256)
    assert (paper.kl_weight, paper.reconstruction_weight, paper.generation_weight) == (1e-4, 1e-3, 1e-3)
    assert (paper.patches_train, paper.patches_test, paper.learning_rate) == (48, 64, 8.5e-5)


@pytest.mark.parametrize(
    ("params", "argument"),
    [
        ({"patch": 32}, "patch"),
        ({"patch": 12}, "widths"),
        ({"patch": 8, "widths": (4, 4, 4)}, "widths"),
        ({"widths": (48, 64), "norm": "group"}, "widths"),
        ({"widths": (0, 64)}, "widths"),
        ({"patch": 4, "widths": (4,), "reconstruction_loss": "ms_ssim"}, "patch"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(params, argument):
    with pytest.raises(InputError) as caught:
        resolve(DisCoPatch.Params(**params), 32, 32)
    assert caught.value.argument == argument
