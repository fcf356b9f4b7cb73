"""Images of many sizes in batches of one padded size."""

import torch

from dwtriton.data.coco import Sample
from dwtriton.inference.inputs import MAX_WAITING_BATCHES, batches_of_one_size


def samples(sizes):
    for number, (height, width) in enumerate(sizes):
        yield Sample(torch.zeros(3, height, width, dtype=torch.uint8), {}, number, "", (1.0, 1.0))


def test_a_batch_pads_to_one_size_and_is_full_if_it_can_be():
    sizes = [(30, 60), (90, 60), (32, 64), (20, 40), (96, 64), (70, 33), (1, 33)]
    batches = [[e.image_id for e in batch] for batch in batches_of_one_size(samples(sizes), 2, 32)]
    assert batches == [[0, 2], [1, 4], [3, 6], [5]]


def test_few_examples_wait_however_many_sizes_there_are():
    sizes = [(32 * (1 + number % 50), 32) for number in range(200)]
    asked = 0

    def counted():
        nonlocal asked
        for sample in samples(sizes):
            asked += 1
            yield sample

    given, batch = [], 3
    for found in batches_of_one_size(counted(), batch, 32):
        given += [sample.image_id for sample in found]
        assert len({tuple(sample.image.shape) for sample in found}) == 1
        assert asked - len(given) < MAX_WAITING_BATCHES * batch
    assert sorted(given) == list(range(200))
