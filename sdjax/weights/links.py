"""Symbolic links in a checkpoint's folder: those that stay within it are followed, those that lead out are refused.

A folder may come from anybody, as an archive or a clone. A link in it named `tokenizer/vocab.json` could lead to any
file of the user's, which would be read, shown in part by an error and copied by `save`. The Hub's cache consists of
links; they lead from `models--owner--name/snapshots/COMMIT/` to `models--owner--name/blobs/` and no further.
"""

import os
from pathlib import Path

from sdjax.core.errors import CheckpointError, shown


def home_of(folder: Path) -> Path:
    """The folder that links may not leave: a checkpoint's own or, in the Hub's cache, its repository's."""
    for start in (Path(os.path.abspath(folder)), Path(os.path.realpath(folder))):
        for above in (start, *start.parents):
            repository = above.parent.parent
            if above.parent.name == "snapshots" and repository.name.startswith("models--"):
                return Path(os.path.realpath(repository))
    return Path(os.path.realpath(folder))


def within(path: Path, home: Path) -> Path:
    """`path`, whose links stay in `home`. Raises CheckpointError, naming it, where they lead out."""
    target = Path(os.path.realpath(path))
    if target != home and home not in target.parents:
        raise CheckpointError(
            f"{path} is a link, or lies behind one, that leads out of the checkpoint, to {shown(str(target))}. Such "
            "links are not followed: in somebody else's folder they could name any file of yours. If it is your own, "
            "put the file itself there (`cp -L`), or give the folder that it leads to"
        )
    return path
