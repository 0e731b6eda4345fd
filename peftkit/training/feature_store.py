"""What frozen vision towers made of pictures, on disk: memory-mapped, shared by all runs and processes.

    <folder>/<tower>/<hash>.safetensors   a shard: picture id -> (tokens, width); its header names version and tower
    <folder>/<tower>/.tmp<random>         a shard while safetensors writes it; renamed when complete
    <folder>/.locks/                      locked (flock) by the process that encodes or writes, free when it ends

A shard holds those pictures of a set that no shard held before. So sets that overlap share what they can, at the price
of reading the header of every shard of the tower; a file a picture would spare that, and be too many files.
"""
import fcntl
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import PeftkitError, require_positive

VERSION = "1"  # of what a shard holds; raise it when a tower's function in towers.py changes
LOCKS = 256  # sets whose hashes agree in the first byte wait for each other
VARIABLE = "PEFTKIT_FEATURES"


class FeatureStore:
    """A folder of features. limit: bytes of all shards in it; beyond it those go that were not used for longest (a
    process that has one mapped keeps it). smallest: bytes of pictures below which a set is not worth the disk."""

    def __init__(self, folder: str | Path, limit: float = 10e9, smallest: float = 0):
        require_positive(limit=limit)
        self.folder, self.limit, self.smallest = Path(folder), limit, smallest

    def get(self, tower: str, pictures: list[str],
            encode: Callable[[list[str]], Iterator[dict[str, Tensor]]]) -> dict[str, Tensor] | None:
        """Features (tokens, width) of each picture, mapped from the disk; None if all of them would pass the limit.

        encode: gives those of the pictures that the store lacks, a shard at a time. A process that asks for the same
        set meanwhile waits, then reads. Raises PeftkitError if the folder cannot be written to or its disk is full.
        """
        with self._locked(int(_hash(*sorted(pictures))[:8], 16) % LOCKS):
            found = self._find(tower, set(pictures))
            missing = [name for name in pictures if name not in found]
            for shard in encode(missing):
                if bytes_each(shard) * len(pictures) > self.limit:
                    return None
                found |= shard | self._write(tower, shard, bytes_each(shard) * len(missing))
        return found

    def _find(self, tower: str, wanted: set[str]) -> dict[str, Tensor]:
        found = {}
        for path in sorted((self.folder / tower).glob("*.safetensors")):
            found |= self._read(path, wanted - found.keys())
        return found

    def _read(self, path: Path, wanted: set[str]) -> dict[str, Tensor]:
        """What a shard holds of the wanted pictures; a damaged one is reported and removed."""
        try:
            with safe_open(path, "pt") as shard:
                if shard.metadata() != _header(path.parent.name):
                    raise ValueError(f"it belongs to {shard.metadata()}, not {_header(path.parent.name)}")
                found = {name: shard.get_tensor(name) for name in wanted.intersection(shard.keys())}
        except FileNotFoundError:  # another process has just made room
            return {}
        except (SafetensorError, ValueError) as error:
            warnings.warn(f"damaged vision features removed, they are made anew: {path}: {error}", stacklevel=5)
            path.unlink(missing_ok=True)
            return {}
        if found:
            with suppress(OSError):  # gone meanwhile, or another user's
                os.utime(path)
        return found

    def _write(self, tower: str, shard: dict[str, Tensor], needed: float) -> dict[str, Tensor]:
        """Write a shard and map it. needed: bytes of all that the set lacks, for the message."""
        path = self.folder / tower / f"{_hash(*sorted(shard))}.safetensors"
        with self._locked("write"):
            try:
                path.parent.mkdir(exist_ok=True)
                save_file(shard, path, _header(tower))
            except (OSError, SafetensorError) as error:
                free = shutil.disk_usage(self.folder).free
                raise PeftkitError(f"{needed / 1e6:,.1f} MB of vision features cannot be written to {self.folder} "
                                   f"({error}), where {free / 1e6:,.1f} MB are free; {ADVICE}") from None
            self._make_room()
            return self._read(path, set(shard))

    def _make_room(self) -> None:
        """Remove what was not used for longest, and drafts: whoever wrote them was killed, as the lock is ours."""
        for draft in self.folder.glob("[!.]*/.*"):
            draft.unlink()
        shards = []
        for path in self.folder.glob("[!.]*/*.safetensors"):
            with suppress(FileNotFoundError):  # damaged, and removed by a reader
                shards.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        used = sum(size for _, size, _ in shards)
        for _, size, path in sorted(shards):
            if used <= self.limit:
                return
            path.unlink(missing_ok=True)
            used -= size

    @contextmanager
    def _locked(self, name: int | str) -> Iterator[None]:
        path = self.folder / ".locks" / str(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except OSError as error:
            raise PeftkitError(f"vision features cannot be kept in {self.folder} ({error}); {ADVICE}") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


ADVICE = (f"accepted: a folder with room, named by the environment variable {VARIABLE}; with {VARIABLE}= (empty) "
          "features are kept in memory, with cache_features=False they are not kept")


def default_store() -> FeatureStore | None:
    """The folder that PEFTKIT_FEATURES names, for sets of any size; without it the Hugging Face cache (see HF_HOME),
    for sets whose pictures take 64 MB or more; None if the variable is set and empty."""
    named = os.environ.get(VARIABLE)
    if named is None:
        return FeatureStore(Path(constants.HF_ASSETS_CACHE, "peftkit", "features"), smallest=64e6)
    return FeatureStore(named) if named else None


def bytes_each(shard: dict[str, Tensor]) -> float:
    """Mean size of a picture's features."""
    return sum(features.nbytes for features in shard.values()) / len(shard)


def _header(tower: str) -> dict[str, str]:
    return {"version": VERSION, "tower": tower}


def _hash(*names: str) -> str:
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]
