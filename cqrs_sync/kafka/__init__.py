"""
What both Kafka clients share: all but their settings, their errors and their quirks.

`client` is the port that a client library implements. Over it, `publisher` and `supervisor` publish, `subscription`,
`partitions` and `initial_offsets` receive; `cloudevents` makes records of messages, `topology` names the topics of a
group, `broker` is the front door. It is not in an integration because two of them use it: each reads what the other
one has published.
"""
