"""Tables fit 80 columns without cutting a cell."""

from __future__ import annotations

from pipelines.run.tables import Row, fitted_table

from ..console_text import WIDTH, cells_of, rendered


def test_wide_table_is_split_and_repeats_its_first_column() -> None:
    headers = ["method", *(f"column {at}" for at in range(9))]
    rows = [Row(name=name, cells=[f"{name} {at}.{at}" for at in range(9)]) for name in ("grpo", "trrd")]
    text = rendered(fitted_table("Title", headers, rows, caption="Caption"))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert cells_of(text) == {*headers, "grpo", "trrd", *(cell for row in rows for cell in row.cells)}
    assert text.count("method") == text.count("\n│ grpo   │") == 2
    assert (text.count("Title"), text.count("Caption")) == (1, 1)


def test_table_that_just_fits_is_not_split() -> None:
    # Borders and padding of three columns take 10 of 80 columns: 1 + 3 * 3.
    for length, parts in ((70, 1), (71, 2)):
        text = rendered(fitted_table("", ["a", "b", "c"], [Row(name="x" * 20, cells=["y" * 20, "z" * (length - 40)])]))
        assert text.count("x" * 20) == parts
        assert max(map(len, text.splitlines())) <= WIDTH


def test_markup_and_line_breaks_do_not_count_as_width() -> None:
    headers = ["name", *["a long header\nof two lines"] * 4]
    text = rendered(fitted_table("", headers, [Row(name="x", cells=["[dim]12.5%[/]"] * 4)]))
    assert text.count("│ x ") == 1
    assert "12.5%" in cells_of(text)
    assert {"a long header", "of two lines"} <= cells_of(text)


def test_table_without_rows_is_printed() -> None:
    assert cells_of(rendered(fitted_table("", ["name", "value"], []))) == {"name", "value"}
