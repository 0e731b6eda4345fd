"""Load a base by its bundled name, its hub name or its folder; always through transformers' own classes."""
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..errors import PeftkitError, choose
from .regions import ARCHITECTURES, Architecture, architecture

BUNDLED = Path(__file__).parent / "bundled"
HUB_TIMEOUT = 8.0  # seconds before a hub name is given up
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # never pickles, never code


@dataclass(frozen=True)
class Base:
    """A pre-trained model with its processor. hash: of the weights, part of every run's identity."""

    name: str
    model: transformers.PreTrainedModel
    processor: transformers.ProcessorMixin
    hash: str

    @property
    def architecture(self) -> Architecture:
        """Where the model keeps its regions."""
        return architecture(self.model)


def bundled_names() -> list[str]:
    """Names of the bases that ship with the package."""
    return sorted(folder.parent.name for folder in BUNDLED.glob("[!.]*/config.json"))


def load(name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None) -> Base:
    """Load a base.

    name: a bundled name ("tiny-llava-s"), a folder written by `save_pretrained`, or a hub name ("llava-hf/...").
    dtype: of the weights. device: where to put them (the CPU unless told).
    Raises PeftkitError for an unknown name, an unsupported model type, a folder without its weights or its processor,
    or a hub that does not answer within 10 s.
    """
    folder = _folder(str(name))
    config = _config(folder)
    if not any(folder.glob("*.safetensors")):
        raise PeftkitError(f"the folder {str(folder)!r} has no *.safetensors; accepted: a folder written by "
                           "save_pretrained (pickled weights are never read)")
    processor = _processor(folder)
    model_class = getattr(transformers, (config.get("architectures") or [""])[0],
                          transformers.AutoModelForImageTextToText)
    model = model_class.from_pretrained(folder, dtype=dtype)
    return Base(str(name), model.to(device).eval() if device else model.eval(), processor, weights_hash(folder))


def weights_hash(folder: Path) -> str:
    """First 16 hex digits of a sha256 over the weight files: their bytes up to 64 MB, above that name and size."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        large = file.stat().st_size > 64e6
        digest.update(f"{file.name} {file.stat().st_size}".encode() if large else file.read_bytes())
    return digest.hexdigest()[:16]


def manifest(name: str) -> dict:
    """The manifest of a bundled base: recipe, seed, seconds, hash and zero-shot scores."""
    return json.loads((BUNDLED / choose("bundled base", name, bundled_names()) / "manifest.json").read_text())


def _folder(name: str) -> Path:
    if (BUNDLED / name / "config.json").is_file() and "/" not in name:
        return BUNDLED / name
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise PeftkitError(f"the folder {name!r} has no config.json; accepted: a folder written by save_pretrained")
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return _hub_folder(name)
    return choose("model", name, [*bundled_names(), "a folder", "a hub name such as llava-hf/llava-1.5-7b-hf"])


def _config(folder: Path) -> dict:
    """The configuration as it stands in the folder, read before transformers does: no type runs code from the hub."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise PeftkitError(f"the folder {str(folder)!r} has a damaged config.json ({error})") from None
    choose("model type", config.get("model_type"), ARCHITECTURES)
    return config


def _processor(folder: Path) -> transformers.ProcessorMixin:
    try:
        return transformers.AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        if "orchvision" in str(error):
            raise PeftkitError(f"the processor in {str(folder)!r} needs torchvision; accepted: an environment that has "
                               "it, as `pip install 'peftkit[gpu]'` makes") from None
        raise PeftkitError(f"the folder {str(folder)!r} has no processor that can be built here; accepted: a folder "
                           f"into which processor.save_pretrained wrote too ({str(error).strip()})") from None


def _hub_folder(name: str) -> Path:
    """The hub repository in the local cache; downloaded first if it is not there."""
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise PeftkitError(f"{name!r} is no folder, and cannot be a hub name: {error}") from None
    try:
        _within(HUB_TIMEOUT, lambda: HfApi().model_info(name, timeout=HUB_TIMEOUT))
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except HfHubHTTPError as error:
        raise PeftkitError(f"the hub has no model {name!r} for you ({error.response.status_code}): check the name and, "
                           "for a gated model, accept its licence and run `hf auth login`") from None
    except Exception as error:
        raise PeftkitError(
            f"{name!r} is no folder here and the hub did not answer ({type(error).__name__}): without network, "
            f"download it elsewhere with `hf download {name} --local-dir FOLDER` and load the folder, "
            f"or use a bundled base: {', '.join(bundled_names())}") from None


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Run `call` in a thread of its own, since name look-ups know no limit; raises TimeoutError after `seconds`."""
    done = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except Exception as error:
            done.set_exception(error)

    Thread(target=work, daemon=True).start()
    done.result(seconds)
