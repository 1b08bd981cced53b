"""Hugging Face's data sets as parquet files: a column `image` of {bytes, path}, or of paths, and one of captions.

A parquet file is read by row groups, of some hundred pictures: the one that was last read stays in memory. Pictures in
a random order therefore cost a row group each. The scan goes through them in order, and so does the cache of latents;
with such a cache nothing is read here while a model learns.

pyarrow reads them, which comes with `pip install 'sdjax[data]'`.
"""

from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from sdjax.train.data.record import Found, Record, read_file

TEXTS = ("text", "caption", "captions")  # columns of captions, in the order in which they are looked for


def read_parquet(paths: list[Path]) -> Found:
    """What parquet files hold. Raises ValueError for files without such columns, ImportError without pyarrow."""
    files = sorted(paths, key=lambda path: path.name)
    return Found(tuple(record for path in files for record in _records(path)))


def _records(path: Path) -> list[Record]:
    file = _open(path)
    columns = file.schema_arrow.names
    texts = next((name for name in TEXTS if name in columns), None)
    if "image" not in columns:
        raise ValueError(f"{path} has no column `image`, of {{bytes, path}} or paths; it has {', '.join(columns)}")
    records: list[Record] = []
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        captions = file.read_row_group(group, columns=[texts])[texts].to_pylist() if texts else [None] * count
        for row, caption in enumerate(captions):
            name = f"{path.name}/{len(records):08d}"
            records.append(Record(name, partial(_picture, path, group, row), _captions(caption)))
    return records


def _captions(value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    return tuple(one.strip() for one in texts if isinstance(one, str) and one.strip())


def _picture(path: Path, group: int, row: int) -> bytes:
    """The bytes of one picture. Raises OSError, ValueError."""
    value = _group(path, group)[row].as_py()
    inside, named = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if isinstance(inside, bytes):
        return inside
    if not isinstance(named, str):
        raise ValueError("its row has neither a picture nor a path to one")
    target = (path.parent / named).resolve()
    if not target.is_relative_to(path.parent.resolve()):
        raise ValueError(f"its path {named} leads out of {path.parent}")
    return read_file(target)


@lru_cache(maxsize=2)
def _group(path: Path, group: int) -> Any:
    return _open(path).read_row_group(group, columns=["image"])["image"]


def _open(path: Path) -> Any:
    parquet = _pyarrow()
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these
        raise ValueError(f"{path} cannot be read as a parquet file ({error})") from None


def _pyarrow() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError("parquet files are read by pyarrow, which is not there: pip install 'sdjax[data]'") from None
    return pyarrow.parquet
