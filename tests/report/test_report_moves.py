"""The figure of a number over commits: marks what is unexplained, equal values give equal bytes."""

from pathlib import Path

import pytest

from polygrain.provenance.errors import UserError
from polygrain.report.moves import Move, _draw, plot_moves

MOVES = [
    Move("50df2c0", "2026-11-21", "Start: two rows", 84.3, 0.2, "84.3 ± 0.2", False),
    Move("28a6fd5", "2026-11-22", "Cost $5 and $6; a_b^c", 71.2, None, "71.2", False),
    Move("48a6fd5", "2026-11-24", "Polish the table", 92.1, 0.2, "92.1 ± 0.2", True),
]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_equal_values_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        plot_moves(MOVES, "Table: row", "%", tmp_path / f"{name}.{suffix}")
    content = (tmp_path / f"one.{suffix}").read_bytes()
    assert content == (tmp_path / f"two.{suffix}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix])
    assert b"Matplotlib" not in content[:2000]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one.{suffix}", f"two.{suffix}"]


def test_values_spreads_and_commits_are_drawn_and_doubts_are_marked() -> None:
    (axes,) = _draw(MOVES, "Table: row", "%").axes
    explained, unexplained = axes.containers
    assert [list(container.lines[0].get_xdata()) for container in (explained, unexplained)] == [[0, 1], [2]]
    assert list(explained.lines[0].get_ydata()) == [84.3, 71.2]
    assert [text.get_text() for text in axes.texts] == ["84.3 ± 0.2", "71.2", "92.1 ± 0.2"]
    assert "48a6fd5" in axes.get_xticklabels()[2].get_text()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["explained", "unexplained"]
    (bars,) = explained.lines[2]
    assert [tuple(segment[:, 1].round(3)) for segment in bars.get_segments()] == [(84.1, 84.5), (71.2, 71.2)]


def test_without_doubts_there_is_no_legend_and_many_commits_still_fit(tmp_path: Path) -> None:
    (axes,) = _draw(MOVES[:2], "t", "%").axes
    assert axes.get_legend() is None
    plot_moves(MOVES * 20, "t", "%", tmp_path / "many.png")


@pytest.mark.parametrize(
    ("moves", "name", "words"), [(MOVES, "x.jpg", "ends with .png, .pdf or .svg"), ([], "x.png", "no commit holds")]
)
def test_what_cannot_be_drawn_is_one_line(tmp_path: Path, moves: list[Move], name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        plot_moves(moves, "t", "%", tmp_path / name)
    assert not list(tmp_path.iterdir())
