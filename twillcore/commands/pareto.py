"""``twillcore pareto``: accuracy against cycles and bytes of several compressed networks."""

from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import Json
from twillcore.errors import TwillcoreError

EXAMPLES = (
    "twillcore pareto family vit-2of4 -o pareto.png",
    "twillcore pareto runs/* -o pareto.png --json",
)


def command(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders that `compress` wrote.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.png", help="Picture to write.")
    ],
    as_json: Json = False,
) -> None:
    """Draw every candidate, and the line of those that no other beats."""
    from twillcore.commands.terminal import print_json, results, working

    with working("reading candidates"):
        from twillcore.commands.candidate import read_figures
        from twillcore.models.pareto import front

    found = list(read_figures(folders))
    scores = {figures["score_name"] for _, figures in found}
    if len(scores) > 1:
        raise TwillcoreError(f"candidates of different measures: {', '.join(sorted(scores))}")
    fronts = {
        cost: front([(figures[cost], figures["score"]) for _, figures in found])
        for cost in ("cycles", "bytes")
    }
    with working(f"drawing {output}"):
        _draw(found, fronts, output)
    rows = [
        {"folder": str(folder), **figures, **{f"best_{cost}": i in fronts[cost] for cost in fronts}}
        for i, (folder, figures) in enumerate(found)
    ]
    if as_json:
        print_json(rows)
        return
    for row in sorted(rows, key=lambda row: row["cycles"]):
        best = " and ".join(cost for cost in fronts if row[f"best_{cost}"])
        results.print(
            f"{row['folder']}: {row['score']:.4f}, {row['cycles']:,} cycles,"
            f" {row['bytes']:,} bytes" + (f"; best for its {best}" if best else "")
        )


def _draw(found: list[tuple[Path, dict]], fronts: dict[str, list[int]], output: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, (cost, best) in zip(figure.subplots(1, 2, sharey=True), fronts.items(), strict=True):
        axes.plot([found[i][1][cost] for i in best], [found[i][1]["score"] for i in best], "-",
                  color="0.7", zorder=1)  # fmt: skip
        for folder, figures in found:
            axes.scatter(figures[cost], figures["score"], zorder=2)
            axes.annotate(folder.name, (figures[cost], figures["score"]), fontsize=7,
                          xytext=(4, -8), textcoords="offset points")  # fmt: skip
        axes.set_xlabel("cycles of one input" if cost == "cycles" else "bytes of weights")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.set_ylabel(found[0][1]["score_name"])
    try:
        figure.savefig(output, dpi=150)
    except (OSError, ValueError) as error:
        raise TwillcoreError(f"{output}: cannot be written: {error}") from None
