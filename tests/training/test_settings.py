import pytest

from product_classificator.errors import DataError
from product_classificator.training import TrainSettings, read_settings


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
