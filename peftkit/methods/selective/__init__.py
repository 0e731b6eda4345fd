"""Selective methods: they train weights that the base has, whole parts of it or entries that a rule chooses."""
from .rule import rule_of

__all__ = ["rule_of"]
