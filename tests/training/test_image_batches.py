"""Prepared images in batches: passes over them in random order, and held-out images that get poses of their own."""

import numpy as np
import torch

from cryoforum_core.training.image_batches import EpochStream, PreparedImages

from .clean_images import CleanSet


def test_the_epochs_are_functions_of_the_step():
    clean = CleanSet()
    stream = EpochStream(clean.images, clean.rows, clean.held_out, 100, 0)
    assert stream.steps_per_epoch == 4
    epoch = torch.cat([stream(step, 0.0)[0].rows for step in range(4)])
    assert sorted(epoch.tolist()) == clean.rows.tolist()
    assert torch.equal(stream(2, 0.0)[0].rows, stream(2, 0.9)[0].rows)
    assert not torch.equal(stream(0, 0.0)[0].rows, stream(4, 0.0)[0].rows)


def prepared(n: int, box_size_px: int):
    """Images that are their row number in all pixels, CTFs of 1, and a list of the rows that were prepared."""
    calls = []

    def prepare(rows):
        calls.append(rows.tolist())
        pixels = torch.from_numpy(rows).float()[:, None, None]
        return pixels.expand(-1, 4, 4), torch.ones(len(rows), 4, 3)

    return PreparedImages(prepare, n, box_size_px), calls


def test_a_small_set_is_prepared_once_and_a_large_one_for_each_batch():
    small, calls = prepared(300, 4)
    for rows in ([5, 299, 0], [7]):
        batch = small.at(np.array(rows))
        assert batch.rows.tolist() == rows and batch.images[:, 0, 0].tolist() == rows and len(batch) == len(rows)
    assert sum(calls, []) == list(range(300))
    large, calls = prepared(300, 5000)  # 300 images of 5,000 px do not fit into memory
    for rows in ([5, 299, 0], [7]):
        assert large.at(np.array(rows)).images[:, 0, 0].tolist() == rows
    assert calls == [[5, 299, 0], [7]]


def test_batches_are_in_the_order_of_the_rows_and_no_larger_than_asked():
    rows = np.arange(10)[::-1].copy()
    batches = list(prepared(10, 4)[0].batches(rows, 4))
    assert max(map(len, batches)) <= 4
    assert torch.cat([batch.rows for batch in batches]).tolist() == rows.tolist()


def test_every_tenth_step_is_of_held_out_images_where_each_image_has_a_pose_of_its_own():
    images = prepared(40, 4)[0]
    stream = EpochStream(images, np.arange(10, 40), np.arange(10), batch_size=5, seed=1, pose_steps_from=20)
    assert [step for step in range(40) if stream.is_held_out(step)] == [29, 39]
    batch, step = stream(29, 0.5)
    assert step == 29 and set(batch.rows.tolist()) <= set(range(10))
    assert not any(EpochStream(images, np.arange(10, 40), np.arange(10), 5, 1).is_held_out(step) for step in range(40))
