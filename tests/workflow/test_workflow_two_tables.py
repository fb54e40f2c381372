"""Two tables of the same run, recorded one after the other: both stay on record while that is true."""

from pathlib import Path

import pytest
from workflow_checkout import Checkout, make_checkout
from workflow_photos import add_photos, make_photos, photos_table
from workflow_world import SCALE

from polygrain.provenance.checklock import is_marked_stale

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = (f"reports/tiny-seeds1/{name}.pdf" for name in ("first", "second"))
# the repository's own tables: on record beside others as long as they are not stale
OWN = () if is_marked_stale(ROOT / "reports/published/table1.md") else ("reports/table1.pdf", "reports/ledger.pdf")

pytestmark = pytest.mark.workflow


def commit(checkout: Checkout) -> None:
    checkout.run("git", "add", "--all")
    checkout.run("git", "commit", "-q", "-m", "record")


def on_record(checkout: Checkout) -> list[str]:
    """The tables that have a published copy."""
    return sorted(path.stem for path in checkout.root.glob("reports/published/tiny-seeds1/*.pdf"))


def test_recording_one_table_keeps_the_other_until_it_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    checkout = make_checkout(tmp_path / "checkout")
    add_photos(checkout.root)
    scale = checkout.root / "params/scale/tiny.yaml"
    scale.write_text(SCALE.format(workers=0))
    for name, protocol in (("first", "linear"), ("second", "knn")):
        (checkout.root / f"params/table/{name}.yaml").write_text(photos_table(protocol))
    data = f"data={make_photos(tmp_path)}"
    checkout.run("snakemake", "--cores", "2", "--config", data, "--", FIRST, SECOND)
    for table in OWN:  # not built here
        assert f"{table}\n" in (checkout.root / "dvc.lock").read_text()
    for table in (FIRST, SECOND):
        checkout.run("polygrain", "record", table)
        commit(checkout)
        assert "holds" in checkout.run("polygrain", "check-lock", table).stdout
    for table in (FIRST, SECOND, *OWN):
        assert f"{table}\n" in (checkout.root / "dvc.lock").read_text()
    assert on_record(checkout) == ["first", "second"]
    crate = (checkout.root / "reports/published/tiny-seeds1/ro-crate-metadata.json").read_text()
    assert FIRST in crate
    assert SECOND in crate
    assert "every change is explained" in checkout.run("polygrain", "audit").stdout

    scale.write_text(scale.read_text().replace("features: {workers: 0}", "features: {workers: 0, train: 300}"))
    checkout.run("snakemake", "--cores", "2", "--config", data, "--", FIRST)
    said = checkout.run("polygrain", "record", FIRST).stdout
    commit(checkout)
    assert f"{SECOND}: no longer on record, for runs/tiny/photos/random/base/seed0/results/knn.json was made" in said
    assert f"{SECOND}\n" not in (checkout.root / "dvc.lock").read_text()
    assert [table for table in OWN if f"{table}\n" in (checkout.root / "dvc.lock").read_text()] == list(OWN)
    assert on_record(checkout) == ["first"]
    assert "holds" in checkout.run("polygrain", "check-lock", FIRST).stdout
    assert "every change is explained" in checkout.run("polygrain", "audit").stdout
