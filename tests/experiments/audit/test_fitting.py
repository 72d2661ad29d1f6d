"""What fits into a number of queries: never more than they are, and the least that is named is enough."""

from pathlib import Path
from typing import Any

import pytest
from drawn import tree
from pooled import PEOPLE, answering, pooled
from serving import Service, serving

from mibench.core import Access
from mibench.experiments import audit as audits
from mibench.experiments.audit.fitting import TooFewQueries, showing
from mibench.models.imported.endpoint import Endpoint
from mibench.models.imported.sources import read_source
from mibench.runtime import engine


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("drawn")
    private, public = tree(root, private=PEOPLE, public=9, each=6)
    with serving(answering(pooled(private))) as service:
        yield service, private, public, root / "results"


def scheduled(world: tuple[Service, Path, Path, Path], queries: int, **changes: Any) -> audits.Schedule:
    service, private, public, results = world
    source = read_source(None, None, Endpoint(service.url, wait=0.01))
    asked = audits.Asked(source, private, public, queries=queries, image_size=16, **changes)
    return audits.schedule(audits.prepare(asked, results), results, engine.resolve("cpu", "fp32"))


@pytest.mark.parametrize("changes", [{}, {"access": Access.LABEL_ONLY}, {"method": "rlb", "identities": 3}])
def test_the_least_that_is_named_is_enough_and_one_fewer_is_not(world: Any, changes: dict[str, Any]) -> None:
    service = world[0]
    before = service.requests
    with pytest.raises(TooFewQueries) as refused:
        scheduled(world, 60, **changes)
    least = refused.value.least
    assert f"give --queries {least} or more" in str(refused.value)
    with pytest.raises(TooFewQueries):
        scheduled(world, least - 1, **changes)
    assert service.requests == before, "refused before anything was asked"
    assert scheduled(world, least, **changes).whole == least


@pytest.mark.parametrize("queries", [1_000, 3_000, 5_000, 100_000])
def test_more_queries_buy_larger_attacks_and_then_more_of_them(world: Any, queries: int) -> None:
    planned = scheduled(world, queries)
    assert queries / 2 < planned.whole <= queries or queries == 100_000
    attacks = [one.attack for one in planned.experiments[0].attackers]
    names = {1_000: ["cma_es"], 3_000: ["cma_es"], 5_000: ["cma_es"], 100_000: ["mirror_bb", "cma_es", "rlb"]}
    assert [one.name for one in attacks] == names[queries]
    generations = {1_000: 2, 3_000: 6}.get(queries, 10)
    assert next(one for one in attacks if one.name == "cma_es").plugin.generations == generations
    told = " ".join(planned.untried)
    assert ("generations 6 of 10" in told) == (queries == 3_000)
    assert ("for want of queries" in told) == (queries < 5_000)
    floors = {run.inversion.name for run in planned.runs} - {one.name for one in attacks}
    assert floors >= {"prior_sample", "prior_search", "random_search"}


def test_what_the_user_sets_is_not_made_smaller(world: Any) -> None:
    changes = {"method": "cma_es", "settings": {"attack": {"generations": "7"}}}
    planned = scheduled(world, 3_000, **changes)
    assert planned.experiments[0].attackers[0].attack.plugin.generations == 7


def test_a_server_is_shown_a_part_of_the_queries_and_everybody_twice() -> None:
    assert showing(500, 8, 1000) == 48
    assert showing(500, 40, 1000) == 80
    assert showing(4000, 8, 1000) == 200
    assert showing(4000, 8, 64) == 64
