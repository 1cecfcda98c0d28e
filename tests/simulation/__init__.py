"""The whole daemon in one thread, with all that chance decides drawn from a seed: a failure is a seed that replays.

What is real: the daemon as its configuration builds it (``Daemon``), its ledger in SQLite, its inbox and spool in a
folder, a reader's job (all of a child but the process), the client's half of HTTP above the connection, and the
embedded server. What is not: time (``machine.Machine``: both clocks stand still until the simulation moves them),
threads (``jobs.Jobs`` has every job run when the seed says, and its answer come when the seed says), processes, sockets
(``server.SimServer``), and random numbers.

What may happen between any two steps: a file comes, whole or in pieces; a job is done; its answer comes; a person
decides about a row between what a tick reads and what it writes; a server fails, forgets to answer, or shows its feed
late; a commit fails, or is done and says that it failed; the clock is set; the process dies, at any commit and at any
call that makes something durable, and another one begins on what it left. Then everything is mended and time passes,
and every file must have come to its end; of two servers one may stay away until all is settled at the other. G1 to G7
(``tests.invariants``) are held after each step.
"""
