"""Models: load a checkpoint with its processor, and name its regions."""
from .loading import BUNDLED, Base, bundled_names, load, manifest
from .regions import ARCHITECTURES, REGIONS, Architecture, architecture, region_modules, region_of

__all__ = ["ARCHITECTURES", "BUNDLED", "REGIONS", "Architecture", "Base", "architecture", "bundled_names", "load",
           "manifest", "region_modules", "region_of"]
