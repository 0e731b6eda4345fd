"""Figures: the same bytes every time, and a verdict against the reference."""
import json
import warnings

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from peftkit.errors import PeftkitError
from peftkit.figures import METHOD_STYLE, compare, figures_root, save, use_style

DATA = pd.DataFrame({"method": ["lora", "none", "none"], "seed": [42, 42, 43], "score": [0.9, 0.2, float("nan")]})
ALT = "LoRA reaches 0.9, the untrained base 0.2."


def draw(root, monkeypatch, data=DATA, name="main", alt=ALT, tolerance=0.02, **options):
    monkeypatch.setenv("PEFTKIT_FIGURES", str(root))
    with plt.rc_context():
        use_style()
        fig, axes = plt.subplots()
        for method, rows in DATA.groupby("method"):
            axes.plot(rows["seed"], rows["score"], **METHOD_STYLE[method], label=method)
        axes.legend()
        picture = save(fig, data, name, notebook="03_test", alt=alt, tolerance=tolerance, **options)
    assert not plt.fignum_exists(fig.number)
    return picture


def test_same_bytes_twice(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        draw(tmp_path / folder, monkeypatch)
    for kind in ("png", "svg", "csv", "json"):
        first, second = (tmp_path / folder / "03_test" / f"main.{kind}" for folder in ("a", "b"))
        assert first.read_bytes() == second.read_bytes(), kind
    picture = (tmp_path / "a/03_test/main.svg").read_text()
    assert "<dc:date>" not in picture and "Matplotlib v" not in picture


def test_picture_carries_its_alt_text(tmp_path, monkeypatch):
    bundle, metadata = draw(tmp_path, monkeypatch)._repr_mimebundle_()
    assert bundle["image/png"] and metadata["image/png"]["alt"] == ALT


def test_a_few_marks_keep_their_colors_beside_many(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTKIT_FIGURES", str(tmp_path))
    many, few = ("#0072B2", "#56B4E9", "#D55E00", "#CC79A7", "#000000", "#555555"), ("#009E73", "#E69F00")
    fig, axes = plt.subplots()
    places = np.random.default_rng(1)
    for color in many:
        axes.plot(*places.random((2, 60)), "o", color=color, markersize=9, markeredgecolor="white", alpha=0.9)
    for x, color in enumerate(few):
        axes.plot(x, 1.3, "^", color=color, markersize=7)
    save(fig, DATA, "marks", notebook="03_test", alt=ALT, tolerance=0.1)
    with PIL.Image.open(tmp_path / "03_test/marks.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)  # (pixels, 3)
    for color in few:
        wanted = 255 * np.array(matplotlib.colors.to_rgb(color))
        assert np.abs(pixels - wanted).max(axis=1).min() <= 12, color


def test_sidecar(tmp_path, monkeypatch):
    draw(tmp_path, monkeypatch, parameters={"tier": "smoke"})
    sidecar = json.loads((tmp_path / "03_test/main.json").read_text())
    assert sidecar["alt"] == ALT
    assert sidecar["keys"] == ["method", "seed"] and sidecar["tolerance"] == {"score": 0.02}
    assert sidecar["parameters"] == {"tier": "smoke"}
    assert set(sidecar["versions"]) >= {"peftkit", "matplotlib", "pandas"}


def test_root(monkeypatch, tmp_path):
    monkeypatch.delenv("PEFTKIT_FIGURES", raising=False)
    assert figures_root().name == "figures-out"
    monkeypatch.setenv("PEFTKIT_FIGURES", str(tmp_path))
    assert figures_root() == tmp_path


def test_colors_and_markers_tell_methods_apart():
    assert METHOD_STYLE["prefix-peft"] == METHOD_STYLE["prefix"]  # one idea in two forms
    told_apart = {name: style for name, style in METHOD_STYLE.items() if name != "prefix-peft"}
    assert set(told_apart) >= {"lora", "adapter", "ia3", "prefix", "none"}
    for channel in ("color", "marker"):
        assert len({style[channel] for style in told_apart.values()}) == len(told_apart)


@pytest.mark.parametrize(("options", "message"), [
    ({"name": "../main"}, "letters, digits"), ({"alt": " "}, "needs an alt text"),
    ({"tolerance": {"scor": 0.1}}, "unknown value column 'scor'; did you mean 'score'"),
    ({"tolerance": {"score": 0.1, "seed": 0}}, "needs values, and keys that tell its rows apart"),
    ({"data": DATA[["score"]]}, "needs values, and keys"),
    ({"data": DATA[["method", "seed"]]}, "needs values, and keys"),
])  # fmt: skip
def test_unfit_figures_are_refused(tmp_path, monkeypatch, options, message):
    with pytest.raises(PeftkitError, match=message):
        draw(tmp_path, monkeypatch, **options)
    assert not list(tmp_path.rglob("*.png"))


def test_compare(tmp_path, monkeypatch):
    new, reference = tmp_path / "new", tmp_path / "reference"
    changed = DATA.assign(score=[0.95, 0.2, float("nan")])
    for name, data, tolerance in [
        ("same", DATA, 0.02), ("near", changed, 0.06), ("far", changed, 0.02), ("lost", DATA, 0), ("rows", DATA, 0),
        ("columns", DATA, 0), ("gap", DATA.fillna(0.5), 0.02), ("named", changed, {"score": 0.06}),
    ]:  # fmt: skip
        draw(reference, monkeypatch, data=data, name=name, tolerance=tolerance)
    for name in ("same", "near", "far", "extra", "gap", "named"):
        draw(new, monkeypatch, data=DATA, name=name, tolerance=9)
    draw(new, monkeypatch, data=DATA.iloc[[2, 0]], name="rows")
    draw(new, monkeypatch, data=DATA.rename(columns={"score": "points"}), name="columns")
    (reference / "runs").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = compare(new, reference).set_index("figure")
    assert table["status"].to_dict() == {
        "03_test/same": "reproduced", "03_test/near": "reproduced", "03_test/far": "off by 0.05 in score",
        "03_test/lost": "missing", "03_test/extra": "no reference", "03_test/named": "reproduced",
        "03_test/gap": "off by inf in score", "03_test/rows": "off by 1 row(s) that only one has",
        "03_test/columns": "off by other columns",
    }  # fmt: skip
    assert table.loc["03_test/far", ["difference", "tolerance"]].tolist() == pytest.approx([0.05, 0.02])
    assert compare(tmp_path / "none", tmp_path / "none").empty
