"""`moxin_lab.vision.published`: table 8 with configurations and controls, digits as printed."""

import pytest

from moxin_lab.vision import published


@pytest.fixture(scope="module")
def table(repository):
    return published.table_8(repository / "papers" / "tables")


def test_every_average_is_the_mean_of_its_row(table):
    scores = table.loc[:, "GQA":"TallyQA"].astype(float)
    assert (scores.mean(axis=1) - table["Ave"].astype(float)).abs().max() <= 0.0051


def test_no_row_is_called_ours_and_none_was_attempted(table):
    assert not any("ours" in str(name).lower() for name in table.index.get_level_values(0))
    assert table.loc[("Prism-DINOSigLIP 7B (Controlled)", "Prismatic"), "Ave"] == 66.00
    assert table.loc[("Moxin-7B-VLM", "Moxin's table 8"), "Ave"] == 64.68
    assert table["Ave"].is_monotonic_decreasing and len(table) == 8
    shown = published.commands_in_words(table)
    assert all(shown.count(f"`{command}`") == 1 for command in table["command"])
    assert all(name in shown for name, _ in table.index)
    commands = table["command"].droplevel("printed in")
    assert commands["Moxin-7B-VLM"].startswith("moxin-lab run --scale full --only 07, ")
    # The other rows are models of Prismatic, which this lab does not train.
    assert commands.drop("Moxin-7B-VLM").str.startswith("torchrun ").all()


def test_every_row_states_its_configuration_or_that_none_is_stated(table):
    assert table[list(published.COLUMNS)].notna().all(axis=None)
    assert list(table.loc[("Moxin-7B-VLM", "Moxin's table 8"), list(published.COLUMNS)]) == [
        "DINOv2 + SigLIP",
        224,
        "naive",
        2,
        "665K",
    ]
