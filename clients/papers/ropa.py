"""The record of processing: one row for each thing that is done with records, under each purpose."""

from clients.papers.facts import ColumnFacts, Facts, PurposeFacts

HEADINGS = (
    "processing activity",
    "purpose",
    "controller and contact",
    "joint controllers",
    "data protection officer",
    "legal basis in policy.toml",
    "Article 6 basis, or Part 3 section 35",
    "condition for special category or sensitive data",
    "categories of individuals",
    "categories of personal data",
    "categories of recipients",
    "what they receive",
    "third countries",
    "use of profiling",
    "retention",
    "security measures",
    "permitted until",
    "DPIA",
)
SECURITY = (
    "outbound TLS alone; ECDSA P-384 key of the node's own; no code from outside is run; noise and clipping with a ledger "
    "of every release; hash-chained log; files of mode 0600; source read only (docs/threat-model.md)"
)


def rows(facts: Facts, mark: str) -> list[dict[str, str]]:
    """The rows, each with every heading. `mark` begins a blank."""
    found = [
        row
        for purpose in facts.purposes
        for row in (_federated(facts, purpose, mark), _scoring(facts, purpose, mark))
    ]
    return [*found, _access(facts, mark)]


def _common(facts: Facts, mark: str) -> dict[str, str]:
    officer = f"{mark}: data protection officer"
    row = dict.fromkeys(HEADINGS, officer)
    return row | {"security measures": SECURITY, "DPIA": "dpia.md, beside this file", "legal basis in policy.toml": "none: not under a purpose of policy.toml"}  # fmt: skip


def _of_purpose(facts: Facts, purpose: PurposeFacts, mark: str) -> dict[str, str]:
    basis = purpose.legal_basis or "none: policy.toml says that the records are made up or public"
    return _common(facts, mark) | {
        "purpose": purpose.name,
        "legal basis in policy.toml": basis,
        "categories of personal data": "; ".join(_column(each) for each in facts.columns),
        "permitted until": "no end is set" if purpose.expires is None else purpose.expires.isoformat(),
    }


def _federated(facts: Facts, purpose: PurposeFacts, mark: str) -> dict[str, str]:
    who = f"the coordinator of the federation ({facts.line})"
    peers = ", ".join(sorted(facts.node.peers))
    others = f"the other agencies ({peers})" if peers else "the other agencies of a plan"
    leaves = ", ".join(facts.releases) or "nothing: the policy permits no release"
    return _of_purpose(facts, purpose, mark) | {
        "processing activity": "training and checking a shared model, without sharing records",
        "categories of recipients": f"{who}; {others}, the ethics panel and the public by its results",
        "what they receive": f"no record; with noise: {leaves}",
        "use of profiling": "the model that is trained estimates a risk: profiling where it is used on a person (next row)",
        "retention": f"no copy of records is kept on disk; in memory while the node runs ({facts.currency}). Ledger and log: "
        f"never deleted. {mark}: data protection officer (how long the ledger and log are kept, and the source's own retention)",
    }


def _scoring(facts: Facts, purpose: PurposeFacts, mark: str) -> dict[str, str]:
    return _of_purpose(facts, purpose, mark) | {
        "processing activity": "scoring people inside the agency (`fedrisk-node score`), a rehearsal until a panel approves",
        "categories of recipients": "case workers of this agency",
        "what they receive": "a probability with its interval, reasons, and marks of what is out of scope; scores leave for nobody",
        "use of profiling": "yes: a person decides in each case (agree, override or defer), and it is recorded",
        "retention": f"{mark}: data protection officer (pages and tables of scores; the access log is never deleted by fedrisk)",
    }


def _access(facts: Facts, mark: str) -> dict[str, str]:
    return _common(facts, mark) | {
        "processing activity": "the log of who consulted whose score (access.db), and of who approved what",
        "purpose": "accountability and self-monitoring",
        "categories of individuals": "staff of this agency; people who were scored, by the reference of their record alone",
        "categories of personal data": "login, time, purpose, record reference, what was decided and why",
        "categories of recipients": "whoever audits in this agency",
        "what they receive": "the log, on this machine",
        "third countries": "none",
        "use of profiling": "no",
        "permitted until": "not limited",
    }


def _column(column: ColumnFacts) -> str:
    return f"{column.name} ({column.description})" if column.description else column.name
