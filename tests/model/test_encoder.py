"""The encoders: features of any even box, and what they refuse."""

import pytest
import torch

from cryoforum_core.catalogue import ENCODERS
from cryoforum_core.model.encoder import GeneralizedMean, make_encoder
from cryoforum_core.model.polar import EquivariantFeatures

from .images import random_input


def test_generalised_mean_lies_between_mean_and_maximum():
    maps = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    mean, largest = maps.mean((-2, -1)), maps.amax((-2, -1))
    assert torch.allclose(GeneralizedMean(1.0)(maps), mean, atol=1e-5)
    middle = GeneralizedMean(6.0)(maps)
    assert (middle > mean).all() and (middle < largest).all()
    assert torch.allclose(GeneralizedMean(300.0)(maps.clamp_min(0.5)), largest, atol=0.02)


def values(features) -> torch.Tensor:
    """Features (n, F), or (n, V, F) of the polar encoder's V views."""
    return features.values if isinstance(features, EquivariantFeatures) else features


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("box", [16, 24])
def test_features_of_each_image_are_finite_and_do_not_depend_on_the_others(name, box):
    torch.manual_seed(1)
    encoder = make_encoder(name, box, 2, "auto", "auto", 8, 0.0).eval()
    images, ctf = random_input(4, box)
    with torch.no_grad():
        whole, one = values(encoder(images, ctf)), values(encoder(images[2:3], ctf[2:3]))
    assert len(whole) == 4 and whole.shape[-1] == encoder.out_features and torch.isfinite(whole).all()
    torch.testing.assert_close(whole[2:3], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_scaling_the_input_makes_up_for_the_contrast_of_the_images(name):
    torch.manual_seed(2)
    encoder = make_encoder(name, 16, 2, "auto", "auto", 8, 0.0).eval()
    images, ctf = random_input(3, 16)
    with torch.no_grad():
        before = values(encoder(images, ctf))
        encoder.scale_input(4.0)
        after = values(encoder(images / 4.0, ctf))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", ["gem", "average", "max", "flatten"])
def test_every_pooling_gives_as_many_features_as_it_says(pooling):
    encoder = make_encoder("compact", 16, 0, pooling, "relu", 8, 0.1)
    assert encoder(*random_input(2, 16)).shape == (2, encoder.out_features)


def test_dropout_acts_in_training_only():
    torch.manual_seed(3)
    encoder, inputs = make_encoder("cryoposenet", 16, 0, "auto", "auto", 8, 0.5), random_input(2, 16)
    with torch.no_grad():
        assert not torch.equal(encoder(*inputs), encoder(*inputs))
        encoder.eval()
        assert torch.equal(encoder(*inputs), encoder(*inputs))


def test_unknown_encoders_and_a_pooling_that_polar_lacks_are_refused():
    with pytest.raises(ValueError, match="must be one of .*compact.*; got 'resnet'"):
        make_encoder("resnet", 16, 0, "auto", "auto", None, 0.0)
    with pytest.raises(ValueError, match="polar has no pooling"):
        make_encoder("polar", 16, 0, "gem", "auto", None, 0.0)
