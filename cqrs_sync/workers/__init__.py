"""
Processes of their own that deliver what an outbox keeps, and end in time.

`process` relays until it is told to stop: by `signals`, when its time is over, or when nothing is
left to do. `held` knows what it has claimed, `errands` are what it does besides, `leaving` ends it where
a handler never returns. `desk` is what operators ask of an outbox.
"""
