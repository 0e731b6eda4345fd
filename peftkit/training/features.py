"""The frozen vision tower, run once a picture: its output is kept, the connector is applied to it in every step."""
import hashlib
import itertools
import json
import warnings
from collections.abc import Iterator

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from tqdm import tqdm

from ..data import Encoded
from ..errors import PeftkitError
from ..models.regions import architecture, region_of
from .feature_store import FeatureStore, bytes_each, default_store
from .towers import TOWERS, unwrap

BATCH = 128  # pictures that the tower gets at a time
SHARD = 256e6  # bytes of features, about, that are handed on together
BUDGET = 4e9  # bytes of features that are kept in memory; larger sets are encoded in every step
PATIENCE = 3  # seconds before a bar is shown


def can_cache(model: nn.Module) -> bool:
    """Whether the model type is supported and its vision tower is frozen."""
    arch = architecture(model)
    tower_trains = any(p.requires_grad for name, p in model.named_parameters() if region_of(arch, name) == "vision")
    return model.config.model_type in TOWERS and not tower_trains


def cache_features(model: nn.Module, encoded: Encoded, store: FeatureStore | None = None,
                   progress: bool = False) -> Encoded:
    """Fill `encoded.features`, in place, unless the set is too large; model: any, wrapped by peft or not.

    The features lie in `store` (see `default_store` for where, unless told), mapped into memory, where other runs and
    processes find them; sets of few pictures and towers with adapters are encoded here and kept in memory.
    progress: show a bar when it takes longer. Raises PeftkitError if the store cannot be written to,
    or for a set whose rows do not all name their picture.
    """
    base, store = unwrap(model), store or default_store()
    if len(encoded.picture_ids) != len(encoded):
        raise PeftkitError(f"{len(encoded.picture_ids)} picture_ids for {len(encoded)} rows; accepted: one a row")
    rows = {name: row for row, name in enumerate(encoded.picture_ids)}  # a row about each picture

    def encode(pictures: list[str]) -> Iterator[dict[str, Tensor]]:
        return _shards(base, encoded, {name: rows[name] for name in pictures}, progress)

    size = len(rows) / len(encoded) * sum(value.nbytes for value in encoded.pictures.values())
    if store and size >= store.smallest and not _adapted(base):
        found, limit = store.get(tower_hash(base, encoded.pictures), list(rows), encode), store.limit
    else:
        found, limit = _in_memory(encode(list(rows)), len(rows)), BUDGET
    if found is None:
        warnings.warn(f"the tower runs in every step: the features of {len(rows)} pictures take more than the "
                      f"{limit / 1e9:g} GB allowed; accepted: cache_features(model, encoded, FeatureStore(folder, "
                      "limit)) before training", stacklevel=2)
    else:
        encoded.features = [found[name] for name in encoded.picture_ids]
    return encoded


def tower_hash(base: nn.Module, pictures: dict[str, Tensor]) -> str:
    """Identity of the map from picture ids to features, besides the ids, which are hashes of preprocessed pictures.

    It covers weights, buffers, their types, the configuration of the tower, and the shape to which the set is padded.
    """
    config = {name: value for name, value in base.config.to_dict().items() if name.startswith(("model_type", "vision"))}
    shapes = {name: (str(value.dtype), *value.shape[1:]) for name, value in pictures.items()}
    digest = hashlib.sha256(json.dumps([config, shapes], sort_keys=True, default=str).encode())
    arch = architecture(base)
    for name, tensor in itertools.chain(base.named_parameters(), base.named_buffers()):
        if region_of(arch, name) == "vision":
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _adapted(base: nn.Module) -> bool:
    """Whether adapters stand in the tower: what they do is not in their weights alone, so it has no hash."""
    arch = architecture(base)
    return any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
               for name, module in base.named_modules() if region_of(arch, name) == "vision")


def _shards(base: nn.Module, encoded: Encoded, rows: dict[str, int], progress: bool) -> Iterator[dict[str, Tensor]]:
    """Features (tokens, width) of the pictures, name -> row, in groups of SHARD bytes or one batch, if that is more."""
    tower, device = TOWERS[base.config.model_type], next(base.parameters()).device
    shard, names = {}, list(rows)
    with tqdm(total=len(rows), desc="pictures", unit="picture", delay=PATIENCE, disable=not progress) as bar:
        for start in range(0, len(names), BATCH):
            batch = names[start:start + BATCH]
            chosen = [rows[name] for name in batch]
            with torch.no_grad():
                features = tower(base, {name: value[chosen].to(device) for name, value in encoded.pictures.items()})
            shard |= zip(batch, features.cpu())
            bar.update(len(batch))
            if len(shard) * features[0].nbytes >= SHARD:
                yield shard
                shard = {}
    if shard:
        yield shard


def _in_memory(shards: Iterator[dict[str, Tensor]], pictures: int) -> dict[str, Tensor] | None:
    found = {}
    for shard in shards:
        if bytes_each(shard) * pictures > BUDGET:
            return None
        found |= shard
    return found
