"""Crates of the toy project: read by rocrate, complete, true to the files, the same for the same records."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from provenance_toy import PREPARE, TABLE, toy_jobs
from rocrate.rocrate import ROCrate

from polygrain.audit.account import read_account
from polygrain.audit.crate import NAME, NO_RECORD, PROFILES, About, RawFile, crate_text
from polygrain.audit.crate_files import file_uri
from polygrain.audit.crate_reader import read_crate
from polygrain.audit.evidence import Evidence
from polygrain.provenance.errors import UserError

ABOUT = About("toy: table 1", "A toy.", "Apache-2.0", "0.1", Path("Snakefile"), "9.27", "2026-01-02")
STEPS = {"toy": "prepare", "run-a": "pretrain", "run-b": "pretrain", "table1": "table"}
RAW = RawFile("raw.gz", hashlib.sha256(b"raw").hexdigest(), "The raw toys.", "MIT")
Graph = dict[str, dict[str, Any]]


def written(root: Path, jobs: Iterable[Any] = (), published: Any = None) -> str:
    evidence = Evidence(list(jobs) or toy_jobs(), root, published=published or {})
    return crate_text(evidence, Path("reports"), ABOUT, {"toy": [RAW]})


def graph_of(text: str) -> Graph:
    entities = json.loads(text)["@graph"]
    graph = {entity["@id"]: entity for entity in entities}
    assert len(graph) == len(entities)
    return graph


def ids(value: Any) -> list[str]:
    return [item["@id"] for item in (value if isinstance(value, list) else [value])]


def test_rocrate_reads_it_and_every_reference_resolves(recorded_project):
    text = written(recorded_project)
    (recorded_project / "reports" / NAME).write_text(text)
    crate = ROCrate(recorded_project / "reports")
    assert crate.mainEntity["name"] == "Snakefile"
    assert {entity.id for entity in crate.root_dataset["conformsTo"]} == set(PROFILES)
    actions = [entity for entity in crate.get_entities() if entity.type == "CreateAction"]
    assert len(actions) == 5
    for action in actions:
        assert action["instrument"].type
        for name in ("object", "result"):
            entities = action[name] if isinstance(action[name], list) else [action[name]]
            assert all("File" in entity.type for entity in entities), (action.id, name)
    for entity in graph_of(text).values():
        for key, value in entity.items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict) and not item["@id"].startswith("https://w3id.org/ro/crate/"):
                    assert crate.get(item["@id"]) is not None, (entity["@id"], key, item)


def test_files_are_what_they_are_said_to_be(recorded_project):
    graph = graph_of(written(recorded_project))
    files = [entity for entity in graph.values() if "File" in entity["@type"] and entity["name"] != RAW.name]
    described = set()
    for entity in files:
        names = entity["alternateName"]
        for name in names if isinstance(names, list) else [names]:
            content = (recorded_project / name).read_bytes()
            assert entity["sha256"] == hashlib.sha256(content).hexdigest()
            assert entity["md5"] == hashlib.md5(content).hexdigest()
            assert entity["contentSize"] == str(len(content))
            own = Path(name).parent == Path("reports")
            assert entity["@id"] == (Path(name).name if own else file_uri(entity["sha256"]))
            described.add(name)
    paths = {path for job in toy_jobs() for path in (job.config_path, *job.dependencies, *job.outputs)}
    assert described == {"Snakefile", *map(str, paths)}
    assert sorted(ids(graph["./"]["hasPart"])) == sorted(
        entity["@id"] for entity in graph.values() if "File" in entity["@type"]
    )


def test_equal_bytes_outside_the_folder_are_one_entity_with_both_paths(recorded_project):
    """run-a's configuration and run-b's differ, but their code files may not."""
    code = recorded_project / "inputs/run-a/code.json"
    (recorded_project / "inputs/run-b/code.json").write_bytes(code.read_bytes())
    for name in ("run-a", "run-b", "table1"):
        (recorded_project / f"records/{name}.json").unlink()
    lock = recorded_project / "dvc.lock"
    md5 = hashlib.md5(b'{"polygrain.run-b": "0"}\n').hexdigest()
    lock.write_text(lock.read_text().replace(md5, hashlib.md5(code.read_bytes()).hexdigest()))
    entity = graph_of(written(recorded_project))[file_uri(hashlib.sha256(code.read_bytes()).hexdigest())]
    assert entity["alternateName"] == ["inputs/run-a/code.json", "inputs/run-b/code.json"]


def test_a_name_of_rfc_6920():
    """The example of the RFC, section 8.1: the content `Hello World!`."""
    assert file_uri(hashlib.sha256(b"Hello World!").hexdigest()) == (
        "ni:///sha-256;f4OxZX_x_FO5LcGBSKHWXfwtSx-j1ncoSt3SABJtkGk"
    )


def test_jobs_are_actions_with_times_and_circumstances(recorded_project):
    graph = graph_of(written(recorded_project))
    for job in toy_jobs():
        account = read_account(job, recorded_project)
        assert account is not None
        action, control = graph[f"#job-{job.name}"], graph[f"#control-{job.name}"]
        assert (action["startTime"], action["endTime"]) == (account.started, account.finished)
        assert action["description"] == account.command
        assert action["instrument"]["@id"] == f"#tool-{STEPS[job.name]}"
        usage = {graph[name]["name"]: graph[name]["value"] for name in ids(action["resourceUsage"])}
        assert usage["wall_seconds"] == str(account.wall_seconds)
        assert ids(control["object"]) == [action["@id"]]
        assert graph[control["instrument"]["@id"]]["workExample"] == action["instrument"]
        pins = {graph[name]["name"]: graph[name]["value"] for name in ids(action["environment"])}
        assert pins["OMP_NUM_THREADS"] == "1"
        assert action["@id"] in ids(graph["./"]["mentions"])
    run, engine = graph["#workflow-run"], graph["#engine-run"]
    accounts = [account for job in toy_jobs() if (account := read_account(job, recorded_project))]
    assert run["startTime"] == min(account.started for account in accounts)
    assert run["endTime"] == max(account.finished for account in accounts)
    assert sorted(ids(run["result"])) == sorted(["late.bin", "table1.md", *_metrics(graph)])
    assert sorted(ids(engine["object"])) == sorted(f"#control-{job.name}" for job in toy_jobs())
    assert graph["./"]["datePublished"] == run["endTime"][:10]


def _metrics(graph: Graph) -> list[str]:
    return [name for name, entity in graph.items() if "metrics.jsonl" in str(entity.get("alternateName"))]


def test_results_are_objects_further_on(recorded_project):
    graph = graph_of(written(recorded_project))
    images = next(name for name, entity in graph.items() if entity.get("alternateName") == PREPARE)
    assert images in ids(graph["#job-toy"]["result"])
    assert images in ids(graph["#job-run-a"]["object"])
    assert file_uri(RAW.sha256) in ids(graph["#job-toy"]["object"])
    assert "contentSize" not in graph[file_uri(RAW.sha256)]
    given = set(ids(graph["#workflow-run"]["object"]))
    assert not given & {images, *ids(graph["#job-run-a"]["result"])}


def test_the_plan_is_the_workflow_with_its_steps_in_order(recorded_project):
    graph = graph_of(written(recorded_project))
    workflow = graph[graph["./"]["mainEntity"]["@id"]]
    assert {"File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"} == set(workflow["@type"])
    order = {graph[name]["position"]: graph[name]["name"] for name in ids(workflow["step"])}
    assert [order[position] for position in sorted(order)] == ["prepare", "pretrain", "table"]
    tools = ids(workflow["hasPart"])
    assert tools == ["#tool-prepare", "#tool-pretrain", "#tool-table"]
    packages = {
        graph[name]["name"]: graph[name]["softwareVersion"] for name in ids(graph[tools[0]]["softwareRequirements"])
    }
    assert {"numpy", "torch"} <= set(packages)


def test_the_same_records_give_the_same_text(recorded_project):
    text = written(recorded_project)
    assert written(recorded_project, jobs=reversed(toy_jobs())) == text
    lines = text.splitlines()
    assert [json.loads(line.rstrip(","))["@id"] for line in lines[1:3]] == [NAME, "./"]
    assert len(lines) == len(json.loads(text)["@graph"]) + 2


def test_what_is_read_back_is_what_the_records_said(recorded_project):
    path = Path("reports/published", NAME)
    (recorded_project / path).write_text(written(recorded_project))
    back = read_crate(path, recorded_project)
    assert set(back) == set(STEPS)
    for job in toy_jobs():
        account, told = read_account(job, recorded_project), back[job.name]
        assert account is not None
        for field in ("command", "started", "finished", "wall_seconds", "cpu_seconds", "peak_memory_mib", "machine"):
            assert getattr(told, field) == getattr(account, field), field
        assert (told.commit, told.dirty, told.source) == (account.commit, account.dirty, path)
        for name, content in account.files.items():
            assert told.files[name].sha256 == content.sha256
            assert told.files[name].size == content.size
    assert read_crate(Path("nothing.json"), recorded_project) == {}


def test_uncommitted_changes_are_told(recorded_project):
    sidecar = recorded_project / "records/toy.json"
    said = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**said, "git": {"commit": "c" * 40, "dirty": True}}))
    path = recorded_project / "reports/published" / NAME
    path.write_text(written(recorded_project))
    back = read_crate(path.relative_to(recorded_project), recorded_project)["toy"]
    assert (back.commit, back.dirty) == ("c" * 40, True)


def test_a_restored_job_is_described_without_times_and_says_so(recorded_project):
    (recorded_project / "records/run-a.json").unlink()
    graph = graph_of(written(recorded_project))
    action = graph["#job-run-a"]
    assert action["description"] == NO_RECORD
    assert not {"startTime", "endTime", "resourceUsage", "environment"} & set(action)
    assert len(ids(action["result"])) == 2
    for job in toy_jobs():
        (recorded_project / job.sidecar).unlink(missing_ok=True)
    graph = graph_of(written(recorded_project))
    assert graph["./"]["datePublished"] == ABOUT.published
    assert "startTime" not in graph["#workflow-run"]


def test_a_restored_job_keeps_what_a_published_crate_tells(recorded_project):
    path = Path("reports/published", NAME)
    text = written(recorded_project)
    (recorded_project / path).write_text(text)
    for job in toy_jobs():
        (recorded_project / job.sidecar).unlink()
    assert written(recorded_project, published=read_crate(path, recorded_project)) == text


def test_files_that_are_not_what_a_record_tells_are_refused(recorded_project):
    checkpoint = recorded_project / "runs/a/checkpoint.bin"
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    checkpoint.write_bytes(b"better")
    with pytest.raises(UserError, match=r"runs/a/checkpoint\.bin: differs from its record records/"):
        written(recorded_project)
    (recorded_project / "records/run-a.json").unlink()
    (recorded_project / "records/table1.json").unlink()
    with pytest.raises(UserError, match=r"runs/a/checkpoint\.bin: neither a record nor dvc\.lock links it"):
        written(recorded_project)
    checkpoint.unlink()
    with pytest.raises(UserError, match=r"runs/a/checkpoint\.bin: not here, and in no record"):
        written(recorded_project)
    checkpoint.write_bytes(content)
    assert TABLE.split("/")[1] in graph_of(written(recorded_project))


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / NAME).write_text('{"@graph": [{"@id": "#job-x", "startTime": ""}]}')
    with pytest.raises(UserError, match="not a crate of ours"):
        read_crate(Path(NAME), tmp_path)
