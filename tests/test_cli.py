"""The command line: wrong input is named, and the whole chain runs at the smoke tier."""
import json

import pandas as pd
import pytest

import peftkit
from peftkit import cli


@pytest.mark.parametrize("arguments, named", [
    (["figures", "--tier", "laptob"], "unknown tier 'laptob'; did you mean 'laptop'?"),
    (["figures", "--only", "03a_zhou"], "unknown notebook '03a_zhou'; did you mean '03a_zhou2024'"),
    (["zoo", "build", "tiny-lava-s"], "unknown bundled base 'tiny-lava-s'; did you mean 'tiny-llava-s'"),
    (["claims", "zhou2023"], "unknown paper 'zhou2023'; did you mean 'zhou2024'"),
    (["bench", "methods", "--base", "tiny-llava-x"], "unknown model 'tiny-llava-x'; did you mean"),
])
def test_wrong_names_are_refused_with_the_accepted_ones(arguments, named, capsys):
    assert cli.main(arguments) == 2
    assert named in capsys.readouterr().err


def test_claims_prints_the_ledger_and_writes_it(tmp_path, capsys):
    assert cli.main(["claims", "zhou2024", "--csv", str(tmp_path / "ledger.csv")]) == 0
    shown, table = capsys.readouterr().out, peftkit.claims("zhou2024")
    assert all(f"{row.id}  paper {row.verdict_paper} | ours {row.verdict_ours}" in shown for row in table.itertuples())
    assert pd.read_csv(tmp_path / "ledger.csv")["id"].tolist() == table["id"].tolist()


def test_zoo_list_names_every_base(capsys):
    assert cli.main(["zoo", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("tiny-llava-s", "tiny-llava-m", "tiny-idefics2"))


@pytest.mark.slow
def test_figures_at_the_smoke_tier_train_execute_and_then_train_nothing(tmp_path, capsys):
    arguments = ["figures", "--tier", "smoke", "--out", str(tmp_path / "out"), "--store", str(tmp_path / "runs"),
                 "--only", "03a_zhou2024"]
    assert cli.main(arguments) == 0
    assert "20 of 20 runs to do" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "notebooks" / "03a_zhou2024.manifest.json").read_text())
    assert manifest["status"] == "success" and manifest["parameters"]["tier"] == "smoke"
    assert list((tmp_path / "out" / "figures" / "03a_zhou2024").glob("*.png"))
    assert cli.main(arguments) == 0
    assert "0 of 20 runs to do" in capsys.readouterr().out
