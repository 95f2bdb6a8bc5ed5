"""An experiment's folder in S3: its identity, its recipe, and its links as small JSON objects.

<prefix>/<experiment>/iteration-0/train.link     {"folder": "objects/train-…"}
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iris_core.common.digest import text_digest
from iris_core.common.errors import StoreError
from iris_core.common.files import make_folder, replacing, write_atomic
from iris_core.store.lease import Lease, is_over, parse
from iris_core.store.places import links_of_one_recipe, of_one_recipe
from iris_core.store.remote import Remote

LINK = ".link"
RUNS = ".runs"  # leases of the runs under way


class Home:
    """An experiment's folder in a mirror, and its copy in the bucket.

    Args:
        folder: in the mirror.
        remote: the bucket.
    """

    def __init__(self, folder: Path, remote: Remote):
        self.folder, self.remote, self.name = folder, remote, folder.name

    def pull(self, files: tuple[str, ...]) -> None:
        """Brings `files` here, and makes the links those of the bucket.

        Args:
            files: names of files in the experiment's folder.
        """
        names = self.remote.names(self.name)
        if names:
            make_folder(self.folder)
        for name in set(names).intersection(files):
            if found := self.remote.read(f"{self.name}/{name}"):
                write_atomic(self.folder / name, found.content.decode(errors="replace"))
        links = {name.removesuffix(LINK) for name in names if name.endswith(LINK)}
        for link in set(links_of_one_recipe(self.folder)) - {self.folder / place for place in links}:
            link.unlink()
        for place in links:
            if found := self.remote.read(f"{self.name}/{place}{LINK}"):
                link_to(self.folder / place, self.folder.parent / json.loads(found.content)["folder"])

    def push(self, name: str) -> None:
        """Writes a small file of the experiment's folder to the bucket."""
        self.remote.write(f"{self.name}/{name}", (self.folder / name).read_bytes())

    def link(self, place: str, folder: Path) -> None:
        """Writes the link at `place` to the folder of a stage."""
        target = {"folder": folder.relative_to(self.folder.parent).as_posix()}
        self.remote.write(f"{self.name}/{place}{LINK}", json.dumps(target).encode())

    def unlink(self) -> None:
        """Removes the links to the stages of a recipe and to its comparison."""
        links = [name for name in self.remote.names(self.name) if name.endswith(LINK)]
        self.remote.remove(f"{self.name}/{name}" for name in links if of_one_recipe(name.removesuffix(LINK)))

    @contextmanager
    def one_recipe(self, recipe: str, patience: float) -> Iterator[None]:
        """Keeps runs of other recipes, on any machine, out of the experiment until the block ends.

        Each run says first that it is there, then looks for others: of two at once, one at least sees the other.

        Raises:
            StoreError: a run of another recipe is under way.
        """
        digest = text_digest(recipe)
        with Lease(self.remote, f"{self.name}/{RUNS}/{uuid.uuid4().hex}", uuid.uuid4().hex, digest).held(patience):
            for name in self.remote.names(f"{self.name}/{RUNS}"):
                found = self.remote.read(f"{self.name}/{RUNS}/{name}")
                if found and is_over(found):
                    self.remote.remove([f"{self.name}/{RUNS}/{name}"])
                elif found and parse(found).get("note") != digest:
                    raise StoreError(
                        f"store: a run of experiment {self.name!r} with other settings is under way on "
                        f"{parse(found).get('host')}: wait for it to end, or give this one another `name`"
                    )
            yield


def link_to(link: Path, folder: Path) -> None:
    """Makes `link` a relative link to `folder`, which may not be there."""
    make_folder(link.parent)
    with replacing(link) as temporary:
        temporary.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)
