"""Segmentation maps: 150 classes of ADE20K, each in its colour.

The colours are the published palette (CN's and X's `ade_palette`, mmsegmentation's and Scenic's of ADE20K); by others a
net takes a wall for something else. Classes count from 0, wall, to 149, flag. Two have one colour, the grey of a road
(6) and of a skyscraper (48): from a picture either is read as a road.
"""

from typing import Any

import numpy as np
from PIL import Image

from sdjax.images import read
from sdjax.images.maps.pictures import picture, pixels

NOTHING = 255  # a label without a class, drawn black: what the annotations call it that count from 0
ONE_CHANNEL = ("L", "P", "I", "I;16")  # PIL's modes whose values may be labels

_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
    armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard,
    chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway,
    case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
    book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
    hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane,
    dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
    fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
    minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
    screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
"""

_PALETTE = """
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
    ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
    08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
    eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
    0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
    0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
    00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
    8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
    ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
    00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""

NAMES: tuple[str, ...] = tuple(" ".join(name.split()) for name in _NAMES.split(","))
PALETTE = np.array([list(bytes.fromhex(one)) for one in _PALETTE.split()], np.uint8)  # 150 3, RGB


def segmentation(values: Any) -> Image.Image:
    """Classes in their colours.

    values: whole numbers `H W`, or a picture of one channel that holds them, 0 to 149; 255 is no class, and black.
    Raises ValueError, FileNotFoundError.
    """
    found = _labels(values)
    wrong = found[(found != NOTHING) & ((found < 0) | (found >= len(PALETTE)))]
    if wrong.size:
        raise ValueError(
            f"a label is {int(wrong[0])}; classes count from 0 ({NAMES[0]}) to {len(PALETTE) - 1} ({NAMES[-1]}), and "
            f"{NOTHING} is none. Of an annotation with 150 for {NAMES[-1]} take 1 off"
        )
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(PALETTE)] = PALETTE
    return picture(colours[found])


def classes(image: read.ImageLike) -> np.ndarray:
    """The way back: a picture in (about) these colours -> the classes of the nearest ones, uint8 `H W`, 0 to 149.

    What is black has no colour of a class, and is read as the nearest all the same. Raises ValueError,
    FileNotFoundError.
    """
    found = pixels(image).astype(np.int32)
    packed = (found[..., 0] << 16) | (found[..., 1] << 8) | found[..., 2]
    each, where = np.unique(packed, return_inverse=True)
    seen = np.stack([each >> 16, each >> 8 & 255, each & 255], axis=-1)
    nearest = [_nearest(seen[start : start + 4096]) for start in range(0, len(seen), 4096)]
    return np.concatenate(nearest)[where].reshape(packed.shape)


def _nearest(colours: np.ndarray) -> np.ndarray:
    """The class of the least square distance, the first of several: `n 3` -> uint8 `n`."""
    apart = colours[:, None].astype(np.int32) - PALETTE[None].astype(np.int32)
    return (apart**2).sum(axis=-1).argmin(axis=-1).astype(np.uint8)


def _labels(values: Any) -> np.ndarray:
    """The labels as they are, whole numbers `H W`. Raises ValueError, FileNotFoundError."""
    if isinstance(values, np.ndarray):
        found, what = values, f"{values.dtype}{list(values.shape)}"
    else:
        opened = read.open_image(values, "labels")
        found, what = np.asarray(opened), f"a picture of mode {opened.mode}"
        found = found if opened.mode in ONE_CHANNEL else found[:0]
    if found.ndim != 2 or not found.size or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"labels must be whole numbers [H, W], or a picture of one channel, not {what}; one that is coloured "
            "already is a map, and `segmentation.classes` reads it back"
        )
    return found
