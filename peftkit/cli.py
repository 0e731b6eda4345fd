"""The command line: `peftkit figures`, `claims`, `methods`, `zoo`, `bench`.

The only module that knows the names of notebooks.
"""
import argparse
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path

from .errors import PeftkitError, choose

CELL_TIMEOUT = 7200  # seconds
BENCHES = {
    "trainer": "our loop against transformers.Trainer with peft, at one and five questions a picture",
    "packing": "questions about a picture in one sequence against one sequence each: time, memory, equality",
    "evaluation": "answers to five questions a picture against generate in batches",
    "compile": "compiled steps against plain ones, and after how many steps they have paid",
    "grid": "200 runs by the workers of a study against one after the other",
    "methods": "seconds a step and memory of every method, relative to LoRA",
    "spider": "seconds a step of SPIDER against full tuning of the same part",
    "gpu": "LLaVA-1.5-7B's shape on a GPU against transformers.Trainer with peft",
}
_ZHOU_VARIED = ("zhou2024", "zhou2024-location", "zhou2024-data", "zhou2024-size", "zhou2024-rates",
                "zhou2024-vision", "zhou2024-vocabulary")
NOTEBOOKS = {  # notebook -> the studies whose records it reads
    "00_start_here": (), "02_methods": (), "03a_zhou2024": ("zhou2024",), "03b_zhou2024": _ZHOU_VARIED,
    "03c_zhou2024": (*_ZHOU_VARIED, "zhou2024-transfer", "zhou2024-hallucination"),
    "04_huang2024": ("huang2024", "huang2024-released", "huang2024-paths", "huang2024-layers"),
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 success, 1 a figure was not reproduced, 2 wrong input."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except PeftkitError as error:
        print(f"peftkit: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="peftkit", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    figures = commands.add_parser("figures", help="train the studies, execute the notebooks, compare every figure")
    figures.add_argument("--tier", default="laptop", help="smoke (seconds) or laptop (default; 2.5 hours from nothing)")
    figures.add_argument("--only", nargs="+", default=list(NOTEBOOKS), metavar="NOTEBOOK", help="default: all of them")
    figures.add_argument("--out", type=Path, default=Path("out"), help="folder for figures and executed notebooks")
    figures.add_argument("--store", type=Path, default=Path("runs"), help="folder of records; finished runs are kept")
    figures.add_argument("--workers", type=int, default=None, help="processes that train (default: one a core)")
    figures.add_argument("--executor", default="local", help="where to train: local (the default) or ray")
    figures.add_argument("--address", default=None, metavar="HOST:PORT",
                         help="of the Ray cluster (default: RAY_ADDRESS, else a new one here)")
    figures.add_argument("--accept", action="store_true", help="make the new figures and records the reference")
    figures.set_defaults(run=_figures)

    zoo = commands.add_parser("zoo", help="the bundled bases").add_subparsers(required=True, metavar="ACTION")
    build = zoo.add_parser("build", help="pre-train a bundled base by its recipe (under an hour on one core)")
    build.add_argument("name")
    build.set_defaults(run=_zoo_build)
    zoo.add_parser("list", help="bases, sizes and zero-shot scores").set_defaults(run=_zoo_list)

    bench = commands.add_parser("bench", help="ratios of speed and memory")
    bench = bench.add_subparsers(required=True, metavar="WHAT")
    for name, help_text in BENCHES.items():
        one = bench.add_parser(name, help=help_text)
        one.add_argument("--repeats", type=int, default=5, help="alternated pairs that a median is of (default 5)")
        if name == "methods":
            one.add_argument("--base", default="tiny-llava-s")
            one.add_argument("--only", nargs="+", default=None, metavar="METHOD", help="default: all of them")
        if name == "trainer":
            one.add_argument("--compile", action="store_true", help="compiled steps on our side")
        if name == "grid":
            one.add_argument("--against", type=Path, default=None, help="a checkout of another commit to compare with")
        one.add_argument("--out", type=Path, default=None, help="folder for the table with date and machine, as JSON")
        one.set_defaults(run=_bench, what=name)

    claims = commands.add_parser("claims", help="a paper's claims, judged by its own numbers and by our runs")
    claims.add_argument("paper", help="such as zhou2024")
    claims.add_argument("--runs", type=Path, default=None, help="CSV of runs (default: the committed records)")
    claims.add_argument("--csv", type=Path, default=None, help="write the ledger to this file too")
    claims.set_defaults(run=_claims)

    commands.add_parser("methods", help="all methods, side by side").set_defaults(run=_methods)
    return parser


def _figures(options) -> int:
    from .figures import compare
    from .papers.zhou2024 import TIERS

    choose("tier", options.tier, TIERS)
    for name in options.only:
        choose("notebook", name, NOTEBOOKS)
    checkout = _checkout()
    out, store = options.out.resolve(), options.store.resolve()
    os.environ.update(PEFTKIT_TIER=options.tier, PEFTKIT_FIGURES=str(out / "figures"), PEFTKIT_STORE=str(store))
    grids = [grid for name in dict.fromkeys(sum((NOTEBOOKS[notebook] for notebook in options.only), ()))
             for grid in _grids(name, options.tier, store)]
    for grid in grids:
        print(f"{grid.name} on {grid.bases[0]}: {len(grid.missing())} of {len(grid.configs())} runs to do", flush=True)
        grid.run(workers=options.workers, executor=options.executor, address=options.address)
    if options.accept and options.tier != "smoke":
        _accept(checkout, out, options.only, options.tier, grids)
    else:
        for name in options.only:
            _execute(checkout, out, name, {"tier": options.tier} | ({"runs": "live"} if NOTEBOOKS[name] else {}))
    if options.tier == "smoke":
        print("the smoke tier proves that everything runs; its figures are not compared")
        return 0
    table = compare(out / "figures", checkout / "figures")
    table = table[table["figure"].str.split("/").str[0].isin(options.only)]
    print(table.to_string(index=False))
    return int((table["status"] != "reproduced").any())


def _grids(name: str, tier: str, store: Path) -> list:
    """The grids of a study, whose name starts with its paper's."""
    return import_module(f"peftkit.papers.{name.split('-')[0]}").studies(name, tier, store)


def _execute(checkout: Path, out: Path, name: str, parameters: dict) -> None:
    from .runner import execute_notebook

    done = execute_notebook(checkout / "notebooks" / f"{name}.ipynb", out / "notebooks" / f"{name}.ipynb", parameters,
                            timeout=CELL_TIMEOUT)
    print(f"{name}: executed in {done['seconds']} s", flush=True)


def _accept(checkout: Path, out: Path, names: list[str], tier: str, grids) -> None:
    """Make a run the committed reference: its records, then its notebooks, reading those records, and their figures."""
    from .notebooks import normalize
    from .papers.records import record_file
    from .studies.store import bundle

    files = {}  # several grids of a study may be on one base
    for grid in grids:
        records = filter(None, map(grid.store.get, grid.configs()))
        files.setdefault(record_file(grid.name, grid.bases[0]), []).extend(records)
    for file, records in files.items():
        bundle(file, records)
    for name in names:
        _execute(checkout, out, name, {"tier": tier})
        normalize(out / "notebooks" / f"{name}.ipynb", checkout / "notebooks" / f"{name}.ipynb")
        shutil.copytree(out / "figures" / name, checkout / "figures" / name, dirs_exist_ok=True)


def _checkout() -> Path:
    folder = Path(__file__).resolve().parents[1]
    if not (folder / "notebooks").is_dir():
        raise PeftkitError("`peftkit figures` needs a checkout of the repository: install it with `pip install -e .`")
    return folder


def _zoo_build(options) -> int:
    from .zoo.build import build

    manifest = build(options.name)
    print(f"{options.name}: {manifest['seconds']} s, weights {manifest['hash']}")
    for task, score in manifest["scores"].items():
        print(f"  {task:<14} {score:.3f}")
    return 0


def _zoo_list(options) -> int:
    from .models import BUNDLED, bundled_names, manifest

    for name in bundled_names():
        content = manifest(name)
        size = sum(file.stat().st_size for file in (BUNDLED / name).iterdir()) / 1e6
        scores = ", ".join(f"{task} {score:.2f}" for task, score in content["scores"].items())
        print(f"{name}: {size:.1f} MB, seed {content['seed']}, built in {content['seconds']} s; {scores}")
    return 0


def _bench(options) -> int:
    from . import bench

    given = {name: value for name, value in vars(options).items() if name not in ("run", "what", "out")}
    table = getattr(bench, f"bench_{options.what}")(**given)
    print(table.to_string())
    if options.out:
        bench.record(table, options.out / f"{options.what}.json")
    return 0


def _claims(options) -> int:
    from .papers.claims import as_text, claims

    table = claims(options.paper, options.runs)
    print(as_text(table))
    if options.csv:
        table.to_csv(options.csv, index=False)
    return 0


def _methods(options) -> int:
    from .methods import table

    print(table().to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
