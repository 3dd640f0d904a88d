"""Class numbers by sorting, as an accelerator makes them, against the labels and the hash table."""

import pytest
import torch

from fastdml.engine.relation import LabelRelation, sorted_class_index

LABELS = {
    "shuffled": (torch.tensor([5, 3, 5, 9, 3, 5]), None),
    "one": (torch.tensor([7]), None),
    "one class": (torch.full((9,), -4), None),
    "singletons": (torch.arange(11).flip(0) * 3, None),
    "wide": (torch.tensor([2**62, -(2**62), 0, 2**32, 2**32 + 1, 1, 0]), None),
    "reference": (torch.tensor([4, 8, 1, 99, -7]), torch.tensor([8, 8, 1, 2, 4, 4, 8])),
    "all unknown": (torch.tensor([100, -100]), torch.tensor([1, 2, 3])),
}


@pytest.mark.parametrize("name", LABELS)
def test_equal_to_the_labels(name):
    rows, columns = LABELS[name]
    columns = rows if columns is None else columns
    found = sorted_class_index(rows, columns)
    same = found.row_class[:, None] == found.col_class[None, :]
    assert torch.equal(same, rows[:, None] == columns[None, :])
    assert found.start.shape == (len(columns) + 1,)
    for tensor in (found.row_class, found.col_class, found.start, found.order):
        assert tensor.dtype == torch.int32 and tensor.is_contiguous()
    for j, c in enumerate(found.col_class.tolist()):
        begin, end = found.start[c : c + 2].tolist()
        members = found.order[begin:end].tolist()
        assert members == (columns == columns[j]).nonzero()[:, 0].tolist()  # ascending
    assert int(found.start[-1]) == len(columns)
    assert ((found.row_class == -1) == ~torch.isin(rows, columns)).all()
    assert found.longest >= max((columns == c).sum() for c in columns)


def test_same_partition_as_the_hash_table():
    g = torch.Generator().manual_seed(0)
    columns = torch.randint(-50, 50, (500,), generator=g)
    rows = torch.randint(-60, 60, (200,), generator=g)
    by_sort, by_hash = sorted_class_index(rows, columns), LabelRelation(rows, columns).class_index

    def members(index, c):
        return index.order[index.start[c] : index.start[c + 1]].tolist()

    for i in range(len(rows)):
        a, b = int(by_sort.row_class[i]), int(by_hash.row_class[i])
        assert (a < 0) == (b < 0)
        if a >= 0:
            assert members(by_sort, a) == members(by_hash, b)
