"""Rows → tables, for people and for the documentation."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from loadtests.exfiltration.channel import Residual
from loadtests.exfiltration.verdict import Row, Verdict

BEGIN, END = "<!-- attack:begin -->", "<!-- attack:end -->"
COLUMNS = (
    "channel",
    "bits sent",
    "stolen through a plain proxy",
    "decoded through Weir",
    "charged by Weir",
    "verdict",
)
STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.BLUNT: "yellow", Verdict.SKIPPED: "dim"}
NOTHING = "–"


def cells(row: Row) -> list[str]:
    """The row as text, in the order of COLUMNS."""
    verdict = row.verdict.value + (f": {row.why}" if row.why else "")
    if row.residual == Residual.BOUNDED.value:
        return [row.channel, NOTHING, row.stolen_note, row.note, NOTHING, verdict]
    if not row.responses:
        return [row.channel, *[NOTHING] * 4, verdict]
    charged = f"{row.charged_bits:,}"
    decoded = f"{row.decoded_bits:,.0f}"
    if row.residual == Residual.TICKS.value:
        decoded += f" ({row.rate:.1f} bit/s)"
        charged += f" in ticks; uncharged {row.uncharged_rate:.2f} bit/s"
    if row.residual == Residual.NOTHING.value:
        decoded += " (must be 0)"
    return [row.channel, f"{row.sent_bits:,.0f}", stolen(row), decoded, charged, verdict]


def stolen(row: Row) -> str:
    """What the plain proxy let through."""
    share = row.stolen_bits / row.sent_bits if row.sent_bits else 0.0
    return f"{row.stolen_bits:,.0f} ({share:.0%})"


def table(rows: Sequence[Row], *, caption: str) -> Table:
    """For a terminal."""
    found = Table(caption=caption, caption_justify="left")
    for column in COLUMNS:
        found.add_column(column, justify="left" if column in ("channel", "verdict") else "right")
    for row in rows:
        *values, verdict = cells(row)
        found.add_row(*map(Text, values), Text(verdict, style=STYLES[row.verdict]))
    return found


def markdown(rows: Sequence[Row], caption: str) -> str:
    """For the documentation, with what each row does."""
    columns = (COLUMNS[0], "what it hides bits in", *COLUMNS[1:])
    lines = [columns, ("---", "---", *["--:"] * 4, "---")]
    for row in rows:
        name, *rest = cells(row)
        lines.append((f"`{name}`", row.what.replace("|", "\\|"), *[cell.replace("|", "\\|") for cell in rest]))
    return f"{caption}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(document: str, text: str) -> str:
    """`document` with `text` between its markers. Raises ValueError where it does not have exactly one pair."""
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise ValueError(f"no single pair of {BEGIN} … {END}")
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"
