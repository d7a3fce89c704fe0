"""Inputs with images: their order, what goes on the device, and all rows as one."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from backbones.inputs import Example, Inputs, images_of, make_inputs


def example(size: int, images: int, first: int = 0) -> Example:
    pixels = np.arange(first, first + images, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return Example(np.arange(size), np.ones(size, bool), pixels if images else None)


@given(counts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=3))
def test_the_images_of_all_rows_lie_end_to_end_in_the_order_of_their_examples(counts: list[list[int]]) -> None:
    rows, first = [], 0
    for row in counts:
        rows.append([example(4, images, first + sum(row[:place])) for place, images in enumerate(row)])
        first += sum(row)

    found = images_of(rows)

    assert (None if found is None else found[:, 0, 0, 0].tolist()) == (list(range(first)) if first else None)


def test_what_follows_tokens_becomes_one_row_with_them_and_what_does_not_stays() -> None:
    made = make_inputs([[example(3, 1)], [example(2, 1), example(3, 0)]], pad_token_id=9)
    rope = np.stack([made.position_ids_BT + axis for axis in range(4)])
    pixels = np.ones((2, 3, 2, 2), np.float32)
    inputs = Inputs(
        made.input_ids_BT, made.position_ids_BT, made.labels_BT, {"pixel_values": pixels}, {"position_ids": rope}
    )

    one = inputs.as_one_row()
    arguments = one.on(torch.device("cpu")).arguments

    assert one.position_ids_BT.shape == (1, 10)
    assert arguments["position_ids"].shape == (4, 1, 10)
    assert arguments["position_ids"][2, 0].tolist() == (made.position_ids_BT.reshape(-1) + 2).tolist()
    assert arguments["pixel_values"].shape == pixels.shape
