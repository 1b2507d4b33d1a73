"""How the comparison is shown: a table for people, a document for programs."""

import io
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from martech.demo.play import Report

NARROWEST = 110


def as_text(report: Report, *, colours: bool) -> str:
    """Return the table of the comparison and a line that sums it up."""
    table = Table(box=box.ROUNDED, title="The file and the platform", title_justify="left")
    for title in ("", "the file says", "the platform says", ""):
        table.add_column(title, no_wrap=True)
    for line in report.lines:
        mark = "[green]✓[/green]" if line.equal else "[red]✗[/red]"
        table.add_row(f"[bold]{line.what}[/bold]", line.file, line.platform, mark)
    text = io.StringIO()
    console = Console(file=text, force_terminal=colours, no_color=not colours, highlight=False)
    console.width = max(console.width, NARROWEST)
    console.print(table)
    console.print(_summary(report), soft_wrap=True)
    return text.getvalue()


def _summary(report: Report) -> str:
    different = sum(not line.equal for line in report.lines)
    verdict = f"[red]{different} lines differ.[/red]" if different else "[green]Everything is equal.[/green]"
    if not report.events:
        return verdict
    return (
        f"{verdict} {report.events:,} events were acknowledged in {report.acknowledged_seconds:.1f} s and processed in "
        f"{report.processed_seconds:.1f} s ({report.events / report.processed_seconds:,.0f} events/s)."
    )


def as_document(report: Report) -> dict[str, Any]:
    """Return the report as JSON can hold it."""
    return {
        "equal": report.equal,
        "events": report.events,
        "acknowledged_seconds": round(report.acknowledged_seconds, 3),
        "processed_seconds": round(report.processed_seconds, 3),
        "lines": [{**line._asdict(), "equal": line.equal} for line in report.lines],
    }
