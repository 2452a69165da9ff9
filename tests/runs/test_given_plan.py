"""A plan from a file, in place of one made from the data set."""

import yaml

from dcamt.config import load_config


def without_patch(tiny):
    return [part for pair in tiny if not pair.startswith("data.") for part in ("--set", pair)]


def change_plan(run, path, **values):
    plan = yaml.safe_load((run / "config.yaml").read_text())["plan"]
    path.write_text(yaml.safe_dump(plan | values))
    return path


def test_a_run_takes_the_plan_it_is_given(cli, phantoms, tiny, tiny_run, tmp_path):
    plan = change_plan(tiny_run, tmp_path / "plan.yaml", patch=[32, 16, 16], spacing=[1, 2, 2])
    out = tmp_path / "run"
    told = ("train", phantoms, "--out", out, "--splits", phantoms / "splits.json")
    code, _, err = cli(*told, "--plan", plan, *without_patch(tiny), "--quiet")
    assert (code, err) == (0, "")
    kept = load_config(out / "config.yaml").plan
    assert (kept.patch, kept.spacing) == ((32, 16, 16), (1, 2, 2))

    code, _, err = cli(*told, "--plan", tiny_run / "config.yaml", "--resume")
    assert code == 2
    assert "was begun with plan.spacing" in err


def test_the_config_of_a_run_is_a_plan(cli, phantoms, tiny, tiny_run, tmp_path):
    told = ("train", phantoms, "--splits", phantoms / "splits.json", *without_patch(tiny))
    code, _, err = cli(
        *told, "--out", tmp_path / "run", "--plan", tiny_run / "config.yaml", "--quiet"
    )
    assert (code, err) == (0, "")
    first, second = (load_config(r / "config.yaml").plan for r in (tiny_run, tmp_path / "run"))
    assert first == second


def test_a_plan_in_a_recipe_is_refused(cli, phantoms, tiny_run, tmp_path):
    told = ("train", phantoms, "--out", tmp_path / "run")
    code, _, err = cli(*told, "--config", tiny_run / "config.yaml")
    assert code == 2
    assert f"--plan {tiny_run / 'config.yaml'}" in err
    code, _, err = cli(*told, "--set", "plan.patch=[16,16,16]")
    assert code == 2
    assert not (tmp_path / "run").exists()


def test_what_the_plan_decides_cannot_be_set_as_well(cli, phantoms, tiny_run, tmp_path):
    code, _, err = cli(
        *("train", phantoms, "--out", tmp_path / "run", "--plan", tiny_run / "config.yaml"),
        *("--set", "data.patch=[16,16,16]"),
    )
    assert code == 2
    assert "the plan decides data.patch" in err


def test_a_plan_for_other_classes_is_refused(cli, phantoms, tiny, tiny_run, tmp_path):
    plan = change_plan(tiny_run, tmp_path / "plan.yaml", classes=["background", "a", "b", "c", "d"])
    code, _, err = cli(
        *("train", phantoms, "--out", tmp_path / "run", "--plan", plan, *without_patch(tiny))
    )
    assert code == 2
    assert "classes" in err and "give another plan" in err


def test_a_data_set_in_a_recipe_must_be_the_one_that_is_given(cli, phantoms, tiny, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset: {tmp_path / 'other'}\n")
    code, _, err = cli("train", phantoms, "--out", tmp_path / "run", "--config", recipe)
    assert code == 2
    assert "leave 'dataset' out of the recipe" in err


def test_a_run_is_repeated_through_a_link_to_its_data_set(cli, phantoms, tiny_run, tmp_path):
    (tmp_path / "link").symlink_to(phantoms)
    own = tiny_run / "config.yaml"
    code, _, err = cli(
        *("train", tmp_path / "link", "--out", tmp_path / "run", "--config", own, "--plan", own),
        *("--splits", phantoms / "splits.json", "--quiet"),
    )
    assert (code, err) == (0, "")


def test_a_comparison_hands_its_plan_to_every_run(cli, phantoms, tiny, tiny_run, tmp_path):
    plan = change_plan(tiny_run, tmp_path / "plan.yaml", spacing=[1, 2, 2])
    pairs = [pair for pair in tiny if not pair.startswith(("data.", "method."))]
    told = [part for pair in pairs for part in ("--set", pair)]
    out = tmp_path / "compared"
    code, _, err = cli(
        *("compare", phantoms, "--out", out, "--splits", phantoms / "splits.json"),
        *("--methods", "vnet", "--seeds", "1", "--plan", plan, "--quiet", *told),
    )
    assert (code, err) == (0, "")
    (run,) = (out / "runs").iterdir()
    assert load_config(run / "config.yaml").plan.spacing == (1, 2, 2)
