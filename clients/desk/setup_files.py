"""The files that `fedrisk-node init` writes, each with a comment for every key. All of them can be read as they are."""

NODE = """\
# Who this agency is. The coordinator and the other agencies may know everything that is in this file.
name = "{name}"
{kind}
{public_size}

# The contract that all agencies agreed to: which columns there are, their bounds, the outcome.
contract = "contract.yaml"

# Where the records are is in data.toml; what is permitted is in policy.toml. Nobody else sees those two.

{superlink}
# The other agencies' signing keys, needed where noise is shared behind masks: their `fedrisk-node init` prints the
# lines. Take them from the agencies themselves, not from the coordinator.
[peers]
# health = "the 44 characters that they sent"

# The release that was agreed on; `fedrisk-node doctor` checks its signature and compares the installed code with it.
# [release]
# manifest = "fedrisk-{version}.json"
# key = "the publisher's key, 44 characters, as it came to you by another way than the manifest"

# The ethics panel whose signatures count here: without it `score` only rehearses. Take the keys from its members.
# [panel]
# name = "Ethics panel of the North"
# quorum = 2
# [panel.members]
# alice = "the 44 characters that she gave you"

# The process that holds the records is started anew after so many orders, or beyond so much memory.
# [worker]
# orders = 1000
# memory_mb = 8192
"""

SUPERLINK = """\
# Where the federation meets. The node calls out to this address alone; nothing calls in.
[superlink]
address = "{address}"
certificate = "ca.crt"   # the coordinator's CA, as it was sent; left out: this system's own store
"""

NO_SUPERLINK = """\
# Where the federation meets. The node calls out to this address alone; nothing calls in.
# [superlink]
# address = "fedrisk.example.org:9092"
# certificate = "ca.crt"   # the coordinator's CA, as it was sent; left out: this system's own store
"""

DATA = """\
# Where this agency's records are. Nobody else sees this file. Choose one [source], and put its facts in.
[source]
kind = "csv"             # or "parquet"
path = "people.csv"      # from this folder on; UTF-8, commas, a header

# A database. The password is never in this file. PostgreSQL is read in a read-only transaction.
# [source]
# kind = "sql"
# url = "postgresql+psycopg://reader@db.example.org/people?sslmode=verify-full"
# table = "risk_view"                # or: query = "SELECT ... FROM ..."
# schema = "reporting"
# password_file = "database.secret"  # mode 0600; or: password_env = "NAME_OF_A_VARIABLE"

# How columns are called here, where the contract calls them otherwise: contract name = "name in the source".
# [columns]
# age = "AGE_AT_REFERRAL"

# Only what was known on that day: rows whose column is later, or empty, are not read. These two stand at the top
# of the file, above [source].
# as_of = 2026-11-01
# as_of_column = "recorded_on"
# reload_minutes = 60                # how long a database's records are used before they are read again
"""
