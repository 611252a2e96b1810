from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from driftline import models
from driftline.errors import ConfigError
from driftline.learners.renewers import find_unit_groups
from driftline.learners.renewers.watching import Watch


def watched():
    model = models.mlp(4, classes=2, hidden=(5, 3))
    return model, Watch(find_unit_groups(model))


def test_it_keeps_what_the_next_layer_received():
    model, watch = watched()
    x = torch.rand(6, 4)
    model(x)
    first, second = watch.take()
    assert torch.equal(first, model.body[2](model.body[1](x)))
    assert torch.equal(second, model.features(x))
    assert not first.requires_grad


def test_a_prediction_without_gradients_is_not_looked_at():
    model, watch = watched()
    x = torch.rand(6, 4)
    model(x)
    with torch.no_grad():
        model(torch.zeros(1, 4))
    assert len(watch.take()[0]) == 6


def test_the_last_of_several_forward_passes_counts():
    model, watch = watched()
    model(torch.rand(6, 4))
    model(torch.rand(2, 4))
    assert len(watch.take()[0]) == 2


def test_taking_twice_is_refused():
    model, watch = watched()
    model(torch.rand(6, 4))
    watch.take()
    with pytest.raises(ConfigError, match=r"no forward pass with gradients has used the units of 'body.1'"):
        watch.take()


def test_nothing_is_taken_where_a_part_of_the_model_was_not_used():
    model, watch = watched()
    model.features(torch.rand(6, 4))
    with pytest.raises(ConfigError, match=r"units of 'body.3'"):
        watch.take()
    model.head(torch.rand(6, 3))
    assert len(watch.take()) == 2


def test_a_copied_model_feeds_its_own_copy():
    model, watch = watched()
    copied, copied_watch = copy.deepcopy((model, watch))
    copied(torch.rand(3, 4))
    assert len(copied_watch.take()[0]) == 3
    with pytest.raises(ConfigError):
        watch.take()
    copied_watch.close()
    assert not copied.head._forward_pre_hooks and model.head._forward_pre_hooks


def test_a_pickled_model_works_and_carries_no_activations():
    model, _ = watched()
    model(torch.rand(500, 4))
    restored = pickle.loads(pickle.dumps(model))
    x = torch.rand(2, 4)
    assert torch.equal(restored(x), model(x))
    (watcher,) = pickle.loads(pickle.dumps(model.head))._forward_pre_hooks.values()
    assert watcher.activation is None


def test_a_copy_of_the_model_alone_leaves_the_watch_alone():
    model, watch = watched()
    model(torch.rand(6, 4))
    copy.deepcopy(model)(torch.rand(2, 4))
    assert len(watch.take()[0]) == 6


def test_close_takes_the_hooks_off():
    model, watch = watched()
    watch.close()
    model(torch.rand(6, 4))
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ConfigError):
        watch.take()


def test_images_are_laid_out_as_samples_of_channels():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(18, 2))
    groups = find_unit_groups(model)
    watch = Watch(groups)
    x = torch.rand(5, 1, 6, 6)
    model(x)
    first, second = (group.samples(h) for group, h in zip(groups, watch.take()))
    assert first.shape == (5 * 16, 3) and second.shape == (5, 18)
    torch.testing.assert_close(first.mean(0), model[1](model[0](x)).mean((0, 2, 3)))
