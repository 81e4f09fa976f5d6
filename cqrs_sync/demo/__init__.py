"""
The demo: users join meetings, and what follows from it is shown as it happens.

Read `meetings` and `directory` first: they are the example, and know nothing of a
demo. `world` stands in for databases and mail servers. `playing` sends the
commands, `ledger` keeps count, `picture` shows it, `summary` adds it up.
"""
