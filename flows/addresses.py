"""Where a browser finds the pages of this repository: at the portal while `mill up` runs, else as files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from flows.git import GitError
from flows.up import running
from flows.worktree import home_of

# What the portal shows, by where it does: folders of the main checkout.
REPORTS, RETRAINED, MONITORED = "reports", "retrained", ".mill/monitor"
FOLDERS = {REPORTS: Path("reports"), RETRAINED: Path(".mill/retrain/reports"), MONITORED: Path(".mill/monitor")}


@dataclass(frozen=True)
class Portal:
    """The pages of the main checkout `home`, as the model server at `url` shows them."""

    url: str
    home: Path

    @classmethod
    def of(cls, root: Path) -> Self | None:
        """The portal of the `mill up` of this repository; None where none runs."""
        try:
            here = running(root)
            return cls(here.serves, home_of(root).resolve()) if here is not None else None
        except GitError:
            return None

    def shows(self, page: Path) -> str | None:
        """The page's address; None where it lies in no folder that is shown, as that of another worktree."""
        for name, folder in FOLDERS.items():
            if page.is_relative_to(self.home / folder):
                return f"{self.url}/{name}/{quote(page.relative_to(self.home / folder).as_posix())}"
        return None


def address_of(page: Path, portal: Portal | None) -> str:
    """A link to a page. Browsers do not follow one to a file from Prefect's dashboard; it can be copied."""
    page = page.resolve()
    return (portal.shows(page) if portal else None) or page.as_uri()
