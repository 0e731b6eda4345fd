"""Selective methods: they train weights that the base has, whole parts of it or entries that a rule chooses."""
from .dare import dare
from .grafting import graft
from .rule import rule_of
from .tailor import tailor

__all__ = ["dare", "graft", "rule_of", "tailor"]
