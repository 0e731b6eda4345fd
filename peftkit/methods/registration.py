"""Make a new tuner known to peft: the one place that touches peft's closed enum of method names.

peft has `register_peft_method`, but it accepts only names that are members of `PeftType` already. Call `register`
at import; afterwards peft and transformers save, load and list the method like their own.
"""
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.peft_types import PeftType, register_peft_method


def register(config_class: type[PeftConfig], tuner_class: type[BaseTuner]) -> None:
    """Register a tuner under its configuration's TYPE; a second call with the same classes changes nothing.

    Reloading a tuner's module puts its new classes in the old ones' place. Raises RuntimeError if peft already has
    another method of that name, or an enum that cannot be extended.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    name = config_class.TYPE
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(name.upper())
    if known is not None and known.__module__ == config_class.__module__:
        PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[name.upper()]] = config_class
        PEFT_TYPE_TO_TUNER_MAPPING[PeftType[name.upper()]] = tuner_class
        return
    if known is not None or name.upper() in PeftType.__members__:
        raise RuntimeError(f"peft has a method {name!r} of its own now: rename peftkit's")
    add_member(PeftType, name.upper())
    register_peft_method(name=name, config_cls=config_class, model_cls=tuner_class)


def add_member(enum_class: type, name: str):
    """Add a member whose value is its name to a string enum; return it (or the one that is there already)."""
    if name in enum_class.__members__:
        return enum_class.__members__[name]
    tables = ("_member_map_", "_value2member_map_", "_member_names_")
    missing = [table for table in tables if not hasattr(enum_class, table)]
    if missing:
        raise RuntimeError(f"{enum_class.__name__} has no {', '.join(missing)}: this Python cannot be extended")
    member = str.__new__(enum_class, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(enum_class._member_names_)
    type.__setattr__(enum_class, name, member)  # Python 3.12 and later look attributes up here
    enum_class._member_map_[name] = enum_class._value2member_map_[name] = member
    enum_class._member_names_.append(name)
    return member
