"""A mask that weighs guidance by place, picture or frame."""

import pytest
import torch

from pag_core.checks import SettingError
from pag_core.mask import check_mask, fit_mask


def left_half(n: int = 1) -> torch.Tensor:
    """[n, 64, 96], 1 on the left."""
    mask = torch.zeros(n, 64, 96)
    mask[:, :, :48] = 1.0
    return mask


@pytest.mark.parametrize("mask", [left_half(), left_half()[0]], ids=["one", "without a first axis"])
def test_one_picture_counts_for_the_whole_batch(mask):
    fitted = fit_mask(mask, (3, 4, 8, 12))
    assert fitted.shape == (1, 1, 8, 12)
    assert torch.equal(fitted[0, 0], left_half()[0, ::8, ::8])


@pytest.mark.parametrize("latent", [(3, 4, 8, 12), (3, 16, 1, 8, 12)], ids=["image", "image of a video model"])
def test_a_batch_of_pictures_has_a_mask_each(latent):
    masks = torch.stack([torch.full((64, 96), value) for value in (0.0, 0.5, 1.0)])
    fitted = fit_mask(masks, latent)
    assert fitted.shape == (3, 1, *latent[2:])
    assert fitted.flatten(1).unique(dim=1).squeeze().tolist() == [0.0, 0.5, 1.0]


def test_each_place_gets_the_mean_of_what_it_covers():
    mask = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fit_mask(mask, (1, 4, 8, 8))[0, 0],
                               mask[0].unflatten(0, (8, 8)).unflatten(2, (8, 8)).mean((1, 3)))


def test_a_video_spreads_masks_over_its_frames():
    masks = torch.arange(12.0)[:, None, None].expand(-1, 16, 16) / 11
    fitted = fit_mask(masks, (1, 16, 4, 2, 2))
    assert fitted.shape == (1, 1, 4, 2, 2)
    torch.testing.assert_close(fitted[0, 0, :, 0, 0], torch.arange(12.0).view(4, 3).mean(1) / 11)
    assert fit_mask(masks[:1], (2, 16, 4, 2, 2)).shape == (1, 1, 1, 2, 2)


@pytest.mark.parametrize("latent", [(3, 4, 8, 12), (3, 16, 1, 8, 12), (1, 16, 3, 8, 12)])
def test_an_axis_of_one_channel_makes_no_difference(latent):
    """As the host takes masks, [n, 1, H, W] as well as [n, H, W]."""
    masks = torch.stack([torch.full((64, 96), value) for value in (0.0, 0.5, 1.0)])
    assert torch.equal(fit_mask(masks[:, None], latent), fit_mask(masks, latent))


def test_a_video_for_each_of_the_batch():
    """[n, 1, T, H, W], as the host has them beside the latents of videos."""
    masks = torch.stack([torch.zeros(1, 4, 16, 16), torch.ones(1, 4, 16, 16)])
    fitted = fit_mask(masks, (2, 16, 2, 8, 8))
    assert fitted.shape == (2, 1, 2, 8, 8)
    assert [part.unique().tolist() for part in fitted] == [[0.0], [1.0]]
    assert torch.equal(fit_mask(masks[1:], (2, 16, 2, 8, 8)), fitted[1:])
    assert fit_mask(masks[:, :, :2], (4, 4, 8, 8)).shape == (4, 1, 8, 8)


@pytest.mark.parametrize(("mask", "latent", "complaint"), [
    (left_half(2), (3, 4, 8, 12), "has 2 masks, but the batch has 3"),
    (left_half(3), (1, 4, 8, 12), "has 3 masks, but the batch has 1"),
    (left_half(3), (2, 16, 1, 8, 12), "has 3 masks, but the batch has 2"),
    (left_half(3)[:, None, None], (2, 16, 4, 8, 12), "has 3 masks, but the batch has 2"),
    (left_half(), (1, 64, 500), "no rows and columns"),
])
def test_a_mask_that_does_not_fit_is_refused(mask, latent, complaint):
    with pytest.raises(SettingError, match=f"^scale_mask .*{complaint}"):
        fit_mask(mask, latent)


@pytest.mark.parametrize("mask", ["mask", torch.zeros(3), torch.zeros(1, 4, 8, 8), torch.zeros(0, 8, 8),
                                  torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 8, dtype=torch.complex64),
                                  left_half() * 2, -left_half(), left_half() * torch.nan], ids=str)
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(SettingError, match=r"^scale_mask must"):
        check_mask("scale_mask", mask)


def test_masks_are_accepted():
    for mask in (left_half(), left_half(5), left_half()[0], left_half()[:, None], left_half()[None, None],
                 left_half().half(), left_half().bool(), None):
        assert check_mask("scale_mask", mask) is mask
