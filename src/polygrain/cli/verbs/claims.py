"""Verbs around what is on record: put it there, bring it back, check it; and what stands in the way of a build."""

import argparse

from polygrain.cli.verbs.common import Verbs, add, pin, project


def add_to(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    recording = add(verbs, "record", record, "after a successful build: commit it to DVC, publish copies")
    recording.add_argument("targets", nargs="+", metavar="target")
    restoring = add(
        verbs, "restore", restore, "bring recorded outputs back with proof, so that only what is stale runs"
    )
    restoring.add_argument("targets", nargs="+", metavar="target", help="a table, run or data set, or a file of one")
    lock = add(verbs, "check-lock", check_lock, "compare the code and params at HEAD with dvc.lock, without training")
    lock.add_argument("targets", nargs="*", metavar="target", help="default: every table in dvc.lock")
    lock.add_argument("--mark", action="store_true", help="let the published table say that it is stale, if it is")
    proving = add(verbs, "attest", attest, "after a refactoring: prove by running that recorded runs stay as they are")
    proving.add_argument("targets", nargs="*", metavar="target", help="default: every table in dvc.lock")
    proving.add_argument(
        "--from", dest="commit", default="", metavar="COMMIT", help="the recorded code; default: found in git"
    )
    proving.add_argument("--steps", type=int, default=100, help="that each run repeats, at least; default: %(default)s")
    proving.add_argument("--jobs", "--cores", type=int, help="runs side by side; default: as many as there are cores")
    doctor = add(verbs, "doctor", diagnose, "say what stands in the way of a build, and the command that clears it")
    doctor.add_argument(
        "--unlock", action="store_true", help="remove Snakemake's lock if no live process holds this tree"
    )


def record(options: argparse.Namespace) -> int:
    """Commit finished builds to DVC and publish their copies."""
    from polygrain.audit.write_crate import publish_crates
    from polygrain.cli.claims import record_tables

    here = project()
    publish_crates(here, options.targets, record_tables(here, options.targets))
    return 0


def restore(options: argparse.Namespace) -> int:
    """Bring back what dvc.lock vouches for."""
    from polygrain.cli.restore import restore_targets

    return restore_targets(project(), options.targets)


def check_lock(options: argparse.Namespace) -> int:
    """Exit 1 when the claim in dvc.lock is not what HEAD would build."""
    from polygrain.cli.claims import check_tables

    return check_tables(project(), options.targets, mark=options.mark)


def attest(options: argparse.Namespace) -> int:
    """Exit 1 when a run whose code changed is not shown to stay the same."""
    pin()
    from polygrain.cli.attest import attest_targets

    return attest_targets(project(), options.targets, commit=options.commit, steps=options.steps, jobs=options.jobs)


def diagnose(options: argparse.Namespace) -> int:
    """Print what stands in the way of a build."""
    from polygrain.cli.doctor import examine

    return examine(project(), unlock=options.unlock)
