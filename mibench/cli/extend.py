"""The commands for authors of plug-ins: new, check-plugin."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mibench.cli import options

__all__ = ["check_plugin", "new"]


def new(
    kind: Annotated[str, typer.Argument(help="attack, defense, prior, data or metric.")],
    name: Annotated[str, typer.Argument(help="Small letters, digits and _: the plug-in, its module, its package.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the package is put.")] = Path(),
) -> None:
    """Write a small package with one plug-in of your own that passes its own tests as written."""
    from mibench.plugins import new as scaffold

    root, *files = scaffold.new(kind, name, folder)
    for file in files:
        print(file)
    print(f"cd {root} && pip install -e '.[test]' && pytest && mibench check-plugin {name}")


def check_plugin(
    name: Annotated[str, typer.Argument(help="A plug-in; attacks also with wrappers: ppa+eot.")],
    kind: Annotated[
        str | None, typer.Option("--kind", help="attack, defense, prior, data or metric, where a name has several.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A setting it is tried with.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Try a plug-in on the laws of its contract, in a toy world; exit code 1 if it breaks one."""
    import torch

    from mibench import testing
    from mibench.plugins.settings import parse_settings
    from mibench.runtime.endings import going_on
    from mibench.testing.laws import Verdict

    torch.set_num_threads(1)  # the networks are tiny
    chosen = kind or testing.kind_of(name)
    settings: dict[str, Any] = dict(parse_settings(sets or []))

    def told(one: Verdict) -> None:
        print(f"{one.outcome:<15}{one.seconds:>7.2f} s  {one.law}: {one.says}", flush=True)
        for word, text in (("seen", one.seen), ("do", one.do if one.outcome in ("broken", "expected") else "")):
            if text:
                print(f"{'':<26}{word}: {text}", flush=True)

    with going_on(f"the {chosen} {name}"):
        tried = testing.check(chosen, name, settings, on_fail=None, told=(lambda one: None) if as_json else told)
    if as_json:
        print(json.dumps(tried.to_json(), indent=1))
    else:
        kept = sum(one.outcome == "kept" for one in tried.verdicts)
        others = len(tried.verdicts) - kept - len(tried.broken)
        print(
            f"{chosen} {name}: {kept} laws kept, {len(tried.broken)} broken, {others} not tried, {tried.seconds:.1f} s"
        )
    if not tried.passed:
        raise typer.Exit(1)
