"""A classifier without training from a vision-language model: its head are the mean text embeddings of class names in templates.

Radford et al. (2021), arXiv 2103.00020, section 3.1.4, and the form in which wise-ft fine-tunes it: the image encoder followed by
a linear layer of which row k is the unit mean embedding of class k, times the logit scale. Fine-tuning it end to end and
averaging with where it began is WiSE-FT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from workbench import InputError

TEMPLATES = ("a photo of a {}.", "a blurry photo of a {}.", "a drawing of a {}.", "a photo of the small {}.")


class ZeroShotClassifier(nn.Module):
    """Unit image features and a linear head without bias: images, normalised as the encoder wants them, -> (sample, class)."""

    def __init__(self, encoder: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head.weight.data.copy_(weight)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        logit: Tensor = self.head(normalize(self.encoder(image), dim=1))
        return logit


def text_head(
    encode_text: Callable[[Tensor], Tensor],
    tokenize: Callable[[Sequence[str]], Tensor],
    classes: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    scale: float = 1.0,
) -> Tensor:
    """Weight of the head, (class, feature): unit embeddings of the filled templates, their mean, unit again, times `scale`.

    Args:
        encode_text: tokens -> (text, feature).
        tokenize: texts -> tokens.
        classes: names.
        templates: sentences with one {} for the name.
        scale: of the logits: exp of CLIP's `logit_scale`, about 100.

    Raises:
        InputError: no class, no template, or one without {}.
    """
    if not classes or not templates or any("{}" not in template for template in templates):
        raise InputError(
            "templates", expected="class names, and sentences that hold {}", got=f"{templates!r}, {len(classes)} names"
        )
    rows = []
    with torch.no_grad():
        for name in classes:
            unit = normalize(encode_text(tokenize([template.format(name) for template in templates])), dim=1)
            rows.append(normalize(unit.mean(0), dim=0))
    return scale * torch.stack(rows)


def zero_shot_classifier(
    clip: Any, tokenize: Callable[[Sequence[str]], Tensor], classes: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> ZeroShotClassifier:
    """The classifier of an open_clip model, for `calibration.bang`.

        clip, _, _ = open_clip.create_model_and_transforms("ViT-B-32", pretrained="openai")
        network = zero_shot_classifier(clip, open_clip.get_tokenizer("ViT-B-32"), ["cat", "dog"])
        model = workbench.Model(network, mean=clip.visual.image_mean, std=clip.visual.image_std)

    Args:
        clip: has `visual` (images -> features), `encode_text` and `logit_scale`, as open_clip's models do.
        tokenize: the model's tokenizer.
        classes: names.
        templates: sentences with {}.
    """
    weight = text_head(clip.encode_text, tokenize, classes, templates, float(clip.logit_scale.detach().exp()))
    return ZeroShotClassifier(clip.visual, weight)
