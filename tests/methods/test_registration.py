"""The enum guard: a new method is a full member of peft's closed enum, and nothing of peft's own is overwritten."""
import copy
import enum
import importlib
import json
import pickle
from pathlib import Path

import peft.mapping
import pytest
from peft.utils.peft_types import PeftType

import peftkit
from peftkit.methods import adapter
from peftkit.methods.registration import add_member, register

NAME = "BOTTLENECK"


class Lora(adapter.AdapterConfig):
    """A configuration that claims a name of peft's own."""

    TYPE = "lora"


class Kind(str, enum.Enum):
    """An enum of the same shape as `PeftType`."""

    FIRST = "FIRST"


@pytest.mark.parametrize("enum_class, name", [(PeftType, NAME), (Kind, "SECOND")])
def test_the_new_member_is_a_member_in_every_respect(enum_class, name):
    member = add_member(enum_class, name)
    assert enum_class[name] is enum_class(name) is getattr(enum_class, name) is member
    assert list(enum_class).count(member) == 1
    assert isinstance(member, enum_class) and member.value == member.name == name
    assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
    assert {member: 1}[name] == 1 and {name: 1}[member] == 1
    assert json.dumps({"peft_type": member}) == json.dumps({"peft_type": name})


def test_a_second_call_returns_the_same_member():
    assert add_member(Kind, "THIRD") is add_member(Kind, "THIRD")
    assert [member.name for member in Kind].count("THIRD") == 1


def test_peft_knows_the_tuner():
    assert peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[NAME] is adapter.AdapterConfig
    assert peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[NAME] is adapter.AdapterModel
    assert peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[NAME] == "bottleneck_"
    assert adapter.AdapterConfig().peft_type is PeftType[NAME]


def test_a_second_registration_changes_nothing():
    members, table = list(PeftType), dict(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
    register(adapter.AdapterConfig, adapter.AdapterModel)
    assert list(PeftType) == members and peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING == table


def test_reloading_the_module_registers_its_new_classes():
    before = dict(vars(adapter))
    try:
        importlib.reload(adapter)
        assert adapter.AdapterConfig is not before["AdapterConfig"]
        test_peft_knows_the_tuner()
    finally:
        vars(adapter).update(before)
        register(adapter.AdapterConfig, adapter.AdapterModel)


def test_a_name_that_peft_has_is_refused():
    members, lora = list(PeftType), peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING["LORA"]
    with pytest.raises(RuntimeError, match="peft has a method 'lora' of its own"):
        register(Lora, adapter.AdapterModel)
    assert list(PeftType) == members and peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING["LORA"] is lora


def test_a_member_without_a_tuner_is_refused_too(monkeypatch):
    monkeypatch.delitem(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.LORA)
    with pytest.raises(RuntimeError, match="'lora'"):
        register(Lora, adapter.AdapterModel)


@pytest.mark.parametrize("table", ["PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING"])
def test_without_pefts_tables_registration_fails_loudly(monkeypatch, table):
    monkeypatch.delattr(peft.mapping, table)
    with pytest.raises(ImportError, match=table):
        register(adapter.AdapterConfig, adapter.AdapterModel)


def test_an_enum_without_its_tables_is_refused_by_name():
    class Closed:
        __members__: dict = {}
        _member_map_: dict = {}

    with pytest.raises(RuntimeError, match="Closed has no _value2member_map_, _member_names_"):
        add_member(Closed, "NEW")


def test_no_other_module_touches_the_enum():
    package = Path(peftkit.__file__).parent
    touching = [file.name for file in package.rglob("*.py") if "_member_map_" in file.read_text()]
    assert touching == ["registration.py"]
