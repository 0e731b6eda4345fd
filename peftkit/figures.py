"""Figures: the house style, one function that saves them, one that compares them with the reference.

    <root>/<notebook>/<name>.png   100 dpi, 64 colors, what the notebook shows
    <root>/<notebook>/<name>.svg   for papers; the same bytes every time
    <root>/<notebook>/<name>.csv   the plotted data
    <root>/<notebook>/<name>.json  alt text, key and value columns, tolerance, parameters, versions
"""
import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
from IPython.display import Image
from matplotlib.figure import Figure

from . import __version__
from .errors import PeftkitError, choose

STYLE = Path(__file__).with_name("house.mplstyle")
DPI = 100
METHOD_STYLE = {  # colors of Okabe and Ito (2008); the marker says the same to who cannot tell them apart
    "lora": {"color": "#0072B2", "marker": "o"},
    "adapter": {"color": "#D55E00", "marker": "s"},
    "ia3": {"color": "#009E73", "marker": "^"},
    "prefix": {"color": "#CC79A7", "marker": "D"},
    "prefix-peft": {"color": "#CC79A7", "marker": "D"},
    "none": {"color": "#000000", "marker": "X"},
}


def use_style() -> None:
    """Draw every later figure in the house style."""
    plt.style.use(STYLE)


def figures_root() -> Path:
    """Where figures go: the folder that `PEFTKIT_FIGURES` names, else `figures-out` beside the repository's figures.

    Outside a checkout it is `figures-out` in the working directory. The committed reference is never the default.
    """
    if named := os.environ.get("PEFTKIT_FIGURES"):
        return Path(named)
    checkout = Path(__file__).resolve().parents[1]
    return (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "figures-out"


def save(
    fig: Figure,
    data: pd.DataFrame,
    name: str,
    *,
    notebook: str,
    alt: str,
    tolerance: float | Mapping[str, float],
    parameters: Mapping | None = None,
) -> Image:
    """Save a figure with its plotted `data`, close it, and return the picture with its alt text for the notebook.

    `tolerance` is the absolute difference at which the figure still counts as reproduced: one number for every column
    of floats, or a number for each value column by name. All other columns are keys and must tell the rows apart.
    Raises `PeftkitError` for an unfit name, an empty alt text, an unknown column or keys that repeat.
    """
    for part in (notebook, name):
        if not re.fullmatch(r"[\w-]+", part):
            raise PeftkitError(f"figure name {part!r} may hold letters, digits, _ and - only")
    if not alt.strip():
        raise PeftkitError(f"figure {name!r} needs an alt text")
    tolerances = _tolerances(data, tolerance)
    keys = [column for column in data.columns if column not in tolerances]
    if not keys or not tolerances or data.duplicated(keys).any():
        raise PeftkitError(f"figure {name!r} needs values, and keys that tell its rows apart; its keys are {keys}")
    stem = figures_root() / notebook / name
    stem.parent.mkdir(parents=True, exist_ok=True)
    with plt.style.context(STYLE):
        fig.savefig(f"{stem}.png", dpi=DPI, metadata={"Software": None})
        fig.savefig(f"{stem}.svg", metadata={"Date": None, "Creator": None})
    plt.close(fig)
    _lighten(Path(f"{stem}.png"))
    data.to_csv(f"{stem}.csv", index=False, float_format="%.6g", lineterminator="\n")
    sidecar = {
        "alt": alt,
        "keys": keys,
        "tolerance": tolerances,
        "parameters": dict(parameters or {}),
        "versions": {"peftkit": __version__, **{name: version(name) for name in ("matplotlib", "numpy", "pandas")}},
    }
    Path(f"{stem}.json").write_text(json.dumps(sidecar, indent=1) + "\n")
    return Image(filename=f"{stem}.png", alt=alt)


def compare(new_folder: str | Path, reference_folder: str | Path) -> pd.DataFrame:
    """Compare the plotted data of two figure folders: one row a figure, with its status and largest difference.

    `status` is "reproduced" (every value within the tolerance that the reference states), "off by ...", "missing" (no
    new figure) or "no reference". `difference` and `tolerance` are those of the worst value column.
    """
    new, reference = _figures(new_folder), _figures(reference_folder)
    rows = []
    for figure in sorted(new | reference):
        status, difference, tolerance = "missing" if figure in reference else "no reference", np.nan, np.nan
        if figure in new and figure in reference:
            status, difference, tolerance = _verdict(new[figure], reference[figure])
        rows.append({"figure": figure, "status": status, "difference": difference, "tolerance": tolerance})
    return pd.DataFrame(rows, columns=["figure", "status", "difference", "tolerance"])


def _lighten(png: Path) -> None:
    """Rewrite a picture with a palette of 64 colors: a quarter of the bytes. The palette covers hues, not areas: by
    areas, small green marks would turn blue like the many marks beside them."""
    with PIL.Image.open(png) as picture:
        small = picture.convert("RGB").quantize(64, PIL.Image.Quantize.MAXCOVERAGE, kmeans=1,
                                                dither=PIL.Image.Dither.NONE)
    small.save(png, optimize=True, dpi=(DPI, DPI))


def _tolerances(data: pd.DataFrame, tolerance: float | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(tolerance, Mapping):
        tolerance = {column: tolerance for column in data.select_dtypes("float").columns}
    return {choose("value column", column, data.columns): float(limit) for column, limit in tolerance.items()}


def _figures(folder: str | Path) -> dict[str, Path]:
    return {str(path.relative_to(folder).with_suffix("")): path for path in Path(folder).glob("*/*.csv")}


def _verdict(new: Path, reference: Path) -> tuple[str, float, float]:
    """Status, difference and tolerance of one figure."""
    sidecar = json.loads(reference.with_suffix(".json").read_text())
    keys, tolerance = sidecar["keys"], pd.Series(sidecar["tolerance"])
    ours, theirs = _read(new, keys), _read(reference, keys)
    if ours is None or set(ours.columns) != set(theirs.columns):
        return "off by other columns", np.nan, np.nan
    if unmatched := len(ours.index.symmetric_difference(theirs.index)):
        return f"off by {unmatched} row(s) that only one has", np.nan, np.nan
    gaps = (ours - theirs).abs().mask(ours.isna() & theirs.isna(), 0.0).fillna(np.inf).max()[tolerance.index]
    worst = (gaps - tolerance).idxmax()
    status = "reproduced" if (gaps <= tolerance).all() else f"off by {gaps[worst]:.3g} in {worst}"
    return status, gaps[worst], tolerance[worst]


def _read(path: Path, keys: list[str]) -> pd.DataFrame | None:
    """The values of a figure as floats, indexed by its keys as text; None if it lacks a key column."""
    texts = pd.read_csv(path, dtype=str, keep_default_na=False)
    if not set(keys) <= set(texts.columns):
        return None
    values = texts.set_index(keys).replace("", "nan")
    return values.astype(float)
