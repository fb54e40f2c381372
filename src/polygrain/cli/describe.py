"""The verbs that only tell: a run's configuration with its origins, the jobs behind a table, the ledger."""

from polygrain.config.budget import facts, steps
from polygrain.config.compose import origins, place_of
from polygrain.config.project import Project
from polygrain.config.resolved import configuration
from polygrain.config.runs import Run
from polygrain.config.stages import stages_behind
from polygrain.provenance.yaml12 import dotted


def show_ledger(project: Project, method: str) -> str:
    """The ledger of one method, or of all, as Markdown."""
    from polygrain.config.ledger import read_ledger
    from polygrain.report.ledger import render_markdown

    return render_markdown(read_ledger(project, method))


def show_run(project: Project, path: str) -> str:
    """One line per value: dotted key, value, file and line that set it last."""
    run = Run.parse(path)
    config = configuration(project, run)
    places = origins(run, project.params)
    values = dict(dotted(config))
    width = max(len(f"{key} = {value}") for key, value in values.items())
    lines = [f"{f'{key} = {value}':<{width}}  {place_of(key, places)}" for key, value in sorted(values.items())]
    spent = facts(config)
    lines.append(
        f"{run.path}: {steps(config)} steps, {spent['images_seen']:.0f} images seen,"
        f" {spent['encoder_passes']:.0f} encoder passes"
    )
    return "\n".join(lines) + "\n"


def plan_table(project: Project, target: str) -> str:
    """Jobs by kind, declared core-minutes and the largest declared memory of everything behind a table."""
    stages = stages_behind(project, [target])
    kinds: dict[str, list[float]] = {}
    for stage in stages:
        kinds.setdefault(stage.verb, []).append(stage.minutes)
    lines = [f"{'job':<12}{'count':>6}{'core-minutes':>14}"]
    lines += [f"{verb:<12}{len(minutes):>6}{sum(minutes):>14.1f}" for verb, minutes in kinds.items()]
    total = sum(stage.minutes for stage in stages)
    lines.append(f"{'all':<12}{len(stages):>6}{total:>14.1f}")
    lines.append(
        f"declared: {total / 2:.0f} minutes on 2 cores; peak memory of a job {max(s.memory for s in stages)} MB"
    )
    return "\n".join(lines) + "\n"
