"""DTC: its terms and the way back from a map to a mask."""

import math

import pytest
import torch
from scipy.ndimage import distance_transform_edt

from dcamt.losses.overlap import soft_dice
from dcamt.methods.dtc import DTC
from dcamt.types import IGNORE, Progress


def test_terms_are_the_equations(build, plain_update, batch) -> None:
    method = build(DTC, sdm_weight=0.4, weight=0.7, steepness=20).train()
    image = torch.cat([batch.image_l, batch.image_u])
    with torch.no_grad():
        logits, z = method.network(image)
    # T(y) by SciPy, over the voxels with a label.
    squares, counted = 0.0, 0
    for b in range(2):
        y = (batch.label_l[b] == 1).numpy()
        inside, outside = distance_transform_edt(y), distance_transform_edt(~y)
        target = outside / outside.max() - inside / inside.max()
        target[inside == 1] = 0
        known = batch.label_l[b] != IGNORE
        squares += float((z[b, 0] - torch.from_numpy(target))[known].square().sum())
        counted += int(known.sum())
    real = torch.cat([batch.label_l != IGNORE, batch.inside_u])
    p = logits.softmax(1)[:, 1][real]
    consistency = (1 / (1 + torch.exp(20 * z[:, 0][real])) - p).square().mean()
    update = plain_update(method)
    terms = method.step(batch, Progress(50, 100), update)
    assert terms["distance"].item() == pytest.approx(squares / counted, rel=1e-4)
    assert terms["consistency"].item() == pytest.approx(consistency.item(), rel=1e-4)
    supervised = soft_dice(logits[:2], batch.label_l)
    torch.testing.assert_close(terms["supervised"].detach(), supervised)
    total = supervised + 0.4 * squares / counted + 0.7 * math.exp(-1.25) * consistency
    assert update.losses == [pytest.approx(total.item(), rel=1e-4)]


def test_defaults_are_the_published_ones() -> None:
    c = DTC.Config()
    assert (c.sdm_weight, c.weight, c.ramp, c.steepness) == (0.3, 1.0, 1.0, 1500)
