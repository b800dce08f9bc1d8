"""A soak: mixed traffic on a gateway that runs as a real process, while upstream is restarted and clients leave.

``python -m tests.soak --minutes 10`` prints a table and ends with status 1 if anything is not accounted for.

``upstream``: a LiteLLM-like process that journals what it runs. ``census``: the gateway's process, able to count its
objects. ``clients``, ``connection``: the load, and what an answer has to be. ``ledger``: what became of each request,
and why. ``run``: the course of a soak, and its verdicts.
"""
