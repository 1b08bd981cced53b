"""Where pictures come from, what is taken of them, and what is refused with which reason."""

import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from sdjax.images.read import open_bytes
from sdjax.train.data.scan import scan
from sdjax.train.data.sources import find

RNG = np.random.default_rng(0)


def picture(width=48, height=40, mode="RGB"):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def encoded(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def captions(found):
    return {one.name: one.captions for one in found.records}


# Folders -----------


def test_a_folder_with_captions(tmp_path):
    for name in ("b.png", "a.PNG", "deep/er/c.png", ".hidden.png", "__MACOSX/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / name)
    (tmp_path / "b.txt").write_text("\ufeffa cat\n\n  a small cat \n", encoding="utf-8")
    (tmp_path / "a.caption").write_text("a dog")
    (tmp_path / "deep/er/c.txt").write_text("é")
    (tmp_path / "notes.md").write_text("no caption")
    found = find(tmp_path)
    assert captions(found) == {"a.PNG": ("a dog",), "b.png": ("a cat", "a small cat"), "deep/er/c.png": ("é",)}
    assert [one.name for one in found.records] == ["a.PNG", "b.png", "deep/er/c.png"] and not found.rejects


def test_metadata_of_an_imagefolder(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("a", "b"):
        picture().save(tmp_path / f"train/{name}.png")
    rows = [
        {"file_name": "a.png", "text": ["one", " two "], "more": 3},
        {"file_name": "b.png", "text": "three"},
        {"file_name": "gone.png", "text": "four"},
        {"file_name": "../../etc/passwd", "text": "five"},
    ]
    (tmp_path / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = find(tmp_path)
    assert captions(found) == {"train/a.png": ("one", "two"), "train/b.png": ("three",)}
    assert [one.name for one in found.rejects] == ["train/gone.png", "train/../../etc/passwd"]
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "a.png"}')
    with pytest.raises(ValueError, match=r'metadata.jsonl, line 1 must be {"file_name"'):
        find(tmp_path)
    (tmp_path / "train/metadata.jsonl").write_text("\n\n{")
    with pytest.raises(ValueError, match="line 3 is not JSON"):
        find(tmp_path)


def test_folders_of_dreambooth(tmp_path):
    for name in ("10_sks dog/a.png", "10_sks dog/b.png", "2024_more/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / name)
    (tmp_path / "10_sks dog/b.txt").write_text("sks dog, sitting")
    found = find(tmp_path, caption="a dog")
    assert captions(found) == {
        "10_sks dog/a.png": ("sks dog",),
        "10_sks dog/b.png": ("sks dog, sitting",),
        "2024_more/c.png": ("a dog",),
    }
    assert [one.repeats for one in found.records] == [10, 10, 1]


def test_no_captions_no_pictures_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is nothing there"):
        find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no pictures"):
        find(tmp_path)
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match="1 cannot be read:\n    a.heic: .heic is not read; convert it to PNG or JPEG"):
        find(tmp_path)
    picture().save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="1 of 1 pictures have no caption; write one into a .txt file.*\n    b.png"):
        find(tmp_path)
    assert captions(find(tmp_path, caption="")) == {"b.png": ("",)}
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    picture().save(tmp_path / "c.png")
    assert dict(find(tmp_path, "x").rejects)["b.png"] == "its caption is not UTF-8; save it as such"
    with pytest.raises(ValueError, match="no folder, no .tar and no .parquet"):
        find(tmp_path / "b.png")


# The scan -----------


def test_what_is_read_and_what_is_refused(tmp_path):
    """Every kind of file that turns up in a folder; those that are good are read as a viewer shows them."""
    turned = Image.Exif()
    turned[0x0112] = 6  # stands on its side
    good = {
        "cmyk.jpg": encoded(picture(mode="CMYK"), "JPEG"),
        "exif.jpg": encoded(picture(), "JPEG", exif=turned),
        "grey16.png": encoded(Image.fromarray(RNG.integers(0, 65536, (40, 48)).astype(np.uint16))),
        "moving.gif": encoded(picture(), "GIF", save_all=True, append_images=[picture()]),
        "palette.png": encoded(picture().quantize(16)),
        "png-inside.jpg": encoded(picture()),
        "see-through.png": encoded(picture().convert("RGBA")),
    }
    whole = encoded(picture(400, 300), "JPEG")
    clear = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    bad = {
        "clear.png": (encoded(clear), "all of it is transparent"),
        "cut.jpg": (whole[: len(whole) // 2], "damaged or cut short"),
        "empty.png": (b"", "is an empty file"),
        "float.tiff": (
            encoded(Image.fromarray(RNG.random((40, 48)).astype(np.float32)), "TIFF"),
            "which value is white",
        ),
        "small.png": (encoded(picture(10, 10)), "10 x 10 is too small; a side must have 32 pixels"),
        "text.jpg": (b"<html>", "not recognised as a picture"),
    }
    for name, data in {**good, **{name: data for name, (data, _) in bad.items()}}.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    dataset = scan(find(tmp_path, caption="x"))
    assert [one.record.name for one in dataset.items] == sorted(good)
    sizes = {one.record.name: (one.height, one.width) for one in dataset.items}
    assert sizes.pop("exif.jpg") == (48, 40) and set(sizes.values()) == {(40, 48)}
    reasons = dict(dataset.rejects)
    assert sorted(reasons) == sorted([*bad, "link.png", "pipe.png"])
    assert all(reason in reasons[name] for name, (_, reason) in bad.items()), reasons
    assert "a pipe" in reasons["pipe.png"] and "No such file" in reasons["link.png"]
    dataset.write_rejects(tmp_path / "rejects.txt")
    lines = (tmp_path / "rejects.txt").read_text().splitlines()
    assert len(lines) == 8 and lines[4].startswith("link.png\t")


def test_nothing_good(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="none of the pictures can be learnt from:\n    a.png: is not recognised"):
        scan(find(tmp_path, caption=""))


def test_the_fingerprint_is_that_of_what_is_learnt(tmp_path):
    for name in ("a", "b"):
        picture().save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("x")
    first = scan(find(tmp_path)).fingerprint
    assert first == scan(find(tmp_path)).fingerprint and first["pictures"] == 2
    (tmp_path / "a.txt").write_text("y")
    second = scan(find(tmp_path)).fingerprint
    picture().save(tmp_path / "a.png")
    third = scan(find(tmp_path)).fingerprint
    assert len({one["sha256"] for one in (first, second, third)}) == 3


def test_what_was_seen_once_is_not_decoded_again(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "sdjax.train.data.scan.open_bytes", lambda data, name: decoded.append(name) or open_bytes(data, name)
    )
    for i in range(4):
        picture().save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    kept = tmp_path / "run/scan.json"
    first = scan(find(tmp_path, ""), kept=kept)
    assert sorted(decoded) == ["0.png", "1.png", "2.png", "3.png", "bad.png"]
    picture(64, 50).save(tmp_path / "2.png")
    decoded.clear()
    second = scan(find(tmp_path, ""), kept=kept)
    assert sorted(decoded) == ["2.png", "bad.png"] and second.items[2].width == 64
    assert (second.items[0], second.items[3]) == (first.items[0], first.items[3])
    assert [one.name for one in scan(find(tmp_path, ""), kept=kept, least=45).rejects] == [
        "0.png",
        "1.png",
        "3.png",
        "bad.png",
    ]
    kept.write_text("{")
    assert scan(find(tmp_path, ""), kept=kept).fingerprint == second.fingerprint


def test_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("sdjax.train.data.progress.SECONDS", -1.0)
    for i in range(3):
        picture().save(tmp_path / f"{i}.png")
    told = []
    scan(find(tmp_path, ""), report=told.append)
    assert [one.partition(",")[0] for one in told] == [f"{i} of 3 pictures seen" for i in (1, 2, 3)]


def test_maps_and_masks(tmp_path):
    for folder in ("own", "maps", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b", "c", "d"):
        picture().save(tmp_path / f"own/{name}.jpg")
        picture(96, 80).save(tmp_path / f"maps/{name}.png")
    picture(96, 200).save(tmp_path / "maps/b.png")
    (tmp_path / "maps/c.png").unlink()
    dataset = scan(find(tmp_path / "own", "x", maps=tmp_path / "maps"))
    assert [one.record.name for one in dataset.items] == ["a.jpg", "d.jpg"]
    assert dict(dataset.rejects) == {
        "b.jpg": "its map is 96 x 200 and the picture 48 x 40: another shape",
        "c.jpg": "it has no map of the same name",
    }
    Image.new("L", (48, 40), 0).save(tmp_path / "masks/a.png")
    Image.new("L", (48, 40), 255).save(tmp_path / "masks/d.png")
    dataset = scan(find(tmp_path / "own", "x", masks=tmp_path / "masks"))
    assert [one.record.name for one in dataset.items] == ["d.jpg"]
    assert dict(dataset.rejects)["a.jpg"] == "its mask is black all over: nothing of it counts"
    (tmp_path / "masks/a.png").rename(tmp_path / "masks/x.png")
    (tmp_path / "masks/d.png").rename(tmp_path / "masks/y.png")
    with pytest.raises(ValueError, match="no picture has a mask: they are found by the same name, as a.png for a"):
        find(tmp_path / "own", "x", masks=tmp_path / "masks")


# Shards -----------


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_shards_are_read_in_place(tmp_path):
    pictures = {f"{i:04}": encoded(picture()) for i in range(4)}
    names = list(pictures)
    shard(
        tmp_path / "00.tar",
        [(f"{n}.{e}", d) for n in names[:2] for e, d in (("png", pictures[n]), ("txt", b"a " + n.encode()))],
    )
    told = [("0002.json", b'{"caption": "in json", "width": 3}'), ("0002.png", pictures["0002"])]
    long = "long/" * 40 + "0003"
    shard(tmp_path / "01.tar", [*told, (f"{long}.png", pictures["0003"]), (f"{long}.txt", b"far"), ("other.cls", b"7")])
    found = find(tmp_path)
    assert captions(found) == {
        "00.tar/0000.png": ("a 0000",),
        "00.tar/0001.png": ("a 0001",),
        "01.tar/0002.png": ("in json",),
        f"01.tar/{long}.png": ("far",),
    }
    assert [one.read() for one in reversed(found.records)] == [*reversed(pictures.values())]
    assert len(scan(found).items) == 4 and sorted(os.listdir(tmp_path)) == ["00.tar", "01.tar"]


def test_shards_of_strangers(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("null.png", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("../../up.png", "a.png", "a.png"):
            info, data = tarfile.TarInfo(name), encoded(picture())
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = find(tmp_path, "x")
    assert [one.name for one in found.records] == ["x.tar/../../up.png", "x.tar/a.png"]
    assert [one.name for one in found.rejects] == ["x.tar/link.png", "x.tar/hard.png", "x.tar/null.png", "x.tar/a.png"]
    data = path.read_bytes()
    second = data.index(b"a.png")  # the header of a member in the middle: all behind it would be lost
    path.write_bytes(data[:second] + b"b" + data[second + 1 :])
    with pytest.raises(ValueError, match=r"x.tar cannot be read as a tar file \(a damaged header at byte"):
        find(tmp_path, "x")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"x.tar cannot be read as a tar file"):
        find(tmp_path, "x")
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(ValueError, match="one that is compressed has to be unpacked to .tar first"):
        find(path, "x")


def test_pictures_that_are_not_seen_are_told(tmp_path):
    members = [("a.png", encoded(picture())), ("a.mask.png", b""), ("b.v2.png", b""), ("c.heic", b""), ("d.cls", b"")]
    found = find(shard(tmp_path / "0.tar", members), "x")
    assert [one.name for one in found.records] == ["0.tar/a.png"]
    assert [one.name for one in found.rejects] == ["0.tar/b.v2.png", "0.tar/c.heic"]


def test_a_shard_whose_member_is_of_negative_size(tmp_path):
    """Python's tarfile went round and round in such a one (CVE-2025-8194)."""
    info = tarfile.TarInfo("a.png")
    header = bytearray(info.tobuf())
    header[124:136] = b"\xff" * 11 + b"\x00"  # base 256: -256
    header[148:156] = b"        "
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(bytes(header[:512]) + bytes(1024))
    with pytest.raises(ValueError, match="cannot be read as a tar file"):
        find(tmp_path, "x")


# Parquet -----------


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    data = [encoded(picture()) for _ in range(5)]
    (tmp_path / "far.png").write_bytes(data[4])
    images = [{"bytes": one, "path": None} for one in data[:4]] + [{"bytes": None, "path": "far.png"}]
    images += [{"bytes": None, "path": "../up.png"}, {"bytes": None, "path": None}]
    texts = [["a", " b "], ["c"], ["d"], ["e"], ["f"], ["g"], ["h"]]
    pq.write_table(
        pa.table({"image": images, "text": texts, "n": list(range(7))}), tmp_path / "0.parquet", row_group_size=3
    )
    found = find(tmp_path)
    assert [one.captions for one in found.records] == [("a", "b"), *[(x,) for x in "cdefgh"]]
    assert [found.records[i].read() for i in (4, 0, 3, 1, 2)] == [data[i] for i in (4, 0, 3, 1, 2)]
    reasons = [reason for _, reason in scan(found).rejects]
    assert "leads out of" in reasons[0] and "neither a picture nor a path" in reasons[1]
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match="has no column `image`"):
        find(tmp_path)
    (tmp_path / "0.parquet").write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(ValueError, match="cannot be read as a parquet file"):
        find(tmp_path)


def test_without_pyarrow_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"pip install 'sdjax\[data\]'"):
        find(tmp_path)
