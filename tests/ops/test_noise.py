"""Changes of intensity."""

import torch

from dcamt.ops.noise import jittered


def test_each_channel_of_each_patch_has_its_own_contrast_and_brightness() -> None:
    torch.manual_seed(0)
    image = torch.randn(40, 3, 4, 4, 4)
    changed = jittered(image, 0.5)
    found = []
    for before, after in zip(image.flatten(0, 1), changed.flatten(0, 1), strict=True):
        # Two voxels give the line, which all the others must lie on.
        a, b = before.flatten()[:2], after.flatten()[:2]
        slope = (b[1] - b[0]) / (a[1] - a[0])
        offset = b[0] - slope * a[0]
        torch.testing.assert_close(after, slope * before + offset, atol=1e-4, rtol=1e-4)
        found.append([float(slope), float(offset)])
    contrast, brightness = torch.tensor(found).T
    assert contrast.min() > 0.499
    assert contrast.max() < 1.501
    assert brightness.abs().max() < 0.501
    assert contrast.max() - contrast.min() > 0.8
    assert brightness.max() - brightness.min() > 0.8
    assert len({round(x, 3) for x in contrast.tolist()}) > 60


def test_no_strength_no_change() -> None:
    image = torch.randn(2, 1, 3, 3, 3)
    assert torch.equal(jittered(image, 0.0), image)
