"""The experiments of `calibration.bang` on MultiColorMNIST: pairs of networks, and fine-tuning on colours that tell the class."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from workbench import InputError, Out
from workbench.toolkit import Recipe, predict_all, split_indices, to_tensor

from workbench_calibration.bang_evaluation import Domains, judge_pair, write_judged
from workbench_calibration.bang_training import Trainings, finetuning, fresh_colours, small_network
from workbench_calibration.multicolor import COLOURS, draw_frame, paint, prepare_digits
from workbench_calibration.wise import mean_of_logits

if TYPE_CHECKING:
    from workbench_calibration.bang import Params

PAIR_RATE, TUNING_RATE, BATCH = 0.05, 0.02, 50
MEMBERS = ("model 1", "model 2", "ensemble")


class MultiColor:
    """Both experiments on one draw of the frame; training digits and test digits are apart."""

    def __init__(self, data: Any, params: Params, out: Out) -> None:
        self.params, self.out = params, out
        label = data["label"].to_numpy().astype(np.int64)
        if label.max() >= COLOURS:
            raise InputError("data['label']", expected="ten classes, one for each colour", got=f"label {label.max()}")
        digit = prepare_digits(to_tensor(data["image"]))
        test = params.test_fraction
        shares = {
            "train": 1 - test,
            "selection": test * params.selection_fraction,
            "id": test * (1 - params.selection_fraction),
        }
        parts = split_indices(label, shares, seed=out.seed, argument="data")
        self.digit, self.label, self.parts = digit, label, parts
        self.frame = draw_frame(out.rng("frame"))
        self.colours: dict[str, np.ndarray] = {}
        self.domains = self._draw_domains()
        self.image = self._painted("train", 0.0)
        self.target = torch.from_numpy(label[parts["train"]]).to(out.device)
        self.network = small_network(self.image.shape[2], COLOURS)
        self.recipe = Recipe(epochs=params.epochs, batch_size=BATCH, learning_rate=PAIR_RATE, weight_decay=0.0,
                             schedule="constant")  # fmt: skip
        losses = list(dict.fromkeys(params.losses))
        self.losses, self.work = losses, Trainings(out, params.seeds * (3 + len(losses)))

    def _painted(self, part: str, p: float) -> Tensor:
        rows, name = self.parts[part], f"{part} p={p:g}"
        self.colours[name] = self.frame.colours(self.label[rows], p, self.out.rng(f"colours {name}"))
        return paint(self.digit[rows], self.colours[name])

    def _draw_domains(self) -> Domains:
        """Test digits in the training's colours (`id`), for every p, and without any colour that means something (p = 1)."""
        values = [0.0, *dict.fromkeys(p for p in sorted(self.params.p) if 0 < p < 1), 1.0]
        names = ["id" if p == 0 else f"p={p:g}" for p in values]
        rows = self.parts["id"]
        image = torch.cat([self._painted("id", p) for p in values])
        self.p = np.array(values)
        self.patch_color = np.concatenate([self.colours[f"id p={p:g}"] for p in values])
        return Domains(names, (self.p > 0) & (self.p < 1), image, np.tile(self.label[rows], len(values)),
                       np.repeat(np.arange(len(values)), len(rows)), np.tile(rows, len(values)),
                       (self._painted("selection", 0.0), self.label[self.parts["selection"]]))  # fmt: skip

    def run(self) -> None:
        """Train, judge, write."""
        judged = [self._seed(seed) for seed in range(self.params.seeds)]
        write_judged([one[0] for one in judged], self.domains, self.params.grid, self.params, self.out)
        out = self.out
        out.coordinate("member", list(MEMBERS))
        out.coordinate("split", ["training colours", "every patch random"])
        accuracy = np.stack([one[1] for one in judged], axis=1)
        out.write("pair_accuracy", accuracy)
        out.write("pair_mean", accuracy.mean(1))
        out.write("pair_fft", np.stack([one[2] for one in judged], axis=1))
        out.write("image", self.domains.image)
        out.write("patch_color", self.patch_color.astype(np.uint8))
        out.write("permutation", self.frame.permutation.astype(np.uint8))
        out.write("randomisation", self.p)
        ends = [np.flatnonzero(self.domains.owner == d) for d in (0, len(self.p) - 1)]
        first = [[rows[np.argmax(self.domains.label[rows] == k)] for k in range(COLOURS)] for rows in ends]
        example = self.domains.image[torch.tensor(np.array(first))]
        example[:, np.setdiff1d(np.arange(COLOURS), self.domains.label)] = 0  # digits of fewer classes are welcome
        out.write("example_image", example)

    def _seed(self, seed: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Judged fine-tunings by loss; accuracy of a pair and its ensemble (dataset, member) and FFT share (dataset,)."""
        image = self.image.to(self.out.device)
        logits = [
            predict_all(self.work.train_new(f"pair{member}_{seed}", self.network, image, self.target, self.recipe),
                        self.domains.image, keep_on="cpu")[0]
            for member in (1, 2)
        ]  # fmt: skip
        right = np.stack([(x.argmax(1).numpy() == self.domains.label) for x in (*logits, mean_of_logits(*logits))])
        own = [self.domains.owner == d for d in range(len(self.domains.names))]
        accuracy = np.array([right[:, rows].mean(1) for rows in own])
        fft = np.array([(~right[0] & ~right[1] & right[2])[rows].mean() for rows in own])
        return self._finetuned(seed, image), accuracy, fft

    def _finetuned(self, seed: int, image: Tensor) -> dict[str, Any]:
        params, device = self.params, self.out.device
        few = self.out.rng(f"pretraining digits {seed}").permutation(len(self.parts["train"]))[: params.pre_samples]
        rows = self.parts["train"][few]
        recipe = Recipe(epochs=params.pre_epochs, batch_size=BATCH, learning_rate=PAIR_RATE, weight_decay=0.0,
                        schedule="constant")  # fmt: skip
        pre = self.work.train_new(f"pre_{seed}", self.network, self.digit[rows].to(device),
                                  torch.from_numpy(self.label[rows]).to(device), recipe, fresh_colours(self.frame))  # fmt: skip
        state = {key: value.detach().clone() for key, value in pre.state_dict().items()}
        tuning = Recipe(epochs=params.epochs, batch_size=BATCH, learning_rate=TUNING_RATE, weight_decay=0.0,
                        schedule="constant")  # fmt: skip
        found = {}
        for loss in self.losses:
            own, transform = finetuning(loss, tuning, smoothing=params.ls_eps, alpha=params.mixup_a, classes=COLOURS)
            tuned = self.work.train(
                f"{loss}_{seed}", copy.deepcopy(pre), image, self.target, own, transform, f"tuning {seed}"
            )
            found[loss] = judge_pair(pre, state, tuned.state_dict(), self.domains, params.grid, params, self.image)
        return found
