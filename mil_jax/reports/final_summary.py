"""The end of the training of a final model: summary.md, summary.json and its training curves; there are no predictions to report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mil_jax.reports import curves
from mil_jax.reports.tables import closing_sections
from mil_jax.training.run_folder import RunFolder


def write_final_summary(
    folder: RunFolder,
    *,
    history: Sequence[Mapping[str, Any]],
    statements: Sequence[str],
    title: str,
    notes: Sequence[str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the files, and returns the content of summary.json."""
    summary: dict[str, Any] = {
        "title": f"{title}, final model",
        "final": True,
        "selected_on_test": False,
        "statements": list(statements),
        "figures": [],
        "notes": list(notes),
        "facts": dict(facts),
    }
    if history:
        curves.draw_training_curves(history, folder.figures / "training_curves.png")
        summary["figures"].append("training_curves.png")
    parts = [f"# {summary['title']}", "", *(f"- {line}" for line in statements), "", *closing_sections(summary)]
    folder.write_text("summary.md", "\n".join(parts))
    folder.write_json("summary.json", {"complete": True, **summary})
    return summary
