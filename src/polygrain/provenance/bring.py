"""Copy recorded files from DVC's cache, or its remote, into the checkout; each is verified first.

DVC reads `dvc.yaml` and `dvc.lock` again for every stage that it is given, which takes minutes for a hundred stages,
and it overwrites all files of a stage. So the wanted outputs are listed in a `.dvc` file of our own (DVC's documented
format) that puts them into a scratch folder. Both are removed at the end; what an interrupted restore left is removed
by the next one.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from polygrain.provenance.dvccommand import cache_folder, complaint, dvc, object_path
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import write_text
from polygrain.provenance.hashes import Hashes
from polygrain.provenance.yaml12 import dump_yaml

SCRATCH = Path("polygrain-restore")
POINTER = Path("polygrain-restore.dvc")


def bring(wanted: Mapping[Path, str], root: Path, remote: str | None, hashes: Hashes) -> dict[Path, str]:
    """Put files with the MD5s `wanted` in place as far as they are found; return why the others are not.

    A damaged object in the local cache is removed and fetched once from the remote. Raises UserError when DVC fails on
    the cache itself. When the remote fails, what arrived before is used.
    """
    failure = ""
    with _scratch(root):
        failed = _place(wanted, root, hashes)
        if failed and remote:
            _drop_damaged(failed, root)
            print(f"fetching {len(failed)} files from remote '{remote}'", flush=True)
            fetched = dvc(root, "fetch", str(POINTER))
            failure = f": {complaint(fetched)}" if fetched.returncode else ""
            failed = _place(failed, root, hashes)
        damaged = _drop_damaged(failed, root)
    where = f"remote '{remote}'" if remote else "the cache, and no remote is set"
    return {
        path: f"{path} is damaged in {where}" if path in damaged else f"{path} is not in {where}{failure}"
        for path in failed
    }


@contextmanager
def _scratch(root: Path) -> Iterator[None]:
    _clear(root)
    try:
        yield
    finally:
        _clear(root)


def _clear(root: Path) -> None:
    (root / POINTER).unlink(missing_ok=True)
    if (root / SCRATCH).is_dir():
        shutil.rmtree(root / SCRATCH)


def _place(wanted: Mapping[Path, str], root: Path, hashes: Hashes) -> dict[Path, str]:
    """Check files out of the cache, verify them and move them to their places; return those with other bytes."""
    entries = [{"path": (SCRATCH / path).as_posix(), "md5": md5, "hash": "md5"} for path, md5 in wanted.items()]
    write_text(root / POINTER, dump_yaml({"outs": entries}))
    done = dvc(root, "checkout", "--force", "--allow-missing", str(POINTER))
    if done.returncode:
        raise UserError(f"{root}: dvc checkout failed ({complaint(done)}); correct that and restore again")
    hashes.read_ahead(SCRATCH / path for path in wanted)
    right = [path for path, md5 in wanted.items() if hashes.md5(SCRATCH / path) == md5]
    for path in right:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(root / SCRATCH / path, root / path)
    return {path: md5 for path, md5 in wanted.items() if path not in set(right)}


def _drop_damaged(failed: Mapping[Path, str], root: Path) -> set[Path]:
    """Remove what was checked out with wrong bytes, and the cached objects behind it; return which ones that were."""
    damaged = {path for path in failed if os.path.lexists(root / SCRATCH / path)}
    for path in sorted(damaged):
        held = object_path(cache_folder(root), failed[path])
        try:
            held.unlink(missing_ok=True)
        except PermissionError:
            raise UserError(
                f"{held}: damaged, and you may not remove it; ask its owner to, then restore again"
            ) from None
        (root / SCRATCH / path).unlink()
    return damaged
