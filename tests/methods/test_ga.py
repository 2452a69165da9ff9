"""GA: which loss each network gets from which label."""

import pytest
import torch

from dcamt.losses.gradient_aware import ga_cross_entropy, ga_dice
from dcamt.losses.overlap import pseudo_label
from dcamt.methods.ga import GA
from dcamt.types import Progress


def test_labels_teach_the_hardest_and_guesses_everywhere(build, plain_update, batch) -> None:
    method = build(GA, weight=0.7, hardest=0.2, hardest_pseudo=0.9, gamma=0.4).train()
    image = torch.cat([batch.image_l, batch.image_u])
    with torch.no_grad():
        logits = {"first": method.first(image), "second": method.second(image)}
    update = plain_update(method)
    terms = method.step(batch, Progress(50, 100), update)

    for one, other in (("first", "second"), ("second", "first")):
        guess = pseudo_label(logits[other][2:], batch.inside_u)
        cross, supervised = terms[f"cross_{one}"], terms[f"supervised_{one}"]
        expected = 0.5 * ga_cross_entropy(logits[one][2:], guess, 0.9, 0.4)
        torch.testing.assert_close(cross.detach(), expected)
        known = logits[one][:2], batch.label_l
        expected = 0.5 * (ga_cross_entropy(*known, 0.2, 0.4) + ga_dice(*known))
        torch.testing.assert_close(supervised.detach(), expected)
    total = terms["supervised_first"] + terms["supervised_second"]
    total = total + 0.7 * 2.718281828**-1.25 * (terms["cross_first"] + terms["cross_second"])
    assert update.losses == [pytest.approx(total.item(), rel=1e-5)]


@torch.no_grad()
def test_prediction_is_the_mean_of_both(build, batch) -> None:
    method = build(GA).eval()
    expected = [n(batch.image_u).softmax(1) for n in (method.first, method.second)]
    torch.testing.assert_close(method.predict(batch.image_u), (expected[0] + expected[1]) / 2)


def test_defaults_are_the_published_ones() -> None:
    c = GA.Config()
    assert (c.hardest, c.hardest_pseudo, c.gamma) == (0.1, 1.0, 0.5)
