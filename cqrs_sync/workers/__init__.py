"""
Processes of their own that deliver what an outbox keeps or consume what a broker has, and end in time.

`process` relays and `consuming` consumes until they are told to stop: by `signals`, when their time is over, or when
nothing is left to do. `held` knows what a relay has claimed, `vitals` how a consumer is, and `health` tells it;
`overdue` names handlers that run for too long. `errands` are what processes do besides, `leaving` ends them where a
handler never returns. `desk` is what operators ask of an outbox, `letters` what they ask of dead letters.
"""
