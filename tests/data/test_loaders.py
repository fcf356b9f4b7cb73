import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.data.batch import Batch, collate
from dwtriton.data.coco import CocoDataset, Sample
from dwtriton.data.loaders import OrientedBatchSampler, eval_loader, train_loader

ORIENTATIONS = [True] * 11 + [False] * 6 + [True] * 2


def batches_of(sampler, epoch, start=0):
    sampler.set_epoch(epoch, start)
    return list(sampler)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_batches_are_full_of_one_orientation_and_cover_every_index(landscape, batch_size, seed, epoch):
    sampler = OrientedBatchSampler(landscape, batch_size, seed)
    batches = batches_of(sampler, epoch)
    assert len(sampler) == len(batches)
    indices = [[request.index for request in batch] for batch in batches]
    assert all(len(batch) == batch_size for batch in indices)
    assert all(len({landscape[index] for index in batch}) == 1 for batch in indices)
    counts = np.bincount(np.concatenate(indices), minlength=len(landscape))
    assert counts.min() >= 1
    for wide in (True, False):  # only the last batch of an orientation repeats
        group = counts[np.array(landscape) == wide]
        assert group.sum() - len(group) < batch_size


@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_the_micro_batches_of_all_ranks_make_up_the_batches_of_one(landscape, size, world_size, accumulate, start):
    """Without overlap, also where an epoch is resumed."""
    whole = OrientedBatchSampler(landscape, size * world_size * accumulate, seed=5)
    parts = [
        OrientedBatchSampler(landscape, whole.batch_size, 5, rank, world_size, accumulate) for rank in range(world_size)
    ]
    assert all(part.steps == len(whole) == whole.steps for part in parts)
    assert all(len(part) == accumulate * len(whole) for part in parts)
    expected = batches_of(whole, 2, start)
    rounds = list(zip(*(batches_of(part, 2, start) for part in parts), strict=True))  # a micro-batch of each rank
    assert all(len(micro_batch) == size for one_round in rounds for micro_batch in one_round)
    steps = [rounds[i : i + accumulate] for i in range(0, len(rounds), accumulate)]
    joined = [[request for one_round in step for batch in one_round for request in batch] for step in steps]
    assert joined == expected


@pytest.mark.parametrize(("batch_size", "world_size", "accumulate"), [(16, 3, 1), (16, 4, 8), (1, 2, 1), (6, 2, 2)])
def test_a_batch_that_does_not_divide_into_micro_batches_is_refused(batch_size, world_size, accumulate):
    with pytest.raises(UserError, match=rf"data\.batch_size = {batch_size} .* {world_size} ranks .* = {accumulate}:"):
        OrientedBatchSampler(ORIENTATIONS, batch_size, 0, 0, world_size, accumulate)


def test_order_and_seeds_depend_on_seed_and_epoch_alone():
    first, second = (OrientedBatchSampler(ORIENTATIONS, 4, seed=3) for _ in range(2))
    batches_of(first, 7)
    assert batches_of(first, 2) == batches_of(second, 2)
    assert batches_of(first, 2) != batches_of(first, 3)
    assert batches_of(first, 2) != batches_of(OrientedBatchSampler(ORIENTATIONS, 4, seed=4), 2)


def test_seeds_differ_between_samples_and_epochs():
    sampler = OrientedBatchSampler(ORIENTATIONS, 4, seed=0)
    seeds = [request.seed for epoch in range(3) for batch in batches_of(sampler, epoch) for request in batch]
    assert len(set(seeds)) == len(seeds)


def test_a_resumed_epoch_continues_with_the_same_batches():
    sampler = OrientedBatchSampler(ORIENTATIONS, 4, seed=0)
    whole = batches_of(sampler, 1)
    for start in range(len(whole) + 1):
        assert batches_of(sampler, 1, start) == whole[start:]
        assert len(sampler) == len(whole)
    assert batches_of(sampler, 2) == batches_of(OrientedBatchSampler(ORIENTATIONS, 4, seed=0), 2)  # start is not kept


def test_orientations_are_mixed_over_the_epoch():
    landscape = [True] * 100 + [False] * 100
    order = [landscape[batch[0][0]] for batch in batches_of(OrientedBatchSampler(landscape, 4, seed=0), 0)]
    assert 10 < sum(a != b for a, b in itertools.pairwise(order)) < 40


def sample(height, width, image_id):
    target = {"boxes": torch.tensor([[0.0, 0.0, width, height]]), "labels": torch.tensor([0])}
    return Sample(torch.full((3, height, width), float(image_id)), target, image_id, f"{image_id}.jpg", (0.5, 0.25))


def test_collate_pads_with_zeros_below_and_right_to_the_largest_multiple():
    batch = collate([sample(40, 64, 1), sample(33, 70, 2)], num_classes=1, size_divisor=32)
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.image_sizes == [(40, 64), (33, 70)]
    assert (batch.images[0, :, :40, :64] == 1).all()
    assert batch.images[0].sum() == 3 * 40 * 64
    assert batch.images[1].sum() == 2 * 3 * 33 * 70
    assert batch.image_ids == [1, 2]
    assert batch.paths == ["1.jpg", "2.jpg"]
    assert batch.scale_factors == [(0.5, 0.25)] * 2
    assert batch.targets[1]["boxes"].tolist() == [[0, 0, 70, 33]]


@pytest.fixture
def many(tiny) -> Config:
    """24 images of several sizes, three in a batch, augmented."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(33, 90, (24, 2)).tolist()
    tiny.content["images"] = [
        {"id": i, "file_name": f"{i}.jpg", "width": width, "height": height} for i, (width, height) in enumerate(sizes)
    ]
    tiny.content["annotations"] = [
        {"id": i + 1, "image_id": i, "category_id": 7, "bbox": [3, 4, 20, 25], "area": 500, "iscrowd": 0}
        for i in range(24)
    ]
    data = tiny.write().model_copy(update={"short_side": (32, 64), "long_side": 100, "batch_size": 3})
    return Config(data=data, head={"num_classes": 3}, inference=tiny.inference)


def with_workers(cfg, workers):
    return cfg.model_copy(update={"data": cfg.data.model_copy(update={"workers": workers})})


def assert_equal_batches(a: Batch, b: Batch):
    assert torch.equal(a.images, b.images)
    assert (a.image_ids, a.image_sizes, a.scale_factors, a.paths) == (
        b.image_ids,
        b.image_sizes,
        b.scale_factors,
        b.paths,
    )
    for one, other in zip(a.targets, b.targets, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_training_batches_do_not_depend_on_workers_or_on_where_the_epoch_was_resumed(many):
    dataset = CocoDataset(many.data, "train")
    loaders = [train_loader(dataset, with_workers(many, workers)) for workers in (0, 2)]
    for epoch in (1, 0):  # persistent workers serve several epochs
        for loader in loaders:
            loader.batch_sampler.set_epoch(epoch)
        alone, parallel = (list(loader) for loader in loaders)
        assert len(alone) == len(parallel) == len(loaders[0])
        for a, b in zip(alone, parallel):
            assert_equal_batches(a, b)
    loaders[1].batch_sampler.set_epoch(0, start=5)
    resumed = list(loaders[1])
    assert len(resumed) == len(alone) - 5
    for a, b in zip(alone[5:], resumed):
        assert_equal_batches(a, b)


def test_loading_leaves_the_global_random_generator_alone(many):
    state = torch.get_rng_state()
    list(train_loader(CocoDataset(many.data, "train"), many))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_has_every_image_once_in_order_of_aspect(many):
    dataset = CocoDataset(many.data, "val", inference=many.inference)
    batches = list(eval_loader(dataset, many))
    ids = [image_id for batch in batches for image_id in batch.image_ids]
    assert sorted(ids) == list(range(24))
    images = {
        image["id"]: image["height"] / image["width"] for image in json.loads(_val_json(many).read_text())["images"]
    }
    aspects = [images[id_] for id_ in ids]
    assert aspects == sorted(aspects)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_has_every_image_on_one_rank_and_none_padded_for_another(many, world_size):
    dataset = CocoDataset(many.data, "val", inference=many.inference)
    batches = [batch for rank in range(world_size) for batch in eval_loader(dataset, many, rank, world_size)]
    assert sorted(image_id for batch in batches for image_id in batch.image_ids) == list(range(24))
    for batch in batches:
        assert len(batch) <= max(1, many.data.batch_size // world_size)
        for height, width in batch.image_sizes:
            assert batch.images.shape[2:] == (-(-height // 32) * 32, -(-width // 32) * 32)
    assert any(len(batch) > 1 for batch in batches) == (world_size == 1)


def _val_json(cfg):
    return cfg.data.root / cfg.data.val_annotations


def test_training_batches_have_one_orientation(many):
    dataset = CocoDataset(many.data, "train")
    for batch in train_loader(dataset, many):
        assert len({bool(dataset.landscape[dataset.paths.index(path)]) for path in batch.paths}) == 1


def test_batches_that_no_machine_holds_are_named_with_their_keys(tiny):
    data = tiny.write().model_copy(update={"batch_size": 2**16, "size_divisor": 2**16, "buckets": 0})
    cfg = Config(data=data, head={"num_classes": 3})
    with pytest.raises(
        UserError, match=r"65536 images of 65536x65536 in a batch take .* GB of memory: lower data\.batch"
    ):
        train_loader(CocoDataset(data, "train"), cfg)
    with pytest.raises(UserError, match=r"1 images of 65536x65536 .* lower inference\.short_side"):
        eval_loader(CocoDataset(data, "val", inference=tiny.inference), cfg)
