"""One job on an emulated or native processor: what `polygrain` does, after a look at the processor.

python -m polygrain.cli.portability.child PROCESSOR VERB ARGUMENTS
"""

import sys
from collections.abc import Sequence

from polygrain.cli.main import main as verb
from polygrain.cli.portability.processor import processor
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import pinned


def main(arguments: Sequence[str]) -> int:
    """Refuse to work on another processor than named, or unpinned: the verb would start itself again, natively."""
    expected, *rest = arguments
    if str(processor()) != expected or not pinned():
        raise UserError(f"expected {expected} with all pins, this is {processor()}, pinned: {pinned()}")
    return verb(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
