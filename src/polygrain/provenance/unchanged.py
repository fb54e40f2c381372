"""What a job was made from must still be there when it ends: else its outputs would pass for those of newer inputs.

Build tools compare times: an output made from the config of an hour ago is newer than the config edited a minute ago.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_file


@contextmanager
def unchanged(inputs: Sequence[Path], outputs: Sequence[Path]) -> Iterator[None]:
    """Run a job's body; when an input has other bytes after it, remove the outputs and raise UserError.

    Inputs are hashed before the body, and after it again where a file's time, size or number changed.
    """
    before = {path: (_stamp(path), sha256_file(path)) for path in inputs}
    yield
    for path, (stamp, content) in before.items():
        if not path.is_file() or (_stamp(path) != stamp and sha256_file(path) != content):
            for output in outputs:
                output.unlink(missing_ok=True)
            raise UserError(
                f"{path}: changed while a job worked from it; what it made was removed. Run the same command again"
            )


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
