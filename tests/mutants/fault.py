"""A planted fault: a small change of the code that some test must notice."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """In `file`, `old` becomes `new`; one of `tests` must fail then.

    `tests` are files, with ::NAME or without, as pytest takes them; as few as notice it, so that
    the whole list is run in minutes.
    """

    name: str
    """What the faulty code does, as a sentence without a subject's article: for the report."""
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def plant(self, root: Path) -> str:
        """Change the file below `root`; its content before. Raises `ValueError` if it is stale."""
        path = root / self.file
        before = path.read_text()
        if before.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.file} holds the old text {before.count(self.old)} times, not"
                " once: bring the entry up to date"
            )
        path.write_text(before.replace(self.old, self.new))
        return before
