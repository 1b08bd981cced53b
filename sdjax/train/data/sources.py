"""Any data set by its path: a folder of pictures, of webdataset's shards or of parquet files, or one such file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdjax.core.errors import listing
from sdjax.train.data.folder import read_folder
from sdjax.train.data.parquet import read_parquet
from sdjax.train.data.record import ENDINGS, Found, joined
from sdjax.train.data.shards import read_shards


def find(
    path: str | Path,
    caption: str | None = None,
    *,
    maps: str | Path | None = None,
    masks: str | Path | None = None,
    rejected: str | Path | None = None,
) -> Found:
    """What the data set at `path` holds, every record with a caption.

    caption: for pictures that have none. maps, masks, rejected: data sets of pictures of the same names: what a
    ControlNet is shown, where the error counts (white), and the other one of each pair in preference data.

    Raises:
        FileNotFoundError: there is nothing at a path.
        ValueError: it holds no pictures; some have no caption, and none is given for them; a file of it is damaged.
        ImportError: it holds parquet files, and pyarrow is not installed.
    """
    found = _captioned(_found(Path(path)), caption, path)
    for kind, other in (("map", maps), ("mask", masks), ("rejected", rejected)):
        found = found if other is None else joined(found, kind, _found(Path(other)))
    return found


def _found(path: Path) -> Found:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is nothing there; name a folder of pictures")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    shards, tables = (_ending(files, ending) for ending in (".tar", ".parquet"))
    if not path.is_dir() and not (shards or tables):
        raise ValueError(f"{path} is no folder, no .tar and no .parquet; name the folder that it is in")
    found = read_shards(shards) if shards else read_parquet(tables) if tables else read_folder(path)
    if not found.records:
        told = f"; {len(found.rejects)} cannot be read:" + listing([": ".join(one) for one in found.rejects])
        raise ValueError(
            f"{path} holds no pictures ({', '.join(ENDINGS)}, .tar or .parquet){told if found.rejects else ''}"
        )
    return found


def _ending(files: Sequence[Path], ending: str) -> list[Path]:
    return [one for one in files if one.name.lower().endswith(ending) and not one.name.startswith(".")]


def _captioned(found: Found, caption: str | None, path: str | Path) -> Found:
    bare = [one.name for one in found.records if not one.captions]
    if bare and caption is None:
        raise ValueError(
            f"{path}: {len(bare)} of {len(found.records)} pictures have no caption; write one into a .txt file of the "
            f"picture's name, or give one for all that have none (--caption, --class_caption):{listing(bare)}"
        )
    return replace(
        found, records=tuple(one if one.captions else replace(one, captions=(caption or "",)) for one in found.records)
    )
