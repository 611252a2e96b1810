import pickle

import pytest
import torch

from driftline.errors import InputError, ScenarioError
from driftline.scenarios.transforms import Invert, Permute, Rotate


def images(height=6, width=6):
    return torch.rand(3, 2, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
@pytest.mark.parametrize("size", [6, 7])
def test_quarter_turns_of_a_square_move_pixels_exactly(quarters, size):
    x = images(size, size)
    # 1e-5: bilinear weights of a rounded sine.
    torch.testing.assert_close(Rotate(90 * quarters)(x), torch.rot90(x, quarters, (2, 3)), atol=1e-5, rtol=0)


def test_half_a_turn_of_an_oblong_image_keeps_its_proportions():
    x = images(4, 9)
    torch.testing.assert_close(Rotate(180)(x), x.flip(2, 3), atol=1e-5, rtol=0)


def test_a_quarter_turn_of_an_oblong_image_turns_its_middle_without_stretching():
    x = torch.zeros(1, 1, 5, 11)
    x[0, 0, 2, 7] = 1
    turned = Rotate(90)(x)
    assert float(turned[0, 0, 0, 5]) == pytest.approx(1, abs=1e-5)


def test_a_full_turn_changes_no_bit():
    x = images()
    assert torch.equal(Rotate(0)(x), x)
    assert torch.equal(Rotate(720.0)(x), x)


def test_rotation_does_not_depend_on_the_batch():
    x = images()
    assert torch.equal(Rotate(33)(x)[1:2], Rotate(33)(x[1:2]))


def test_grey_images_without_a_channel_rotate_too():
    x = images()[:, 0]
    assert torch.equal(Rotate(33)(x), Rotate(33)(x.unsqueeze(1)).squeeze(1))


def test_permute_keeps_every_value_and_is_undone_by_its_inverse():
    x = images()
    order = torch.randperm(72, generator=torch.Generator().manual_seed(1))
    permuted = Permute(order)(x)
    assert not torch.equal(permuted, x)
    assert torch.equal(Permute(order.argsort())(permuted), x)


def test_equal_transforms_are_equal_and_hash_alike():
    order = torch.tensor([1, 0, 2])
    assert Permute(order) == Permute(order.clone())
    assert hash(Permute(order)) == hash(Permute(order.clone()))
    assert Permute(order) != Permute(torch.tensor([0, 1, 2]))
    assert Rotate(3) == Rotate(3.0) != Rotate(4)
    assert Invert() == Invert()


@pytest.mark.parametrize("transform", [Rotate(12.5), Permute(torch.tensor([1, 0])), Invert()])
def test_transforms_pickle(transform):
    assert pickle.loads(pickle.dumps(transform)) == transform


def test_misuse_is_named():
    with pytest.raises(ScenarioError, match="finite"):
        Rotate(float("inf"))
    with pytest.raises(ScenarioError, match=r"each of 0..n-1 once"):
        Permute(torch.tensor([0, 2]))
    with pytest.raises(InputError, match=r"needs images .*got \(2, 3\)"):
        Rotate(5)(torch.rand(2, 3))
    with pytest.raises(InputError, match=r"samples of 2 values, got shape \(3,\)"):
        Permute(torch.tensor([1, 0]))(torch.rand(4, 3))
