"""A server is audited by the command, from a plan to a verdict, whatever it does meanwhile."""

import os
import re
import signal
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from drawn import tree
from pooled import PEOPLE, answering, pooled
from serving import misbehave, serving
from shell import command, sets, start

from mibench.models.imported.journal import Journal
from mibench.runs import finished

BRIEF = sets(
    prior__steps=1,
    prior__warm_up=1,
    evaluator__epochs=1,
    verifier__epochs=1,
    endpoint__wait=0.001,
    endpoint__timeout=0.4,
)


def passes(handler: BaseHTTPRequestHandler) -> bool:
    """No fault."""
    return False


def test_a_server_is_audited_through_whatever_goes_wrong(tmp_path: Path) -> None:
    """Killed, blocked, in another format, slow, dropping, garbled, at its rate limit: in the end there is a verdict, no
    answer was lost or paid for twice, and what we counted is what the server counted."""
    private, public = tree(tmp_path, private=PEOPLE, public=9, each=6)
    results = tmp_path / "results"
    usual = answering(pooled(private))
    with serving(usual) as service:
        service.keyed = {}
        words = ["audit", "--endpoint", service.url, "--private", str(private), "--public", str(public)]
        words += ["--image-size", "16", "--device", "cpu", "--results", str(results), *BRIEF]

        said = re.search(r"give --queries (\d+) or more", " ".join(command(*words, "--queries", "100").error.split()))
        assert said is not None
        least = int(said[1])
        assert command(*words, "--queries", str(least - 1)).code == 2
        assert service.requests == 0, "refused before anything was asked"
        words += ["--queries", str(least)]

        # Killed in the middle of a question of an attack or a floor.
        process = start(*words, folder=tmp_path)

        def kill(handler: BaseHTTPRequestHandler) -> bool:
            os.kill(process.pid, signal.SIGKILL)
            return True

        service.faults = [passes] * 7 + [kill]
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
        (journal,) = (Journal(path) for path in (results / "answers").glob("*.sqlite"))
        assert 48 < len(journal) < least
        assert journal.count("answered") == sum(service.images.values()) == len(journal)

        # Blocked for good: told, with what is kept.
        service.faults = [passes, lambda handler: misbehave(handler, "403")]
        blocked = command(*words)
        assert blocked.code == 2 and "forbids these questions" in blocked.err, blocked.err

        # Another format half-way: asked again twice, not nine times, since every answer costs.
        def reform(handler: BaseHTTPRequestHandler) -> bool:
            service.answer = lambda x: {"scores": [[100 * p for p in row] for row in usual(x)["scores"]]}
            service.keyed = None
            return False

        service.faults = [passes, reform]
        requests, answered = service.requests, sum(service.images.values())
        reformed = command(*words)
        assert reformed.code == 2 and "where they summed to 1 before" in " ".join(reformed.err.split()), reformed.err
        assert service.requests == requests + 4, "the picture that is asked about at every start, one question thrice"
        in_vain = sum(service.images.values()) - answered - 1

        service.answer, service.keyed = usual, {}
        faults = ("drop", "429", "garbage", "slow", "500")
        service.faults = [passes, *((lambda handler, kind=kind: misbehave(handler, kind)) for kind in faults)]
        done = command(*words)
        assert done.code == 0, done.err
        assert done.out.lstrip().startswith(("No verdict", "Leaks")), done.out
        assert len(service.images) == len(journal) <= least, "every answer is kept"
        assert journal.count("answered") == len(journal) + 3, "one picture is asked about again at each further start"
        assert sum(service.images.values()) == journal.count("answered") + in_vain, "nothing was paid for twice"
        assert service.received == journal.count("sent"), "what came there is what we sent"

    planned = dict(re.findall(r"(?:attack|floor) (\w+) +(\d+) queries", done.err))
    assert set(planned) == {"cma_es", "prior_search", "random_search"}
    for run in finished(results, "inversions"):
        spent = run.read("metrics.json")
        asked = spent["queries_per_identity"] * spent["identities"] + spent["shared_queries"]
        assert asked == int(planned.get(run.name, 0)), "the plan is what the oracle counted"
    assert f"{least:,} in all of --queries {least:,}" in " ".join(done.err.split())
