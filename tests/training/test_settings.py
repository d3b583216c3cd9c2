import pytest

from product_classificator.errors import DataError
from product_classificator.training import TrainSettings, read_settings
from product_classificator.training.settings import MAX_CROSS_FITTED, SplitSettings


def write(tmp_path, text):
    (tmp_path / "settings.toml").write_text(text)
    return tmp_path / "settings.toml"


def test_no_file_gives_the_defaults():
    assert read_settings() == TrainSettings()


def test_a_file_changes_what_it_names_and_the_command_line_wins(tmp_path):
    path = write(tmp_path, 'seed = 1\nencoder = "lite"\n[split]\nfolds = 3\n[heads]\ndropout = 0.1\n')
    settings = read_settings(path, {"seed": 5, "encoder": None})
    assert (settings.seed, settings.split.folds) == (5, 3)
    assert settings.heads.dropout == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sead = 1", r"there is no setting 'sead': did you mean 'seed'"),
        ("[heads]\ndropuot = 0.1", r"there is no setting 'heads.dropuot': did you mean 'dropout'"),
        ("[heads]\nseed = 2", r"set `seed` at the top, not in \[heads\]"),
        ("[split]\nfolds = 1", "folds must be at least 2, got 1"),
        ("seed = -1", r"^seed must be between 0 and 2\^63 - 1, got -1$"),
        ("[heads]\nlearning_rate = inf", "^learning_rate must be positive and finite, got inf$"),
        ("heads = 3", r"\[heads\] must be a table of settings, got 3"),
        ("seed = 'x'", "setting seed: Input should be a valid integer.*got 'x'"),
        ("[heads]\ndropout = 2", "dropout must be at least 0 and below 1, got 2"),
        ("seed = ", "settings must be a TOML file: .* cannot be read"),
    ],
)
def test_invalid_settings_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_settings(write(tmp_path, text))


def test_a_value_in_place_of_a_table_is_named_before_changes_are_applied(tmp_path):
    with pytest.raises(DataError, match=r"\[heads\] must be a table of settings"):
        read_settings(write(tmp_path, "heads = 3"), {"heads.dropout": 0.1})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"settings must be a TOML file: .*none\.toml"):
        read_settings(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"folds": 1}, "folds must be at least 2, got 1"),
        ({"holdout": 1.0}, "holdout must be at least 0 and below 1, got 1.0"),
        ({"holdout": -0.1}, "holdout must be at least 0 and below 1, got -0.1"),
        ({"holdout": 0.2, "column": "part"}, "a holdout or a column of splits, not both: 0.2 and 'part'"),
        ({"refit": False}, "without refit, the heads must be judged on a holdout: set holdout, a share like 0.15"),
    ],
)
def test_a_split_that_judges_nothing_is_refused(wrong, message):
    with pytest.raises(DataError, match=message):
        SplitSettings(**wrong)


def test_products_are_dealt_into_equal_folds():
    assert SplitSettings(folds=4).shares(1000) == {"1": 0.25, "2": 0.25, "3": 0.25, "4": 0.25}


def test_a_holdout_is_judged_instead_of_folds():
    assert SplitSettings(holdout=0.25, refit=False).shares(1000) == {"train": 0.75, "test": 0.25}


def test_of_very_many_products_one_fold_is_judged():
    assert len(SplitSettings().shares(MAX_CROSS_FITTED)) == 5
    assert SplitSettings().shares(MAX_CROSS_FITTED + 1) == {"train": 0.8, "test": 0.2}
    assert SplitSettings(holdout=0.1).shares(MAX_CROSS_FITTED + 1) == {"train": 0.9, "test": 0.1}
