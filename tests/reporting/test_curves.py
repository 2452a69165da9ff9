import numpy as np

from dcamt.reporting.curves import plot_curves


def test_curves_keep_spikes_and_do_not_bend_a_straight_line() -> None:
    iteration = np.arange(1.0, 6001)
    loss = iteration / 6000
    loss[3210] = 9.0
    log = {
        "iteration": iteration,
        "seconds": iteration,
        "learning_rate": np.full(6000, 0.01),
        "straight": iteration / 6000,
        "total": loss,
        "unused": np.full(6000, np.nan),
        "val_dice": np.where(iteration % 500 == 0, 0.5, np.nan),
    }
    panels = {axes.get_title(loc="left"): axes for axes in plot_curves(log).axes}
    assert list(panels) == ["straight", "total", "learning rate", "validation Dice (%)"]
    raw, _ = panels["total"].lines
    assert raw.get_ydata().max() == 9.0
    assert len(raw.get_xdata()) <= 800
    assert panels["total"].get_ylim()[1] < 2
    _, smooth = panels["straight"].lines
    np.testing.assert_allclose(smooth.get_ydata(), smooth.get_xdata() / 6000)
    assert len(panels["validation Dice (%)"].lines[0].get_xdata()) == 12
