"""Laws of shards: they are parts of the one inversion, and together they are it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shell import ATTACK, command, sets, world

from mibench.runs import finished
from mibench.runtime.errors import UserError
from mibench.stages.invert import people

FILES = ("images.safetensors", "metrics.json", "log.jsonl", "grid.png")


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in FILES if (path / name).exists()}


def invert(results: Path, method: str, *words: str) -> Path:
    return command("invert", "--method", method, "--results", str(results), *words).last


SETTINGS = {
    # Eight starts per identity, searched sixteen at once or all: two identities are a whole number of batches.
    "gmi": [*ATTACK, *sets(restarts=2)],
    "ppa": [*ATTACK, *sets(pool=16, candidates=4, images=2, selection_views=2)],
}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 50, 129, 1000])
def test_every_identity_is_in_one_shard(count: int) -> None:
    for shards in range(1, min(count, 40) + 1):
        each = [people(count, shard, shards) for shard in range(1, shards + 1)]
        assert [one for part in each for one in part] == list(range(count))
        assert 1 <= min(map(len, each)) and max(map(len, each)) <= 2 * count / shards + 1
    for shard, shards in ((0, 2), (3, 2), (1, count + 1)):
        with pytest.raises(UserError, match="give 1 <= i <= n"):
            people(count, shard, shards)


def test_a_shard_begins_where_a_batch_does() -> None:
    """Where there is enough for whole batches of 128, whatever number of rows an identity has."""
    assert [people(1000, one, 3).start for one in (1, 2, 3)] == [0, 384, 640]
    assert all(people(1000, one, 3).start % 128 == 0 for one in (1, 2, 3))
