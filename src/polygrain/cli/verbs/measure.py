"""Verbs that measure: speed, what the same bits cost, and whether they are the same."""

import argparse

from polygrain.cli.verbs.common import Verbs, add, pin, project


def add_to(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    bench = add(
        verbs,
        "bench",
        measure,
        "print where a training step spends its time, and what a verb costs to start",
    )
    bench.add_argument("runs", nargs="*", help="default: every method at cpu scale")
    bench.add_argument("--steps", type=int, default=60)
    bench.add_argument("--determinism", action="store_true", help="instead: what the same bits cost")
    bench.add_argument("--rounds", type=int, default=5, help="of --determinism")
    versus = add(verbs, "versus", compare, "compare speed and memory with lightly: a step, views, SMoG's groups")
    versus.add_argument("--parts", default="abc", help="a: a whole step; b: views alone; c: SMoG's groups")
    versus.add_argument("--rounds", type=int, default=9)
    versus.add_argument("--steps", type=int, default=20, help="steps of each side in a round")
    determinism = add(
        verbs, "determinism", rebuild, "rebuild runs under random SIGKILLs, compare every byte with the recorded claim"
    )
    determinism.add_argument("runs", nargs="*", metavar="run", help="default: each method's base run at cpu scale")
    determinism.add_argument("--kills", type=int, default=207, help="over all runs")
    determinism.add_argument("--seed", type=int, default=0, help="decides where the kills strike")
    determinism.add_argument("--jobs", type=int, default=1, help="runs side by side")
    portable = add(
        verbs, "portability", compare_processors, "compare bytes natively and on emulated processors; needs qemu-user"
    )
    smoke = ["reports/smoke-seeds1/table1.pdf"]
    portable.add_argument("targets", nargs="*", default=smoke, help="tables or runs; default: %(default)s")
    portable.add_argument("--cpu", nargs="+", default=["Haswell", "EPYC"], help="default: %(default)s")
    portable.add_argument("--operations", action="store_true", help="only single operations of every library: minutes")
    portable.add_argument("--pins", action="store_true", help="only what each pin is for, natively: a minute")


def measure(options: argparse.Namespace) -> int:
    """Time the training step of one or several runs and the start of each verb, or the cost of determinism."""
    if options.determinism:
        from polygrain.cli.bench.determinism import determinism

        determinism(project(), options.runs, steps=options.steps, rounds=options.rounds)
        return 0
    pin()
    from polygrain.cli.bench.run import bench

    bench(project(), options.runs, options.steps)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Measure this package against lightly, side by side; the measured processes pin themselves."""
    from polygrain.cli.versus.run import versus

    versus(project(), parts=options.parts, rounds=options.rounds, steps=options.steps)
    return 0


def rebuild(options: argparse.Namespace) -> int:
    """Exit 1 when a run that was killed and resumed differs from the claim in any byte."""
    from polygrain.cli.determinism.run import determinism

    return determinism(project(), options.runs, kills=options.kills, seed=options.seed, jobs=options.jobs)


def compare_processors(options: argparse.Namespace) -> int:
    """Exit 1 when a byte depends on the processor; the compared processes pin themselves."""
    if options.pins:
        from polygrain.cli.portability.pins import pins

        pins(project())
        return 0
    from polygrain.cli.portability.run import portability

    return portability(project(), options.targets, options.cpu, jobs=not options.operations)
