"""SDXL's numbers: their order, defaults and doors. Expected values: diffusers' _get_add_time_ids, by hand."""

import numpy as np
import pytest

from sdjax.request.arguments.size_conditioning import BASE_IDS, REFINER_IDS, SizeConditioning


def ids(given: dict, kind: int, count: int = 1) -> tuple[list, list]:
    negative, positive = SizeConditioning(**given).checked(count, kind).time_ids(768, 512, count, kind)
    assert negative.dtype == positive.dtype == np.float32
    return negative.tolist(), positive.tolist()


def test_defaults_are_the_pictures_own_size():
    own = [[768, 512, 0, 0, 768, 512]]
    assert ids({}, BASE_IDS) == (own, own)
    assert ids({}, REFINER_IDS) == ([[768, 512, 0, 0, 2.5]], [[768, 512, 0, 0, 6.0]])


def test_base_in_order():
    given = {"original_size": (1000, 900), "crop": (3, 4), "target_size": (700, 600)}
    want = [[1000, 900, 3, 4, 700, 600]]
    assert ids(given, BASE_IDS) == (want, want)
    given |= {"negative_original_size": (64, 32), "negative_target_size": (16, 8)}
    assert ids(given, BASE_IDS) == ([[64, 32, 0, 0, 16, 8]], want)
    assert ids(given | {"negative_crop": (1, 2)}, BASE_IDS)[0] == [[64, 32, 1, 2, 16, 8]]


def test_refiner_in_order():
    given = {"original_size": (1000, 900), "crop": (3, 4), "aesthetic_score": 7, "negative_aesthetic_score": 1.5}
    assert ids(given, REFINER_IDS) == ([[1000, 900, 0, 0, 1.5]], [[1000, 900, 3, 4, 7]])


def test_one_for_all_or_one_each():
    given = {"original_size": [(8, 16), (24, 32)], "crop": (1, 2)}
    want = [[8, 16, 1, 2, 768, 512], [24, 32, 1, 2, 768, 512]]
    assert ids(given, BASE_IDS, 2)[1] == want
    micro = SizeConditioning(**given).checked(2, BASE_IDS)
    assert micro.settings() == {"original_size": [[8, 16], [24, 32]], "crop": [[1, 2], [1, 2]]}
    again = SizeConditioning(**{"original_size": [8, 16]}).checked(1, BASE_IDS)
    assert again.original_size == [(8, 16)]


def test_unknown_names():
    with pytest.raises(ValueError, match="'orignal_size' is unknown; nearest: 'original_size'"):
        SizeConditioning.check_names(["crop", "orignal_size"])


@pytest.mark.parametrize(
    "given,kind,message",
    [
        ({"crop": (0, 0)}, 0, "crop belongs to SDXL"),
        ({"aesthetic_score": 6}, BASE_IDS, "aesthetic_score belongs to the SDXL refiner"),
        ({"target_size": (8, 8)}, REFINER_IDS, "target_size belongs to an SDXL base model"),
        ({"negative_original_size": (8, 8)}, BASE_IDS, "go together"),
        ({"negative_crop": (8, 8)}, BASE_IDS, "go together"),
        ({"original_size": (8, 0)}, BASE_IDS, r"original_size must be \(height, width\) in pixels, not \(8, 0\)"),
        ({"original_size": 8}, BASE_IDS, "original_size must be"),
        ({"original_size": [(8, 8)] * 3}, BASE_IDS, "3 entries for 1 pictures"),
        ({"crop": (1.5, 2)}, BASE_IDS, r"crop must be \(top, left\)"),
        ({"crop": (10**400, 0)}, BASE_IDS, "crop must be at most 16,384 pixels"),
        ({"original_size": (8, 20_000)}, BASE_IDS, "original_size must be at most 16,384 pixels"),
        ({"aesthetic_score": 10**400}, REFINER_IDS, "from 0 to 10"),
        ({"aesthetic_score": 11}, REFINER_IDS, "from 0 to 10"),
        ({"aesthetic_score": "good"}, REFINER_IDS, "from 0 to 10"),
    ],
)
def test_doors(given, kind, message):
    with pytest.raises(ValueError, match=message):
        SizeConditioning(**given).checked(1, kind)
