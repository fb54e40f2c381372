"""From a printed cell to the data in a real build: honest, tampered with, restored, cloned; and its crate."""

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from polygrain.audit.trace.run import trace
from polygrain.config.project import Project
from polygrain.provenance.lock import read_lock

SMOKE = "reports/smoke-seeds1/table1.pdf"
FOLDER = Path("reports/smoke-seeds1")
CRATE = "ro-crate-metadata.json"
RUN = "runs/smoke/fashion-mnist/mugs/base/seed0"

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def recorded(built, tmp_path_factory):
    """The smoke table, its crate by rule, put on record and committed; tests put back what they change."""
    root = tmp_path_factory.mktemp("traced") / "copy"
    shutil.copytree(built.root, root, symlinks=True)
    checkout = type(built)(root)
    checkout.build(str(FOLDER / CRATE))
    checkout.run("polygrain", "record", SMOKE)
    checkout.run("git", "add", "--all")
    checkout.run("git", "commit", "--quiet", "--message", "Recorded")
    return checkout


def traced(checkout, capsys, column="knn", row="mugs") -> tuple[int, str]:
    status = trace(Project(checkout.root), SMOKE, row, column, full=False)
    return status, capsys.readouterr().out


def test_dvc_itself_shows_results_and_curves(recorded):
    """Results are its metrics, the losses of the trainings its plots; a commit before shows what changed.

    Of the repository's own tables, which stay on record, nothing is here: DVC can compare nothing of them.
    """
    said = json.loads(recorded.run("dvc", "metrics", "show", "--json").stdout)
    results = json.loads((recorded.root / RUN / "results/linear.json").read_text())["values"]
    assert said[""]["data"][f"{RUN}/results/linear.json"]["data"]["values"] == results
    for kind in ("metrics", "params"):
        assert "/smoke" not in recorded.run("dvc", kind, "diff", "HEAD").stdout
    config = recorded.root / RUN / "config/pretrain.yaml"
    resolved = config.read_text()
    config.write_text(resolved.replace("seed: 0", "seed: 7"))
    changed = json.loads(recorded.run("dvc", "params", "diff", "HEAD", "--json").stdout)
    config.write_text(resolved)
    assert {path: change for path, change in changed.items() if "/smoke" in path} == {
        f"{RUN}/config/pretrain.yaml": {"seed": {"old": 0, "new": 7, "diff": 7}}
    }
    recorded.run("dvc", "plots", "diff", "HEAD", "--out", "plots")
    page = (recorded.root / "plots/index.html").read_text()
    shutil.rmtree(recorded.root / "plots")
    steps = [json.loads(line) for line in (recorded.root / RUN / "metrics.jsonl").read_text().splitlines()]
    assert "mugs, base: training loss (smoke, fashion-mnist)" in page
    assert f'"loss": "{steps[-1]["loss"]:.6g}"' in page


def test_records_name_config_code_data_commit_and_kernels(recorded):
    """What the table's footer prints as its data is what its record says, and a result's data is among it."""
    records = {path: json.loads(path.read_text()) for path in (recorded.root / "records").rglob("*.json")}
    assert len(records) > 10
    for path, record in records.items():
        for part in ("config", "code", "environment"):
            ((name, entry),) = record[part].items()
            assert entry["sha256"] == hashlib.sha256((recorded.root / name).read_bytes()).hexdigest(), (path, part)
        assert record["data"]["manifests"]
        assert len(record["git"]["commit"]) == 40
        assert record["machine"]["threads"] == 1
        assert record["wall_seconds"] > 0
        if record["stage"] in ("pretrain", "features"):
            assert record["machine"]["capability"]["torch"] == "AVX2"
    footer = re.search(r"data ([0-9a-f]{12})", (recorded.root / FOLDER / "table1.md").read_text())
    assert footer is not None
    result, table = (
        records[recorded.root / f"records/{name}.json"]["data"] for name in (f"{RUN}/linear", f"{FOLDER}/table1")
    )
    assert table["sha256"].startswith(footer[1])
    assert result["manifests"].items() < table["manifests"].items()  # the table has scenes beside


def test_a_number_is_followed_to_the_raw_files(recorded, capsys):
    status, said = traced(recorded, capsys)
    lines = said.splitlines()
    assert status == 0
    with (recorded.root / FOLDER / "table1.csv").open(newline="") as stream:
        cells = {(line["row"], line["column"]): line["text"] for line in csv.DictReader(stream)}
    assert f"printed     {cells['Mugs', 'k-NN']} %  in {FOLDER}/table1.csv" in lines
    files = [f"{RUN}/results/knn.json", f"{RUN}/features.safetensors", f"{RUN}/checkpoint.safetensors"]
    places = [
        said.index(f"  {file}\n") for file in (f"{FOLDER}/table1.csv", *files, "data/fashion-mnist/manifest.json")
    ]
    assert places == sorted(places)
    assert "counted again from" in " ".join(said.split())
    for file in files:
        shown = next(place for place, line in enumerate(lines) if line.endswith(f"  {file}"))
        sha256 = hashlib.sha256((recorded.root / file).read_bytes()).hexdigest()
        assert lines[shown + 1].strip().startswith(f"sha256 {sha256[:12]}  md5 ")
        assert lines[shown + 1].endswith("verified: as in its record and dvc.lock")
        assert f"snakemake --cores all --force {file}" in said
    assert _raw_files(recorded) <= set(re.findall(r"(\S+)  sha256 ([0-9a-f]{12})  checked when it was read", said))
    assert "dvc pull pretrain-smoke-fashion-mnist@mugs-base-seed0" in said
    assert "NOT" not in said
    assert lines[-1].startswith("verdict     no contradiction; ")
    assert [line for line in lines if len(line) > 120 and "  snakemake " not in line and "  runs/" not in line] == []


def test_every_kind_of_column_is_traced(recorded, capsys):
    for column in ("linear-1", "transfer", "images", "passes", "elsewhere"):
        status, said = traced(recorded, capsys, column)
        assert status == 0, said
        assert "no contradiction" in said


def test_a_tampered_result_is_shown_at_its_link(recorded, capsys):
    path = recorded.root / RUN / "results/knn.json"
    honest = path.read_bytes()
    about = json.loads(honest)
    about["values"]["fashion-mnist/whitened/top1"] = 0.99
    path.unlink()
    path.write_text(json.dumps(about))
    try:
        status, said = traced(recorded, capsys)
        other, _ = traced(recorded, capsys, row="wcl")
    finally:
        path.unlink()
        path.write_bytes(honest)
    assert (status, other) == (1, 0)
    link = said[said.index(f"result      {RUN}/results/knn.json") :].split("\n\n")[0]
    assert "NOT as in its record, NOT as in dvc.lock" in link
    assert "WRONG" in link
    assert "  WRONG" not in said[said.index("\nfeatures    ") :]
    assert "says 0.99 where its test examples give" in said
    assert f"{FOLDER}/table1.csv: prints" in said
    assert re.search(r"verdict     \d contradictions; ", said)


def test_a_tampered_table_is_shown(recorded, capsys):
    path = recorded.root / FOLDER / "table1.csv"
    copy = recorded.root / "reports/published/smoke-seeds1/table1.csv"
    honest = path.read_bytes()
    for tampered, words in ((path, "changed since it was made"), (copy, "is not the reports/smoke-seeds1/table1.csv")):
        tampered.unlink()
        tampered.write_text(honest.decode().replace("Mugs,Fashion-MNIST,k-NN,%,", "Mugs,Fashion-MNIST,k-NN,%,9"))
        status, said = traced(recorded, capsys)
        tampered.unlink()
        tampered.write_bytes(honest)
        assert status == 1
        assert words in " ".join(said.split())


def test_after_a_restore_the_lock_vouches_and_the_published_crate_tells(recorded, capsys, tmp_path):
    shutil.move(recorded.root / "records", tmp_path / "records")
    try:
        status, said = traced(recorded, capsys)
        assert status == 0
        assert "verified: as in the published crate and dvc.lock" in said
        assert re.search(r"made      20\d\d-", said)
        published = recorded.root / "reports/published/smoke-seeds1" / CRATE
        published.rename(tmp_path / "crate")
        status, said = traced(recorded, capsys)
        (tmp_path / "crate").rename(published)
        assert status == 0
        assert "verified: as in dvc.lock" in said
        assert "made      unknown: no record here, and none is published" in said
    finally:
        shutil.move(tmp_path / "records", recorded.root / "records")


def test_a_fresh_clone_knows_the_chain_from_git_alone(recorded, capsys, tmp_path):
    recorded.run("git", "clone", "--quiet", str(recorded.root), str(tmp_path / "clone"))
    clone = type(recorded)(tmp_path / "clone")
    status, said = traced(clone, capsys)
    assert status == 0
    assert f"printed     not here: {FOLDER}/table1.csv" in said
    assert "in reports/published/smoke-seeds1/table1.csv" in said
    assert f"seed 0  not here: {RUN}/results/knn.json" in said
    checkpoint = hashlib.sha256((recorded.root / RUN / "checkpoint.safetensors").read_bytes()).hexdigest()
    assert f"sha256 {checkpoint[:12]}" in said
    assert "not here; hash from the published crate and dvc.lock" in said
    assert re.search(r"made      20\d\d-", said)
    assert f"polygrain restore {SMOKE}" in said
    assert _raw_files(recorded) <= set(re.findall(r"(\S+)  sha256 ([0-9a-f]{12})  checked when it was read", said))
    assert re.search(r"verdict     no contradiction; 0 files verified by hashing, \d+ not here", said)
    assert clone.run("git", "status", "--porcelain").stdout == ""
    assert not (clone.root / "runs").exists()


def test_an_edited_parameter_is_a_remark_and_no_contradiction(recorded, capsys):
    path = recorded.root / "params/method/mugs.yaml"
    honest = path.read_text()
    path.write_text(re.sub(r"(?m)^(\s*\w*temperature\w*): [0-9.]+", r"\1: 0.77", honest, count=1))
    assert path.read_text() != honest
    try:
        status, said = traced(recorded, capsys)
    finally:
        path.write_text(honest)
    assert status == 0, said
    assert "changed since this was made" in said
    assert re.search(r"dvc\.lock holds a build with another method\.\S*temperature", said)


def test_the_crate_is_a_rule_that_no_claim_depends_on(recorded):
    assert recorded.planned() == {}
    assert recorded.planned(str(FOLDER / CRATE)) == {}
    assert CRATE not in (recorded.root / "dvc.yaml").read_text()
    (recorded.root / FOLDER / CRATE).unlink()
    assert recorded.planned() == {}
    assert recorded.planned(str(FOLDER / CRATE)) == {"crate": 1}
    recorded.run("polygrain", "crate", SMOKE)


def test_rocrate_reads_the_crate_and_its_hashes_are_those_of_the_files(recorded):
    folder = recorded.root / FOLDER
    if not (folder / CRATE).is_file():
        recorded.run("polygrain", "crate", SMOKE)
    text = (folder / CRATE).read_text()
    assert len(text) < 2**20
    crate = ROCrate(folder)
    actions = [entity for entity in crate.get_entities() if entity.type == "CreateAction"]
    described = {name for action in actions for name in _paths(action["result"])}
    # scenes at full size are on record for the default table, which is not built here
    made = {path for path in read_lock(recorded.root).makers if "smoke" in path or path.startswith("data/")}
    made = {path for path in made if not path.startswith("data/scenes/")}
    assert len(made) > 40
    assert made <= described
    for entity in crate.get_entities():
        if "File" not in entity.type or entity.get("contentSize") is None:
            continue
        for name in _paths(entity):
            assert hashlib.sha256((recorded.root / name).read_bytes()).hexdigest() == entity["sha256"], name
    for name in ("table1.pdf", "table1.csv", "table1.md", "table1.tex"):
        assert crate.get(name) is not None
    published = recorded.root / "reports/published/smoke-seeds1" / CRATE
    assert published.read_text() == text


def _raw_files(checkout) -> set[tuple[str, str]]:
    manifest = json.loads((checkout.root / "data/fashion-mnist/manifest.json").read_text())
    return {(name, sha256[:12]) for name, sha256 in manifest["raw"].items()}


def _paths(entities) -> list[str]:
    names = []
    for entity in entities if isinstance(entities, list) else [entities]:
        several = entity["alternateName"]
        names += several if isinstance(several, list) else [several]
    return names
