"""Published models by the name their library gives them: `timm:NAME`, `torchvision:NAME`, `transformers:NAME`.

Of transformers these are classifiers of pictures and causal language models, by a folder of `save_pretrained` or a name on
the hub. Each library is imported only when asked for. A model keeps what its library needs to build the architecture again
without downloading anything, so that a stored state can be loaded where the weights are not at hand.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from workbench.errors import InputError, MissingDependencyError

__all__ = ["HUBS", "build_hub", "stored_arguments"]

EXTRAS = {"timm": "timm", "torchvision": "torchvision", "transformers": "transformers"}

_FETCHING = frozenset(
    {"pretrained", "weights", "weights_backbone", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}
)
"""Arguments of timm and torchvision that say where weights come from."""
_UNTRUSTED = _FETCHING | {
    "auto_map", "custom_pipelines", "trust_remote_code", "quantization_config", "use_pretrained_backbone", "backbone_kwargs",
}  # fmt: skip
"""Entries of a transformers configuration, at any depth, that name code or weights to fetch; none shapes an architecture."""


def build_hub(
    spec: str, arguments: Mapping[str, Any], *, pretrained: bool, n_classes: int | None = None, argument: str = "model"
) -> nn.Module:
    """A `Model` of the library named before the colon.

    Args:
        spec: `LIBRARY:NAME`; for transformers NAME may be a folder.
        arguments: handed to the library's constructor; `pretrained=False` asks for initial weights.
        pretrained: whether to load the published weights unless `arguments` say otherwise.
        n_classes: outputs of a model with initial weights, unless the arguments say otherwise.
        argument: what the model is called, for messages.

    Raises:
        MissingDependencyError: the library is not installed.
        InputError: it has no such model, or the weights cannot be had.
    """
    library, _, name = spec.partition(":")
    options = dict(arguments)
    wanted = bool(options.pop("pretrained", pretrained))
    if n_classes is not None and not wanted and "config" not in options:
        options.setdefault("num_labels" if library == "transformers" else "num_classes", n_classes)
    try:
        module = importlib.import_module(library)
    except Exception as error:  # a broken installation raises anything, torchvision beside another torch RuntimeError
        raise MissingDependencyError(
            f"{spec} needs {library}, which cannot be imported ({type(error).__name__}: {error}). "
            f"Install it with: pip install 'vision-workbench[{EXTRAS[library]}]'"
        ) from error
    return HUBS[library](module, name, options, wanted, argument)


def stored_arguments(spec: str, arguments: Mapping[str, Any], argument: str = "model") -> dict[str, Any]:
    """The arguments of a stored model, which may be a stranger's: those that build an architecture and fetch nothing.

    Raises:
        InputError: they, or the model's name, ask for weights, files or code from elsewhere.
    """
    library, _, name = spec.partition(":")
    if library == "transformers":  # the configuration says all; the name is only a name
        if set(arguments) != {"config"} or not isinstance(arguments["config"], Mapping):
            raise InputError(argument, expected="a stored configuration alone", got=repr(sorted(arguments)))
        return {"config": _architecture(arguments["config"], argument)}
    if asking := sorted(_FETCHING & set(arguments)):
        raise InputError(argument, expected=f"a stored architecture of {spec} alone", got=", ".join(asking))
    if ":" in name:  # timm takes hf-hub:OWNER/NAME and local-dir:PATH
        hint = "Pass the network to load it into: into=my_network."
        raise InputError(argument, expected=f"a model of {library} itself", got=repr(name), hint=hint)
    return dict(arguments)


def _architecture(config: Any, argument: str) -> Any:
    if isinstance(config, list | tuple):
        return [_architecture(item, argument) for item in config]
    if not isinstance(config, Mapping):
        return config
    for key in ("architecture", "backbone"):  # what transformers hands on to timm
        if ":" in str(config.get(key, "")):
            raise InputError(argument, expected=f"{key}: a model of the library itself", got=repr(config[key]))
    # An implementation of attention or experts may be a repository of kernels.
    kept = {key: item for key, item in config.items() if key not in _UNTRUSTED and "_implementation" not in str(key)}
    return {key: _architecture(item, argument) for key, item in kept.items()}


def _model(network: nn.Module, **metadata: Any) -> nn.Module:
    from workbench.subjects.models import Model  # the module that imports this one

    return Model(network, **metadata)


def _timm(timm: Any, name: str, options: Mapping[str, Any], pretrained: bool, argument: str) -> nn.Module:
    if "/" not in name and not timm.is_model(name):
        raise _unknown(argument, f"timm:{name}", timm.list_models())
    network = _built(lambda: timm.create_model(name, pretrained=pretrained, **options), f"timm:{name}", argument)
    data = timm.data.resolve_data_config({}, model=network)
    channels, mean, std = options.get("in_chans", 3), data["mean"], data["std"]
    if len(mean) != channels:  # as timm averages the first layer's weights for other numbers of channels
        mean, std = sum(mean) / len(mean), sum(std) / len(std)
    return _model(
        network,
        mean=mean,
        std=std,
        input_shape=(channels, *data["input_size"][1:]),
        factory=f"timm:{name}",
        factory_arguments={key: value for key, value in options.items() if key not in _FETCHING},
    )


def _torchvision(torchvision: Any, name: str, options: Mapping[str, Any], pretrained: bool, argument: str) -> nn.Module:
    models = torchvision.models
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(argument, f"torchvision:{name}", known)
    published = models.get_model_weights(name).DEFAULT
    weights = published if pretrained else None
    network = _built(lambda: models.get_model(name, weights=weights, **options), f"torchvision:{name}", argument)
    transform = published.transforms()
    size, classes = int(transform.crop_size[0]), published.meta["categories"] if pretrained else ()
    return _model(
        network,
        mean=transform.mean,
        std=transform.std,
        input_shape=(3, size, size),
        classes=classes,
        factory=f"torchvision:{name}",
        factory_arguments=options,
    )


class NextTokenLogits(nn.Module):
    """A causal language model of transformers as a function of token ids: (n, token) -> logits (n, token, vocabulary)."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, token_id: Tensor) -> Tensor:
        """Logits alone; nothing is cached between calls."""
        logits: Tensor = self.language_model(input_ids=token_id, use_cache=False).logits
        return logits


class LogitsOf(nn.Module):
    """An image classifier of transformers as a function of pictures: (n, channel, y, x) -> logits (n, class)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits alone."""
        logits: Tensor = self.classifier(pixel_values=pixel_values).logits
        return logits


def _transformers(library: Any, name: str, options: Mapping[str, Any], pretrained: bool, argument: str) -> nn.Module:
    spec = f"transformers:{name}"
    if asking := sorted({"trust_remote_code", "auto_map"} & set(options)):
        raise InputError(argument, expected="a model whose code transformers brings itself", got=", ".join(asking))
    processing: Mapping[str, Any] = {}
    stored = dict(options["config"]) if "config" in options else None  # of a stored model
    if stored is not None:
        config = _built(lambda: library.AutoConfig.for_model(**stored), spec, argument)
    else:
        # Asked for in so many words: without it the library would ask at the terminal.
        config = _built(lambda: library.AutoConfig.from_pretrained(name, trust_remote_code=False), spec, argument)
    if type(config) in getattr(library, "MODEL_FOR_CAUSAL_LM_MAPPING", ()):
        return _language_model(library, spec, config, options, pretrained and stored is None, argument)
    auto = library.AutoModelForImageClassification
    if stored is not None:
        network = _built(lambda: auto.from_config(config), spec, argument)
    elif pretrained:
        network = _built(lambda: auto.from_pretrained(name, **options), spec, argument)
        try:
            processing, _ = library.ImageProcessingMixin.get_image_processor_dict(name)
        except OSError as error:
            raise InputError(
                argument,
                expected=f"a preprocessor_config.json with {spec}",
                got="none",
                hint="Without it nobody knows how its pictures are normalised.",
            ) from error
    else:
        config = _built(lambda: library.AutoConfig.from_pretrained(name, **options), spec, argument)
        network = _built(lambda: auto.from_config(config), spec, argument)
    configuration = _json(network.config.to_dict())
    normalised = processing.get("do_normalize", bool(processing))
    names = network.config.id2label
    return _model(
        LogitsOf(network),
        mean=processing["image_mean"] if normalised else (),
        std=processing["image_std"] if normalised else (),
        input_shape=_transformers_shape(network.config, processing),
        classes=[names[i] for i in sorted(names)],
        factory=spec,
        factory_arguments={"config": configuration},
    )


def _language_model(
    library: Any, spec: str, config: Any, options: Mapping[str, Any], pretrained: bool, argument: str
) -> nn.Module:
    auto, name = library.AutoModelForCausalLM, spec.partition(":")[2]
    # Options of image classifiers do not concern a model of language.
    options = {key: value for key, value in options.items() if key not in ("config", "num_labels")}
    if pretrained:
        # safetensors: the older format of weights is a pickle.
        network = _built(lambda: auto.from_pretrained(name, use_safetensors=True, **options), spec, argument)
    else:
        if options:
            config = _built(lambda: library.AutoConfig.from_pretrained(name, **options), spec, argument)
        network = _built(lambda: auto.from_config(config), spec, argument)
    arguments = {"config": _json(network.config.to_dict())}
    return _model(NextTokenLogits(network), factory=spec, factory_arguments=arguments)


def _transformers_shape(config: Any, processing: Mapping[str, Any]) -> tuple[int, int, int] | None:
    size = processing.get("crop_size") or processing.get("size") or getattr(config, "image_size", None)
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    return (int(getattr(config, "num_channels", 3)), int(size), int(size)) if isinstance(size, int) else None


def _json(value: Any) -> Any:
    """The JSON values of a configuration: dtypes and the like are left out, keys become text."""
    if isinstance(value, Mapping):
        kept = {str(key): _json(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else None


def _built(build: Callable[[], Any], spec: str, argument: str) -> Any:
    try:
        return build()
    except TypeError as error:
        raise InputError(argument, expected=f"arguments that {spec} accepts", got=str(error)) from error
    except ImportError as error:  # parts of a library are imported when they are used, and with them what they need
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        raise MissingDependencyError(
            f"{spec} needs a part of {spec.partition(':')[0]} that cannot be imported ({type(root).__name__}: {root})"
        ) from error
    except Exception as error:  # no network, no such repository, a damaged download: each library has its own
        reason = str(error).strip().splitlines()[:1]
        hint = f"Without a connection give a file ({spec}@FILE) or take initial weights ({spec}(pretrained=False))."
        if _refused(error):
            hint = (
                "If it is private, or its terms are to be accepted on its page first: log in with `hf auth login`, "
                "or set HF_TOKEN."
            )
        raise InputError(
            argument,
            expected=f"{spec} with its published weights",
            got=f"{type(error).__name__}: {reason[0].rstrip('.') if reason else ''}",
            hint=hint,
        ) from error


def _refused(error: BaseException) -> bool:
    """Whether the hub knows the name only for people who have logged in: repositories behind a gate, private ones, wrong names.

    transformers wraps the hub's errors into its own, with the first in the chain of causes.
    """
    chain: BaseException | None = error
    while chain is not None:
        status = getattr(getattr(chain, "response", None), "status_code", None)
        if status in (401, 403) or type(chain).__name__ in ("GatedRepoError", "RepositoryNotFoundError"):
            return True
        chain = chain.__cause__
    return False


def _unknown(argument: str, spec: str, known: Sequence[str]) -> InputError:
    library, _, name = spec.partition(":")
    near = difflib.get_close_matches(name, known, n=3)
    return InputError(
        argument,
        expected=f"one of {len(known)} models of {library}",
        got=repr(name),
        hint=f"Did you mean {' or '.join(near)}?" if near else "",
    )


HUBS: Mapping[str, Callable[[Any, str, Mapping[str, Any], bool, str], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}
