"""Tell peft of this package's methods when, and only when, peft is imported: importing it here would take seconds."""
import sys
from importlib import import_module
from importlib.machinery import PathFinder

METHODS = "peftkit.methods"


def announce_to_peft() -> None:
    """Register the methods now if peft is there already, else right after its import."""
    if "peft" in sys.modules:
        import_module(METHODS)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


class _Watch:
    """Finds nothing but peft, once, and has the methods imported after peft has been."""

    def find_spec(self, name, path=None, target=None):
        if name != "peft":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_announce(module) -> None:
                load(module)
                import_module(METHODS)

            spec.loader.exec_module = load_and_announce
        return spec
