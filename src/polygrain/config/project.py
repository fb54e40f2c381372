"""Where things are in a project; its root is the folder that holds the Snakefile and params/."""

from dataclasses import dataclass
from pathlib import Path

from polygrain.provenance.errors import UserError

SOURCE = Path(__file__).resolve().parents[2]
"""The folder that holds the package that runs."""


@dataclass(frozen=True)
class Project:
    """A checkout of this repository."""

    root: Path

    @classmethod
    def here(cls) -> "Project":
        """The project that the current folder belongs to. Raises UserError outside of one."""
        for folder in (Path.cwd(), *Path.cwd().parents):
            if (folder / "Snakefile").is_file() and (folder / "params" / "run.yaml").is_file():
                return cls(folder)
        raise UserError(f"{Path.cwd()}: not inside a polygrain project; change to the folder that holds the Snakefile")

    @property
    def params(self) -> Path:
        """The Hydra groups."""
        return self.root / "params"

    @property
    def lock(self) -> Path:
        """The pinned requirements."""
        return self.root / "requirements.lock"

    @property
    def source(self) -> Path:
        """The folder that holds the package."""
        return self.root / "src"
