"""What the tuners of this package share: a wrapper around a module, and the rule that finds the modules to wrap.

A tuner file states a configuration, a layer with its formula, and nothing that is written here.
"""
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from ..errors import PeftkitError


@dataclass
class SiteConfig(PeftConfig):
    """Configuration of a tuner that wraps modules.

    sites: role -> the modules that play it, as a regular expression that fully matches their path or a list of name
    ends. target_modules: the same for the main role alone; it becomes part of sites, because peft saves a whole frozen
    embedding when it finds one in target_modules. modules_to_save: modules trained as they are, as in peft.
    """

    TYPE: ClassVar[str]
    ROLES: ClassVar[tuple[str, ...]]  # the first is the main one

    target_modules: list[str] | str | None = None
    sites: dict[str, list[str] | str] | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType[self.TYPE.upper()]  # the member: transformers asks it for its value
        self.sites = dict(self.sites or {})
        if self.target_modules:
            self.sites[self.ROLES[0]], self.target_modules = self.target_modules, None
        for role in self.sites:
            if role not in self.ROLES:
                raise PeftkitError(f"unknown role {role!r} in sites; accepted: {', '.join(self.ROLES)}")

    def role(self, name: str) -> str | None:
        """The role of the module with this path, or None."""
        for role, pattern in self.sites.items():
            if matches(pattern, name):
                return role


class SiteLayer(nn.Module, BaseTunerLayer):
    """A wrapper around `base_layer`. A subclass names its containers in `adapter_layer_names` (trainable, keyed by
    adapter name) and `other_param_names` (plain dictionaries), fills them in `update_layer`, and defines `forward`."""

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()
    unmergeable = "it is not a linear change of the layer's weights"

    def __init__(self, base_layer: nn.Module, role: str):
        super().__init__()
        self.base_layer, self.role = base_layer, role
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        for name in self.other_param_names:
            setattr(self, name, {})
        self._disable_adapters, self.merged_adapters, self._unmerged = False, [], {}

    def __getattr__(self, name: str):
        """Attributes that models look up on the module that used to stand here."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base_layer", "qweight"):  # of peft's own looks at the layer itself
                raise
            return getattr(super().__getattr__("base_layer"), name)

    def update_layer(self, name: str, config: SiteConfig) -> None:
        """Add the adapter `name` with its initial values."""
        raise NotImplementedError

    @property
    def active(self) -> list[str]:
        """The active adapters that this layer has, none of them when they are disabled or merged."""
        if self._disable_adapters or self.merged_adapters:
            return []
        return [name for name in self.active_adapters if name in getattr(self, self.adapter_layer_names[0])]

    def to_base(self, module: nn.Module) -> nn.Module:
        """`module` on the device of the wrapped one."""
        return module.to(next(self.base_layer.parameters()).device)

    def merged_weights(self, name: str) -> dict[str, Tensor]:
        """The base layer's weights with the adapter folded in. Raises ValueError if that cannot be."""
        raise ValueError(f"{type(self).__name__} cannot be merged: {self.unmergeable}")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the merged weights in the place of the base layer's; a tied partner keeps the old ones."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in getattr(self, self.adapter_layer_names[0]):
                continue
            made: dict[int, nn.Parameter] = {}  # values that are one tensor stay one
            for key, value in self.merged_weights(name).items():
                if safe_merge and not torch.isfinite(value).all():
                    raise ValueError(f"the merged {key} of adapter {name} is not finite")
                owner, leaf = _owner(self.base_layer, key)
                old = getattr(owner, leaf)
                self._unmerged.setdefault(key, old)
                merged = nn.Parameter(value.detach().to(old.dtype), requires_grad=False)
                setattr(owner, leaf, made.setdefault(id(value), merged))
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the base layer's own weights back."""
        for key, old in self._unmerged.items():
            owner, leaf = _owner(self.base_layer, key)
            setattr(owner, leaf, old)
        self._unmerged, self.merged_adapters = {}, []


class SiteModel(BaseTuner):
    """The tuner around a model. A subclass names its `prefix` and its `tuner_layer_cls`."""

    target_module_mapping: dict = {}

    def _prepare_adapter_config(self, peft_config: SiteConfig, model_config: dict) -> SiteConfig:
        return peft_config  # peft's version asks for target_modules, whose place `sites` takes

    def _check_target_module_exists(self, config: SiteConfig, key: str) -> bool:
        saved = config.modules_to_save or ()
        return config.role(key) is not None and not any(f".{name}." in f".{key}." for name in saved)

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key) -> None:
        if isinstance(parent, SiteLayer):
            raise PeftkitError(f"{current_key} lies in a module that is adapted as a whole; accepted: sites that do "
                               "not contain each other")
        if not isinstance(target, self.tuner_layer_cls):
            target = self.tuner_layer_cls(target, config.role(current_key))
            target._active_adapter = [adapter_name]
            setattr(parent, target_name, target)
        target.update_layer(adapter_name, config)

    def _replace_module(self, parent, child_name, new_module, child) -> None:
        setattr(parent, child_name, new_module)  # peft's version copies a .weight that composite modules do not have

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, adapter_names: list[str] | None = None, **kwargs):
        if adapter_names is not None:
            raise PeftkitError(f"{type(self).__name__} takes no adapter_names; accepted: one active adapter a batch")
        yield

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        for container in cls.tuner_layer_cls.adapter_layer_names:
            head, found, tail = key.partition(f".{container}.{adapter_name}")
            if found and (not tail or tail.startswith(".")):
                return f"{head}.{container}{tail}"
        return key


def matches(pattern: list[str] | str, name: str) -> bool:
    """Whether a path fully matches a regular expression, or ends in one of a list of names."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in pattern)


def _owner(module: nn.Module, key: str) -> tuple[nn.Module, str]:
    path, _, leaf = key.rpartition(".")
    return module.get_submodule(path), leaf
