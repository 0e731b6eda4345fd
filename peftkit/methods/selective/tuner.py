"""The tuner of every selective method: a float32 copy of chosen weights is trained, the base keeps its own.

So the base can be had back at any time, several copies can be switched, and the difference to the base is known to
rules that need it (SPIDER, L2-SP). The copy computes in the base's precision and merges exactly.
"""
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import PeftkitError
from ..registration import register
from ..tuner import SiteConfig, SiteLayer, SiteModel
from .packing import pack, unpack


@dataclass
class SelectiveConfig(SiteConfig):
    """sites: "weights" names parameters (not modules) by path; "added_bias" names biases, of linear layers that have
    none, which are added and start at zero. rule: the update rule's name, or None, with its options. sparse: save only
    the entries that differ from the base's. kept: their number, a parameter; filled when saved."""

    TYPE: ClassVar[str] = "selective"
    ROLES: ClassVar[tuple[str, ...]] = ("weights", "added_bias")

    rule: str | None = None
    rule_options: dict = field(default_factory=dict)
    sparse: bool = False
    kept: dict[str, int] = field(default_factory=dict)


class Weights(nn.Module):
    """Trained copies of some parameters of `base`, under their path with "/" for "."; packed until first used if the
    numbers of kept entries are given."""

    def __init__(self, copies: dict[str, nn.Parameter], kept: dict[str, int]):
        super().__init__()
        for path, copy in copies.items():
            if path in kept:
                self.register_buffer(f"{_flat(path)}_bits", torch.zeros(-(-copy.numel() // 8), dtype=torch.uint8))
                self.register_buffer(f"{_flat(path)}_values", torch.zeros(kept[path]))
            else:
                self.register_parameter(_flat(path), copy)

    def unpack(self, base: nn.Module, trainable: bool) -> None:
        """Make parameters of what is still packed."""
        for name in [name for name in self._buffers if name.endswith("_bits")]:
            flat = name.removesuffix("_bits")
            dense = unpack(getattr(self, name), getattr(self, f"{flat}_values"), start_of(base, flat.replace("/", ".")))
            delattr(self, name)
            delattr(self, f"{flat}_values")
            self.register_parameter(flat, nn.Parameter(dense, requires_grad=trainable))

    def items(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(path in the base, trained copy)"""
        return ((name.replace("/", "."), parameter) for name, parameter in self.named_parameters())


class SelectiveLayer(SiteLayer):
    """A module, some of whose parameters (its own, or those of modules inside) are trained as copies."""

    adapter_layer_names = ("selective_weights",)

    def add(self, name: str, weights: Weights) -> None:
        """Add the adapter `name`."""
        self.selective_weights[name] = weights

    def weights(self, name: str) -> Weights:
        """The trained copies of an adapter, unpacked."""
        found = self.selective_weights[name]
        found.unpack(self.base_layer, trainable=False)
        return found

    def forward(self, *args, **kwargs):
        active = self.active
        if not active:
            return self.base_layer(*args, **kwargs)
        if len(active) > 1:
            raise PeftkitError(f"adapters {', '.join(active)} are active at once; accepted: one selective adapter")
        copies = {path: copy.to(_dtype(self.base_layer)) for path, copy in self.weights(active[0]).items()}
        return functional_call(self.base_layer, copies, args, kwargs)

    def merged_weights(self, name: str) -> dict[str, Tensor]:
        copies = dict(self.weights(name).items())
        if any(_parameter(self.base_layer, path) is None for path in copies):
            raise ValueError("an added bias cannot be merged: the base has none, and would lose it when saved")
        return copies


class SelectiveModel(SiteModel):
    """The tuner. A module is wrapped where a parameter lies; if modules lie inside it, they are wrapped with it."""

    prefix = "selective_"
    tuner_layer_cls = SelectiveLayer

    def _prepare_model(self, peft_config, model) -> None:
        self._wanted, self._copies = sites_of(model, peft_config), {}

    def _check_target_module_exists(self, config, key: str) -> bool:
        return key in self._wanted

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key) -> None:
        if not isinstance(target, SelectiveLayer):
            target = SelectiveLayer(target, "weights")
            target._active_adapter = [adapter_name]
            setattr(parent, target_name, target)
        copies, kept = {}, {}
        for path in self._wanted[current_key]:
            base = _parameter(target.base_layer, path)
            copies[path] = self._copies.setdefault(id(base) if base is not None else (current_key, path),
                                                   nn.Parameter(start_of(target.base_layer, path)))  # tied: one copy
            if f"{current_key}.{path}" in config.kept:
                kept[path] = config.kept[f"{current_key}.{path}"]
        target.add(adapter_name, Weights(copies, kept))

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names) -> dict:
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        if not config.sparse:
            return found
        config.kept = {}
        packed = {}
        for name, layer in _layers(model, adapter_name):
            for path, copy in layer.weights(adapter_name).items():
                key = f"{name}.selective_weights.{adapter_name}.{_flat(path)}"
                bits, values = pack(copy.detach(), start_of(layer.base_layer, path))
                packed |= {f"{key}_bits": bits, f"{key}_values": values}
                config.kept[f"{name.removeprefix('base_model.model.')}.{path}"] = len(values)
        return packed

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict) -> dict:
        for name, layer in _layers(model, adapter_name):
            for path, copy in layer.weights(adapter_name).items():
                copy.requires_grad_(not config.inference_mode)
                key = f"base_model.model.{name.removeprefix('base_model.model.')}.selective_weights.{_flat(path)}"
                if f"{key}_bits" in state_dict:
                    state_dict[key] = unpack(state_dict.pop(f"{key}_bits"), state_dict.pop(f"{key}_values"),
                                             start_of(layer.base_layer, path))
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
        """W0 in float32, a new tensor only on a base of lower precision."""
        return start_of(self.layer.base_layer, self.path, copy=False)


def tuned(model: nn.Module, adapter_name: str = "default") -> list[Tuned]:
    """Every tensor that a selective method trains, tied ones once. Raises PeftkitError if there is none."""
    found, seen = [], set()
    for name, layer in _layers(model, adapter_name):
        for path, weight in layer.weights(adapter_name).items():
            if id(weight) not in seen:
                seen.add(id(weight))
                found.append(Tuned(f"{name.removeprefix('base_model.model.')}.{path}", weight, layer, path))
    if not found:
        raise PeftkitError("the model holds no selective method; accepted: one injected as full, language, connector, "
                           "head, layernorm, bias, spider or one of its rivals")
    return found


def start_of(base: nn.Module, path: str, copy: bool = True) -> Tensor:
    """The base's own values of a parameter in float32; zeros for a bias that it does not have."""
    found = _parameter(base, path)
    if found is None:
        weight = base.get_parameter("weight")
        return torch.zeros(len(weight), device=weight.device)
    return found.detach().to(torch.float32, copy=copy)


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


def _flat(path: str) -> str:
    return path.replace(".", "/")
