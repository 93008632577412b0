"""One seeded training loop: equal to plain torch, equal to itself when seeded alike, and equal when killed and resumed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from workbench.errors import CancelledError, InputError
from workbench.toolkit import (
    Recipe,
    cutmix_batch,
    evaluating,
    fit,
    flip_crop,
    learning_rate,
    make_optimizer,
    numpy_generator,
    soft_cross_entropy,
    soft_labels,
)

from unit.recording_out import RecordingOut

OPTIMIZERS = {
    "sgd": Recipe(epochs=4, batch_size=16, optimizer="sgd", learning_rate=0.05, nesterov=True, warmup_epochs=1),
    "adam": Recipe(epochs=4, batch_size=16, optimizer="adam", learning_rate=0.01, schedule="constant"),
    "adamw": Recipe(epochs=4, batch_size=16, optimizer="adamw", learning_rate=0.01, schedule="step", milestones=(2,)),
}


def pictures(count=50, classes=3, seed=0):
    """Noise with a bright class-dependent row: learnable."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 1, 8, 8, generator=generator) * 0.5
    label = torch.arange(count) % classes
    image[torch.arange(count), 0, label * 2] += 0.5
    return image, label


def network(seed=0, dropout=0.2, batch_norm=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(256, 3),
        )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def mixing(image, label, generator):
    image, label = flip_crop(1)(image, label, generator)
    mixed = cutmix_batch(image, 1.0, numpy_generator(generator))
    return mixed.image, soft_labels(label, label[mixed.partner], mixed.label_share, 3)


def plain_torch_training(model, image, label, recipe, generator):
    """The same training written by hand: torch's own optimiser calls, clipping and scheduler formula."""
    optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=recipe.momentum, nesterov=recipe.nesterov,
                                         weight_decay=recipe.weight_decay),
        "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=recipe.weight_decay),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=recipe.weight_decay),
    }[recipe.optimizer](model.parameters())
    losses = []
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, epoch)
        torch.randint(2**62, (), generator=generator)
        total = 0.0
        for index in torch.randperm(len(image), generator=generator).split(recipe.batch_size):
            model.train()
            loss = F.cross_entropy(model(image[index]), label[index], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if recipe.gradient_clip:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
            optimizer.step()
            total += float(loss.detach()) * len(index)
        losses.append(total / len(image))
    model.eval()
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_training_is_that_of_plain_torch(name, clip):
    image, label = pictures()
    recipe = Recipe(**{**vars(OPTIMIZERS[name]), "gradient_clip": clip, "label_smoothing": 0.1})
    ours, theirs = network(dropout=0.0), network(dropout=0.0)
    result = fit(ours, image, label, recipe, generator=seeded())
    losses = plain_torch_training(theirs, image, label, recipe, seeded())
    assert same(ours, theirs)
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-6)
    assert not ours.training


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_seed_gives_the_same_weights_whatever_the_global_generator_is_at(name):
    image, label = pictures()
    models = [network() for _ in range(3)]
    for model, seed, other in zip(models, (0, 0, 1), (5, 6, 5), strict=True):
        torch.manual_seed(other)
        before = torch.get_rng_state()
        fit(model, image, label, OPTIMIZERS[name], generator=seeded(seed), transform=mixing)
        assert torch.equal(torch.get_rng_state(), before)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("cut", [1, 3])
def test_a_killed_training_goes_on_bit_for_bit(name, cut):
    """Dropout, batch norm, augmentation and mixing all draw; history and series must be those of one piece."""
    image, label = pictures()
    arguments = {"transform": mixing, "validation": pictures(20, seed=1), "checkpoint_seconds": 0}
    whole, out = network(), RecordingOut()
    result = fit(whole, image, label, OPTIMIZERS[name], generator=seeded(), out=out, **arguments)

    killed, until = network(), RecordingOut(cancel_after=4 * cut + 1)  # 4 batches an epoch
    with pytest.raises(CancelledError):
        fit(killed, image, label, OPTIMIZERS[name], generator=seeded(), out=until, **arguments)
    assert until.checkpoints[-1]["epoch"] == cut
    again, rest = network(seed=9), RecordingOut(restored=until.checkpoints[-1])
    resumed = fit(again, image, label, OPTIMIZERS[name], generator=seeded(9), out=rest, **arguments)

    assert resumed.resumed_at == cut
    assert same(whole, again)
    assert resumed.history == result.history
    assert rest.logged == out.logged
    for key in out.checkpoints[-1]["optimizer"]["0"]:
        assert torch.equal(out.checkpoints[-1]["optimizer"]["0"][key], rest.checkpoints[-1]["optimizer"]["0"][key])


def test_a_checkpoint_survives_the_stores_own_format():
    from workbench.execution.checkpoint import pack, unpack

    image, label = pictures()
    whole, until = network(), RecordingOut(cancel_after=9)
    fit(whole, image, label, OPTIMIZERS["adamw"], generator=seeded())
    with pytest.raises(CancelledError):
        fit(network(), image, label, OPTIMIZERS["adamw"], generator=seeded(), out=until, checkpoint_seconds=0)
    again = network(seed=3)
    fit(again, image, label, OPTIMIZERS["adamw"], generator=seeded(4), resume=unpack(pack(until.checkpoints[-1]), "x"))
    assert same(whole, again)


def test_a_checkpoint_of_another_training_is_not_taken():
    image, label = pictures()
    out = RecordingOut()
    fit(network(), image, label, OPTIMIZERS["sgd"], generator=seeded(), out=out, checkpoint_seconds=0, name="first")
    other = fit(network(), image, label, OPTIMIZERS["sgd"], generator=seeded(), name="second",
                out=RecordingOut(restored=out.checkpoints[-1]))
    assert other.resumed_at == 0
    with pytest.raises(InputError, match="resume"):
        fit(network(), image, label, OPTIMIZERS["adam"], generator=seeded(), resume=out.checkpoints[-1])


def test_checkpoints_are_kept_by_time_and_never_for_more_than_a_tenth_of_it(monkeypatch):
    """A clock that advances 1 s an epoch, and a store that takes 3 s a checkpoint: every 5 s asked for becomes every 30."""
    from workbench.toolkit import training

    now = [0.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))  # its alone: others have timers

    class Slow(RecordingOut):
        def checkpoint(self, state):
            super().checkpoint(state)
            now[0] += 3

    out, image, label = Slow(), *pictures(16)
    recipe = Recipe(epochs=50, batch_size=16, learning_rate=1e-3)
    fit(network(), image, label, recipe, generator=seeded(), out=out, checkpoint_seconds=5,
        on_epoch=lambda *_: now.__setitem__(0, now[0] + 1))
    assert [state["epoch"] for state in out.checkpoints] == [6, 36, 50]  # the last one for what comes after


def test_history_and_series_hold_what_a_look_from_outside_finds():
    image, label = pictures()
    held_image, held_label = pictures(31, seed=1)
    seen, out, model = [], RecordingOut(), network()

    def look(epoch, module, row):
        with evaluating(module):
            logit = module(held_image)
        seen.append((float(F.cross_entropy(logit, held_label)), float((logit.argmax(1) == held_label).float().mean())))

    result = fit(model, image, label, OPTIMIZERS["sgd"], generator=seeded(), out=out, name="net",
                 validation=(held_image, held_label), on_epoch=look)
    np.testing.assert_allclose(result.history["validation_loss"], [loss for loss, _ in seen], rtol=1e-5)
    np.testing.assert_allclose(result.history["validation_accuracy"], [hits for _, hits in seen])
    for key, values in result.history.items():
        assert out.logged[f"net_{key}"] == dict(enumerate(values, start=1))
    assert result.history["learning_rate"] == tuple(learning_rate(OPTIMIZERS["sgd"], epoch) for epoch in range(4))


def test_uint8_and_float_pictures_train_alike_and_validation_changes_nothing():
    image, label = pictures()
    bytes_ = (image / image.max() * 255).round().to(torch.uint8)
    models = [network() for _ in range(3)]
    fit(models[0], bytes_, label, OPTIMIZERS["adam"], generator=seeded())
    fit(models[1], bytes_.float() / 255, label, OPTIMIZERS["adam"], generator=seeded())
    fit(models[2], bytes_, label, OPTIMIZERS["adam"], generator=seeded(), validation=pictures(9, seed=3))
    assert same(models[0], models[1])
    assert same(models[0], models[2])


def test_a_double_model_trains_in_double_on_float32_pictures():
    image, label = pictures()
    model = network().double()
    fit(model, image, label, OPTIMIZERS["sgd"], generator=seeded())
    assert model[0].weight.dtype == torch.float64


def test_a_lone_last_sample_joins_the_batch_before():
    """Batch norm cannot train on one sample of 1 x 1 features."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    fit(model, *pictures(33), Recipe(epochs=1, batch_size=16), generator=seeded())
    assert int(model[2].num_batches_tracked) == 2


def test_parameters_without_gradient_stay():
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, *pictures(), OPTIMIZERS["adamw"], generator=seeded())
    assert torch.equal(model[0].weight, before)
    with pytest.raises(InputError, match="needs a gradient"):
        fit(network().requires_grad_(False), *pictures(), OPTIMIZERS["sgd"], generator=seeded())


def test_autocast_trains_nearly_the_same_and_keeps_float32_weights():
    image, label = pictures()
    full, half = network(dropout=0.0), network(dropout=0.0)
    a = fit(full, image, label, OPTIMIZERS["adam"], generator=seeded())
    b = fit(half, image, label, OPTIMIZERS["adam"], generator=seeded(), amp=True)
    assert half[0].weight.dtype == torch.float32
    assert not same(full, half)
    assert b.history["loss"][-1] == pytest.approx(a.history["loss"][-1], abs=0.05)


def test_a_loss_of_ones_own_and_float_targets():
    """Linear regression by gradient descent on all samples finds the least-squares solution."""
    generator = seeded()
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + 0.1 * torch.randn(40, 1, generator=generator)
    model = nn.Linear(3, 1, bias=False).double()
    recipe = Recipe(epochs=100, batch_size=40, learning_rate=0.2, momentum=0.0, weight_decay=0.0, schedule="constant")
    result = fit(model, x, y, recipe, generator=seeded(), loss=lambda out, target: ((out - target) ** 2).mean())
    torch.testing.assert_close(model.weight.detach().T, torch.linalg.lstsq(x, y).solution, rtol=0, atol=1e-6)
    assert "accuracy" not in result.history


def test_it_learns():
    image, label = pictures(120)
    model = network()
    result = fit(model, image, label, Recipe(epochs=15, batch_size=20, learning_rate=0.05), generator=seeded(),
                 validation=pictures(60, seed=1))
    assert result.history["validation_accuracy"][-1] > 0.95


def test_divergence_and_bad_input_are_said_in_a_sentence():
    image, label = pictures()
    with pytest.raises(InputError, match=r"recipe.learning_rate: expected a training that stays finite"):
        fit(network(), image, label, Recipe(epochs=3, learning_rate=1e30), generator=seeded())
    with pytest.raises(InputError, match="one label per image"):
        fit(network(), image, label[:-1], Recipe(), generator=seeded())
    with pytest.raises(InputError, match="validation label"):
        fit(network(), image, label, Recipe(), generator=seeded(), validation=(image[:2], label[:3]))
    with pytest.raises(InputError, match="float or uint8"):
        fit(network(), image.long(), label, Recipe(), generator=seeded())
    with pytest.raises(InputError, match="loss of their own"):
        fit(network(), image, label.float(), Recipe(), generator=seeded())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_cross_entropy_is_its_definition(smoothing, weighted):
    generator = seeded()
    logit = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    target = torch.rand(6, 4, generator=generator, dtype=torch.float64).softmax(1)
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64) if weighted else None
    mixed = (1 - smoothing) * target + smoothing / 4
    log_probability = logit - logit.exp().sum(1, keepdim=True).log()
    expected = -(mixed * log_probability * (1 if weight is None else weight)).sum(1)
    values = soft_cross_entropy(logit, target, label_smoothing=smoothing, weight=weight, reduction="none")
    torch.testing.assert_close(values, expected)
    mean = soft_cross_entropy(logit, target, label_smoothing=smoothing, weight=weight)
    torch.testing.assert_close(mean, expected.mean())


def test_hard_labels_are_one_hot_soft_ones():
    logit, label = torch.randn(5, 3, generator=seeded()), torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(
        soft_cross_entropy(logit, label, label_smoothing=0.1),
        soft_cross_entropy(logit, F.one_hot(label).float(), label_smoothing=0.1),
    )
    for wrong in (label[:4], label.float(), torch.ones(5, 4)):
        with pytest.raises(InputError, match="target"):
            soft_cross_entropy(logit, wrong)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_learning_rates_are_those_of_torchs_schedulers(schedule):
    recipe = Recipe(epochs=12, learning_rate=0.3, schedule=schedule, milestones=(4, 9) if schedule == "step" else ())
    optimizer = make_optimizer(nn.Linear(2, 2), recipe)
    scheduler = {
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12),
        "step": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [4, 9], 0.1),
        "constant": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
    }[schedule](optimizer)
    for epoch in range(12):
        assert learning_rate(recipe, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_warm_up_rises_in_equal_steps_to_the_peak_and_the_schedule_starts_there():
    recipe = Recipe(epochs=10, learning_rate=0.4, warmup_epochs=3)
    rates = [learning_rate(recipe, epoch) for epoch in range(10)]
    np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4])
    later = Recipe(epochs=7, learning_rate=0.4)
    np.testing.assert_allclose(rates[3:], [learning_rate(later, epoch) for epoch in range(7)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"optimizer": "lamb"},
        {"learning_rate": float("inf")},
        {"momentum": 1.0},
        {"nesterov": True, "momentum": 0.0},
        {"nesterov": True, "optimizer": "adam"},
        {"weight_decay": -1.0},
        {"schedule": "linear"},
        {"warmup_epochs": 30},
        {"milestones": (3,)},
        {"schedule": "step"},
        {"schedule": "step", "milestones": (5, 3)},
        {"decay": 0.0},
        {"label_smoothing": 1.0},
        {"gradient_clip": 0.0},
    ],
)
def test_recipes_that_contradict_themselves_are_refused(wrong):
    with pytest.raises(InputError, match=r"recipe\.") as failure:
        Recipe(**wrong)
    assert failure.value.argument.removeprefix("recipe.") in {*wrong, "milestones"}


def test_a_recipe_reaches_the_optimiser():
    model = nn.Linear(2, 2)
    group = make_optimizer(model, Recipe(optimizer="adam", momentum=0.8, weight_decay=0.1)).param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.999), 0.1)
    group = make_optimizer(model, Recipe(momentum=0.7, nesterov=True)).param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.7, True, 5e-4)
