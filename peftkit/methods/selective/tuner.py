"""The tuner of every selective method: a float32 copy of chosen weights is trained, the base keeps its own.

So the base can be had back at any time, several copies can be switched, and the difference to the base is known to
rules that need it (SPIDER, L2-SP). The copy computes in the base's precision and merges exactly.
"""
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import PeftkitError
from ..registration import register
from ..tuner import SiteConfig, SiteLayer, SiteModel
from .packing import pack, unpack
from .weights import Weights, flat


@dataclass
class SelectiveConfig(SiteConfig):
    """sites: "weights" names parameters (not modules) by path; "added_bias" names biases, of linear layers that have
    none, which are added and start at zero; "connector" names the connector's, where it is tuned along. rule: the update rule's name, or None, with its options. sparse: save only
    the entries that differ from the base's. kept: their number, a parameter; it is written when saved, and when loaded
    it gives the sizes of what is in the file."""

    TYPE: ClassVar[str] = "selective"
    ROLES: ClassVar[tuple[str, ...]] = ("weights", "added_bias", "connector")

    rule: str | None = None
    rule_options: dict = field(default_factory=dict)
    sparse: bool = False
    kept: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        self.saved: dict[str, int] = {}  # what `kept` will be in the file: here it would size the next adapter

    def to_dict(self) -> dict:
        return {**super().to_dict(), "kept": self.saved}


class SelectiveLayer(SiteLayer):
    """A module, some of whose parameters (its own, or those of modules inside) are trained as copies."""

    adapter_layer_names = ("selective_weights",)
    other_param_names = ("shared",)  # path -> (layer, path) whose copy a tied parameter uses

    def copies(self, name: str) -> dict[str, nn.Parameter]:
        """Path -> trained copy of an adapter, those of tied parameters included."""
        shared = {path: dict(layer.weights(name).items())[its] for path, (layer, its) in self.shared[name].items()}
        return dict(self.weights(name).items()) | shared

    def weights(self, name: str) -> Weights:
        """The trained copies that this layer itself holds, unpacked."""
        found = self.selective_weights[name]
        for path in found.packed():
            bits, values = found.bits_and_values(path)
            dense = unpack(bits, values if bits.any() else values[:0], self.start(path))  # W0 before anything is loaded
            found.put(path, nn.Parameter(dense, requires_grad=found.trainable))
        return found

    def sparse(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Path -> (bits, values) of an adapter, as they were loaded where they are still packed."""
        weights = self.selective_weights[name]
        return ({path: weights.bits_and_values(path) for path in weights.packed()}
                | {path: pack(copy.detach(), self.start(path)) for path, copy in weights.items()})

    def start(self, path: str) -> Tensor:
        """W0: the base's own values of a parameter in float32, a new tensor only on a base of lower precision; zeros
        for a bias that it does not have."""
        found = self._unmerged.get(path, _parameter(self.base_layer, path))
        if found is None:
            weight = self.base_layer.get_parameter("weight")
            return torch.zeros(len(weight), device=weight.device)
        return found.detach().float()

    def forward(self, *args, **kwargs):
        active = self.active
        if not active:
            return self.base_layer(*args, **kwargs)
        if len(active) > 1:
            raise PeftkitError(f"adapters {', '.join(active)} are active at once; accepted: one selective adapter")
        copies = {path: copy.to(_dtype(self.base_layer)) for path, copy in self.copies(active[0]).items()}
        return functional_call(self.base_layer, copies, args, kwargs, tie_weights=False)

    def merged_weights(self, name: str) -> dict[str, Tensor]:
        if self.merged_adapters:
            raise ValueError(f"adapter {self.merged_adapters[0]} is merged, and {name} would take its place: unmerge "
                             "it first")
        return self.copies(name)


class SelectiveModel(SiteModel):
    """The tuner. A module is wrapped where a parameter lies; if modules lie inside it, they are wrapped with it."""

    prefix = "selective_"
    tuner_layer_cls = SelectiveLayer

    def _prepare_model(self, peft_config, model) -> None:
        self._wanted, self._first = sites_of(model, peft_config), {}

    def _check_target_module_exists(self, config, key: str) -> bool:
        return key in self._wanted

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key) -> None:
        if not isinstance(target, SelectiveLayer):
            target = SelectiveLayer(target, "weights")
            target._active_adapter = [adapter_name]
            setattr(parent, target_name, target)
        copies, kept, target.shared[adapter_name] = {}, {}, {}
        for path in self._wanted[current_key]:
            base = _parameter(target.base_layer, path)
            first = self._first.setdefault(id(base), (target, path)) if base is not None else (target, path)
            if first != (target, path):
                target.shared[adapter_name][path] = first
                continue
            copies[path] = nn.Parameter(target.start(path).clone())
            if f"{current_key}.{path}" in config.kept:
                kept[path] = config.kept[f"{current_key}.{path}"]
        target.selective_weights[adapter_name] = Weights(copies, kept, trainable=not config.inference_mode)

    def inject_adapter(self, model, adapter_name, *args, **kwargs) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self.peft_config[adapter_name].kept = {}

    def _check_merge_allowed(self) -> None:  # peft's version warns of tied weights, which are safe here
        if any("added_bias" in self.peft_config[name].sites for name in self.active_adapters):
            raise ValueError("an added bias cannot be merged: the base has none, and would lose it when saved")

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names) -> dict:
        if not config.sparse:
            return super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        found, config.saved = {}, {}
        for name, layer in _layers(model, adapter_name):
            for path, (bits, values) in layer.sparse(adapter_name).items():
                key = f"{name}.selective_weights.{adapter_name}.{flat(path)}"
                found |= {f"{key}_bits": bits, f"{key}_values": values}
                config.saved[f"{_base_name(name)}.{path}"] = len(values)
        return found

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict) -> dict:
        for name, layer in _layers(model, adapter_name):
            weights = layer.selective_weights[adapter_name]
            for path in weights.packed():
                weights.put(path, nn.Parameter(layer.start(path).clone(), requires_grad=weights.trainable))
            for path, _ in weights.items():
                key = f"base_model.model.{_base_name(name)}.selective_weights.{flat(path)}"
                if f"{key}_bits" in state_dict:
                    state_dict[key] = unpack(state_dict.pop(f"{key}_bits"), state_dict.pop(f"{key}_values"),
                                             layer.start(path))
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


register(SelectiveConfig, SelectiveModel)


@dataclass(frozen=True)
class Tuned:
    """One trained tensor: its path in the base model, the trained copy, and (called) the pre-trained values W0."""

    name: str
    weight: nn.Parameter
    layer: SelectiveLayer
    path: str

    def start(self) -> Tensor:
        """W0 in float32, a new tensor only on a base of lower precision: not to be changed."""
        return self.layer.start(self.path)


def tuned(model: nn.Module, adapter_name: str = "default") -> list[Tuned]:
    """Every tensor that a selective method trains, tied ones once. Raises PeftkitError if there is none."""
    found = [Tuned(f"{_base_name(name)}.{path}", weight, layer, path) for name, layer in _layers(model, adapter_name)
             for path, weight in layer.weights(adapter_name).items()]
    if not found:
        raise PeftkitError("the model holds no selective method; accepted: one injected as full, language, connector, "
                           "head, layernorm, bias, spider or one of its rivals")
    return found


def be_sparse(model: nn.Module, adapter_name: str = "default") -> None:
    """Save the adapter as a sparse difference from now on."""
    model.peft_config[adapter_name].sparse = True


def out_of_use(model: nn.Module) -> set[int]:
    """Identities of the base's parameters that trained copies stand in for, wherever they were used."""
    used = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    replaced = Counter(id(_parameter(layer.base_layer, path)) for layer in model.modules()
                       if isinstance(layer, SelectiveLayer) for name in layer.active for path in layer.copies(name))
    return {parameter for parameter, times in replaced.items() if times == used[parameter]}


def sites_of(model: nn.Module, config: SelectiveConfig) -> dict[str, list[str]]:
    """Module path -> paths below it of the parameters that `config` names."""
    modules = {name.replace(".base_layer", ""): module for name, module in model.named_modules()
               if ".selective_weights" not in name}
    chosen = []
    for name, module in modules.items():
        own = [leaf for leaf, p in module._parameters.items() if p is not None and config.role(f"{name}.{leaf}")]
        if isinstance(module, nn.Linear) and module.bias is None and config.role(f"{name}.bias") == "added_bias":
            own.append("bias")
        chosen += [(name, leaf) for leaf in own]
    containers = {name for name, _ in chosen if next(modules[name].children(), None) is not None}
    sites: dict[str, list[str]] = {}
    for name, leaf in chosen:
        above = next((c for c in sorted(containers) if name == c or name.startswith(f"{c}.")), name)
        sites.setdefault(above, []).append(f"{name}.{leaf}".removeprefix(f"{above}."))
    return sites


def _layers(model: nn.Module, adapter_name: str) -> list[tuple[str, SelectiveLayer]]:
    return [(name, module) for name, module in model.named_modules()
            if isinstance(module, SelectiveLayer) and adapter_name in module.selective_weights]


def _parameter(base: nn.Module, path: str) -> nn.Parameter | None:
    owner, _, leaf = path.rpartition(".")
    return base.get_submodule(owner)._parameters.get(leaf)


def _dtype(base: nn.Module) -> torch.dtype:
    return next(base.parameters()).dtype


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.")
