"""The store of features by itself: what is found again, what goes, and what happens to what is damaged or too much."""
import resource
import time
from contextlib import contextmanager

import pytest
import torch

from peftkit.errors import PeftkitError
from peftkit.training.feature_store import FeatureStore

TOWER = "0123456789abcdef"


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "features")


def shards(store):
    return sorted(store.folder.glob("[!.]*/*"))


def drawn(*names, seed=0):
    """A function that makes shards of one random picture each, 4096 bytes."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(16, 64, generator=generator) for name in names}
    return lambda lacking: iter([{name: values[name]} for name in lacking])


def nothing(lacking):
    assert not lacking
    return iter(())


def _truncated(path, other):
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path, other):
    path.write_bytes(b"")


def _foreign(path, other):
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [_truncated, _empty, _foreign])
def test_a_damaged_or_foreign_file_is_made_anew_with_a_message(store, damage):
    before = store.get(TOWER, ["a"], drawn("a"))["a"].clone()
    (path,) = shards(store)
    store.get("another", ["a"], drawn("a", seed=1))
    damage(path, next(store.folder.glob("another/*")))
    with pytest.warns(UserWarning, match=f"damaged vision features removed, they are made anew: {path}"):
        assert torch.equal(store.get(TOWER, ["a"], drawn("a"))["a"], before)
    assert torch.equal(store.get(TOWER, ["a"], nothing)["a"], before)


def test_beyond_the_limit_what_was_not_used_for_longest_goes(store):
    store.limit = 2.5 * 4096
    make = drawn("a", "b", "c")
    for name, encode in (("a", make), ("b", make), ("a", nothing), ("c", make)):
        store.get(TOWER, [name], encode)
        time.sleep(0.01)  # so that the times of the files differ
    assert sum(path.stat().st_size for path in shards(store)) <= store.limit
    store.get(TOWER, ["a", "c"], nothing)
    lacking = []
    store.get(TOWER, ["b"], lambda names: lacking.extend(names) or make(names))
    assert lacking == ["b"]


def test_a_file_that_is_removed_stays_readable_where_it_is_mapped(store):
    store.limit = 1.5 * 4096
    make = drawn("a", "b")
    mapped = store.get(TOWER, ["a"], make)["a"]
    store.get(TOWER, ["b"], make)
    assert len(shards(store)) == 1
    assert torch.equal(mapped, next(make(["a"]))["a"])


def test_mapped_features_can_be_changed_without_harm_to_the_store(store):
    store.get(TOWER, ["a"], drawn("a"))["a"].zero_()
    assert store.get(TOWER, ["a"], nothing)["a"].any()


@contextmanager
def room_for(size):
    """Files of this process cannot grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(store):
    make = drawn("a", "b", "c")
    kept = store.get(TOWER, ["a"], make)["a"]
    message = r"0.0 MB of vision features cannot be written to .*features \(.*\), where .* MB are free; .*PEFTKIT_FEAT"
    with room_for(2000), pytest.raises(PeftkitError, match=message):
        store.get(TOWER, ["a", "b", "c"], make)
    assert len(shards(store)) == 1
    found = store.get(TOWER, ["a", "b", "c"], make)
    assert torch.equal(found["a"], kept) and len(shards(store)) == 3


def test_what_a_killed_process_half_wrote_is_removed(store):
    store.get(TOWER, ["a"], drawn("a"))
    (store.folder / TOWER / ".tmpAbCdEf").write_bytes(b"half")
    store.get(TOWER, ["b"], drawn("b"))
    assert len(shards(store)) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PeftkitError, match=r"cannot be kept in .*file.* \(.*\); accepted: a folder with room"):
        FeatureStore(tmp_path / "file").get(TOWER, ["a"], drawn("a"))
