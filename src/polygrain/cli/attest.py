"""`polygrain attest`: print a verdict on each run, and set the file times of attested outputs for Snakemake."""

import os
from collections import Counter
from collections.abc import Sequence

from polygrain.attest.run import Verdict, attest
from polygrain.cli.claims import recorded_targets
from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.config.stages import stages_behind
from polygrain.provenance.attestations import FILE
from polygrain.provenance.restore import stamp
from polygrain.provenance.stage import Stage

_SHOWN = 20
"""Objections to a run that are printed."""


def attest_targets(project: Project, targets: Sequence[str], *, commit: str, steps: int, jobs: int | None) -> int:
    """Attest the runs behind the targets (default: every table in dvc.lock); 0 when none of them is refused.

    Raises UserError for a target that does not exist and where the recorded code is not in git.
    """
    stages = stages_behind(project, targets or recorded_targets(project))
    verdicts = attest(project, stages, commit=commit, least=steps, jobs=jobs or len(os.sched_getaffinity(0)))
    print("\n".join(report(verdicts)))
    attested = {verdict.directory for verdict in verdicts if verdict.state == "attested"}
    wanted = [stage for stage in stages if stage.directory in attested and stage.verb == "pretrain"]
    if wanted:
        print("\n".join(_stamped(project, stages, wanted)))
    return 1 if any(verdict.state == "refused" for verdict in verdicts) else 0


def _stamped(project: Project, stages: Sequence[Stage], attested: Sequence[Stage]) -> list[str]:
    """Give attested outputs the present time, for Snakemake; say which it will still make again, and why."""
    used = {path for stage in attested for path in stage.inputs}
    makers = [stage for stage in stages if used & set(stage.outputs)]
    for stage in (*makers, *attested):
        write_inputs(project, stage)
    findings = stamp([*makers, *attested], project.root)
    unready = [stage for stage in makers if not findings[stage.name].claims]
    if unready:
        files = " ".join(str(stage.outputs[-1]) for stage in unready)
        return [
            f"their data was packed by older code: `snakemake --cores all {files}`, then run the same command again"
        ]
    lacking = [stage for stage in attested if findings[stage.name].lacking]
    if lacking:
        return [f"outputs of {len(lacking)} runs are not in place; bring them back with `polygrain restore`"]
    return [f"Snakemake takes the outputs of {len(attested)} attested runs as current"]


def report(verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each run with what was run, the objections to it, and counts."""
    width = max((len(str(verdict.directory)) for verdict in verdicts), default=0)
    lines = []
    for verdict in verdicts:
        lines.append(f"{verdict.directory!s:{width}}  {verdict.state:8}  {_done(verdict)}".rstrip())
        lines += [f"    {line}" for line in verdict.objections[:_SHOWN]]
        lines += [f"    and {len(verdict.objections) - _SHOWN} more"] * (len(verdict.objections) > _SHOWN)
    exempt = sorted({line for item in verdicts if item.attestation for line in item.attestation.evidence["exempt"]})
    lines += ["exempt, because no recorded run can have been there:"] * bool(exempt)
    lines += [f"    {line}" for line in exempt]
    counts = Counter(verdict.state for verdict in verdicts)
    lines.append(", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "no run behind these")
    if any(verdict.attestation for verdict in verdicts):
        lines.append(f"commit {FILE}")
    return lines


def _done(verdict: Verdict) -> str:
    if verdict.attestation is None:
        return ""
    evidence = verdict.attestation.evidence
    steps, first = evidence["steps"], evidence["first_steps"]
    repeated = f"{first} of {steps} steps" if first < steps else "the whole run"
    return f"{repeated}, twin {evidence['twin_steps']} steps, {evidence['changed_lines']} changed lines"
