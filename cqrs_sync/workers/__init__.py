"""
Long-lived processes: `relay` delivers what an outbox keeps, `consumer` handles what other services publish.

`worker` is the base of both: signals, grace, hard exit, periodic tasks, reports. `health` and `watchdogs` look at a
consumer, `purge` deletes what is old.
"""
