"""The policy.toml that `fedrisk-node init` writes: every key with what it means, and nothing permitted yet."""

POLICY = """\
# What this agency permits. Nobody else sees this file, and nobody else can change it.
# As it stands it permits nothing. A line that begins with #: shows a key with a typical value: take the #: away, and put
# in what was decided. `fedrisk-node policy show` says in words what the file permits, `policy check PLAN` what it would
# answer. A key that is not known here is an error, and a node whose policy cannot be read does not start.

# --- under which contract, with what -------------------------------------------------------------------------------

# The contracts that are agreed to, by their SHA-256: `fedrisk-node policy show` prints that of this folder's contract.
#: contracts = ["0000000000000000000000000000000000000000000000000000000000000000"]

# Columns that are never to be used: a contract that needs one is refused.
#: never_columns = ["ethnicity"]

# Model families that may be trained here: "logistic" (additive, can be explained), "mlp", "residual".
#: models = ["logistic"]

# How the coordinator may combine what the agencies send.
#: strategies = ["dp_fedsgd"]

# How training may be made fairer (docs/fairness.md): "group_multipliers" lets orders say how much people count by audit
# group and outcome, within bounds; "qffl" weighs agencies by the loss that their own tables show.
#: fairness = ["group_multipliers"]

# What may leave, always with noise: "train" (changes of a model), "evaluate" (tables of scores and outcomes), "users"
# (a table of who is flagged by use of services, lead time and today's practice, as far as the contract declares them),
# "stats" (quantiles of one column), "map" (counts of people by levels of permitted columns, as tables), "cohort" (a
# histogram of keyed hashes of people's match keys, of which only the number of people in common is read); the columns
# whose statistics may be asked for; and the columns that a map or a cohort may count people by.
#: releases = ["train", "evaluate"]
#: stats_columns = ["age"]
#: map_columns = ["sex"]

# The agencies with which people in common may be counted. Whoever is listed here gets a secret under which it can try
# names against this agency's noised histogram: what it learns of one person is bounded by the ε of the cohort.
#: cohort_peers = ["health"]

# Most rounds of a plan, and most training steps of one order.
#: max_rounds = 200
#: max_steps = 1

# Only trainings that the ethics panel of node.toml ([panel]) registered before they began. Without it a plan need not
# be registered, but one that names a registration which that panel did not sign is refused all the same.
#: registration_required = false

# --- who must be there ---------------------------------------------------------------------------------------------

# Fewest people (not rows) that this agency must have. Below, it answers as if it had no data at all.
#: min_people = 50

# Fewest agencies that must take part.
#: min_agencies = 3

# Only sums over agencies may leave, behind masks.
#: masks_required = false

# Where agencies share their noise behind masks: the fewest that may collude with the coordinator and still learn
# nothing (c), and the most others whose honesty this agency's privacy may rest on (h). 0: shared noise is refused.
#: min_colluders = 1
#: max_honest = 0

# --- how little may be seen ----------------------------------------------------------------------------------------

# Most that one person may pull on a training step (clipping norm), and largest share of people in one.
#: max_grad_norm = 3.0
#: max_sample_rate = 0.25

# Least noise: on training (std / clipping norm), and on each cell of a table of counts (std, in people).
#: min_noise_multiplier = 0.3
#: min_table_sigma = 1.0

# Largest chance that the promise of privacy fails for a person: well below 1 / the number of people.
#: max_delta = 1e-5

# --- when, and who is asked ----------------------------------------------------------------------------------------

# A person approves each plan before it runs: `fedrisk-node policy asked`, `approve`, `withdraw`.
#: ask = true

# Each answer takes at least so many seconds, so that its time says less about the records.
#: min_reply_seconds = 0.5

# Only where the records are made up or public: permits plans without noise.
#: simulation = false

# What records may be used for: one section for each purpose, with the reason in law. An order for any other purpose is
# refused, and so is each after the last day. `ask` here overrules the one above.
#: [purposes.early-warning]
#: legal_basis = "Data Protection Act 2018, section 35; agreement of 1 March 2026"
#: expires = 2027-03-31
#: ask = true

# When orders are answered.
#: [hours]
#: timezone = "Europe/London"
#: days = ["mon", "tue", "wed", "thu", "fri"]
#: from = 08:00:00
#: to = 18:00:00

# After so many refusals in so many hours no new plan is looked at: of all experiments together, and of one.
#: [probing]
#: refusals = 20
#: per_experiment = 10
#: hours = 24

# --- how much in all -----------------------------------------------------------------------------------------------

# What all plans together may teach anybody about one person, as ε at δ; smaller is stricter. Without it nothing can be
# spent. Every limit that is written down must hold. A number is the same for all three viewers, who can be told apart:
# {public = 1.0, coordinator = 2.0, everybody = 4.0} (whoever sees the results; the coordinator; all others together).
#: [budget]
#: delta = 1e-5
#: life = 4.0          # for good: no new file, experiment or process starts it anew
#: year = 2.0          # in any 365 days
#: experiment = 1.0    # each experiment by itself
#: order = 0.5         # what one order may cost if there were no others
#: [budget.purpose]    # by purpose
#: early-warning = 3.0
"""
