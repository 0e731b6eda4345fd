"""Training a part of the base: everything, one region, the norms, or the biases (BitFit, Zaken et al. 2022)."""
from dataclasses import dataclass

from torch import nn

from ...errors import PeftkitError
from ...models.regions import architecture
from ..method import Method, last_layers
from .checks import require_optional_count
from .tuner import SelectiveConfig, sites_of

NORMS = r"(?:.*\.)?(?i:[^.]*norm)\.(?:weight|bias)"
BIASES = r".*\.bias"


@dataclass(frozen=True)
class WholeOptions:
    """No options: the part is trained whole."""


@dataclass(frozen=True)
class PartOptions:
    """layers: only the last so many blocks of the language model, all of the part unless given."""

    layers: int | None = None

    def __post_init__(self):
        require_optional_count(layers=self.layers)


def language_part(model: nn.Module, layers: int | None, within: str = "") -> str:
    """A regular expression for parameters of the language model, or of its last `layers` blocks, that match `within`.

    Raises PeftkitError for more layers than there are.
    """
    arch = architecture(model)
    where = f"(?={within}$)" if within else ""
    if layers is None:
        return where + arch.region("language")
    total = last_layers(model)
    if layers > total:
        raise PeftkitError(f"layers is {layers}; accepted: 1 to {total}, the blocks of this model")
    return f"{where}(?={arch.region('language')}){arch.last_blocks(range(total - layers, total))}"


def count_selected(model: nn.Module, config: SelectiveConfig) -> int:
    """Parameters that a configuration names, tied ones once."""
    sizes = {}
    for module, paths in sites_of(model, config).items():
        for path in paths:
            owner = model.get_submodule(".".join((module, path)).rpartition(".")[0])
            found = owner._parameters.get(path.rpartition(".")[2])
            sizes[id(found) if found is not None else (module, path)] = (
                found.numel() if found is not None else owner.out_features)
    return sum(sizes.values())


def _regions(*names: str):
    def config(model, options) -> SelectiveConfig:
        arch = architecture(model)
        present = [name for name in names if name in arch.patterns]
        if not present:
            raise PeftkitError(f"{model.config.model_type} models have no {' or '.join(names)}; "
                               f"accepted regions: {', '.join(arch.patterns)}")
        return SelectiveConfig(sites={"weights": "|".join(f"(?:{arch.region(name)})" for name in present)})
    return config


def _language(within: str = ""):
    def config(model, options: PartOptions) -> SelectiveConfig:
        return SelectiveConfig(sites={"weights": language_part(model, options.layers, within)})
    return config


def _bias(model, options: PartOptions) -> SelectiveConfig:
    config = _language(BIASES)(model, options)
    if not sites_of(model, config):  # Llama, Mistral, Gemma and T5 have no biases: new ones on the blocks' layers
        arch = architecture(model)
        layers = arch.targets(arch.attention + arch.mlp) + r"\.bias"
        config = SelectiveConfig(sites={"added_bias": language_part(model, options.layers, layers)})
    return config


def selective_method(name: str, options: type, config, formula: str, source: str, **more) -> Method:
    """A method whose count is that of the parameters which config(model, options) names."""
    return Method(name, options, config, lambda model, given: count_selected(model, config(model, given)),
                  formula=formula, source=source, merges=True, **more)


METHODS = (
    selective_method("full", WholeOptions, _regions("vision", "connector", "language", "head"), "all parameters",
                     "baseline of all five papers", regions=("vision", "connector", "language", "head")),
    selective_method("language", PartOptions, _language(), "all of the language model, or of its last blocks",
                     "Huang et al. 2024"),
    selective_method("connector", WholeOptions, _regions("connector"), "all of the connector", "Zhou et al. 2024",
                     regions=("connector",), intrusive=False,
                     refuses={"t5": "it has no picture and no connector"}),
    selective_method("head", WholeOptions, _regions("head"), "all of the head, untied from the embeddings",
                     "Tian et al. 2024", regions=("head",), intrusive=False),
    selective_method("layernorm", PartOptions, _language(NORMS), "all norms of the language model",
                     "Zhao et al. 2024"),
    selective_method("bias", PartOptions, _bias, "all biases of the language model; where it has none, one an output "
                     "of each layer in its blocks", "BitFit, Zaken et al. 2022"),
)
