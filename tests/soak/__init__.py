"""A soak: mixed traffic on a gateway that runs as a real process, while upstream is restarted and clients leave.

``python -m tests.soak --minutes 10`` prints a table, and ends with status 1 if any verdict is negative.

``upstream``: a LiteLLM-like process that journals the requests that it runs. ``census``: the gateway's process, which
can count its objects. ``clients``, ``connection``: the load, and the checks of each response. ``ledger``: the outcome
of each request, and the reasons for failures. ``run``: the course of a soak, and its verdicts.
"""
