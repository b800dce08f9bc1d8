"""What may be cut out of one request: the members that are unchanged, by what lookups for this request have found."""

from collections.abc import Sequence
from typing import Final

from sanitizer.sanitize.decision import Decision, Outcome
from sanitizer.sanitize.gates import Cut, Gate
from sanitizer.sanitize.queries import Stored, Unknown
from sanitizer.sanitize.stored import Caller, Lookup, StoredKeys
from sanitizer.sanitize.submission import Submission

MAX_RESENDS: Final = 4
"""Times a request is sent again after a refusal."""


class Comparison:
    """Compares the members of ``submission`` with what is stored, before it is forwarded and after each refusal.

    ``prefix``: the path prefix that the request came under. ``observes``: nothing is cut, only reported.

    `lookups`: those made for this request, in order. `resent`: how many times it was sent again. `withholds`: the
    caller may not read the key, but the gateway has a credential that may; so what is decided is for the caller to know
    only with a 2xx.
    """

    def __init__(
        self, submission: Submission, stored: StoredKeys, caller: Caller, prefix: str, *, observes: bool
    ) -> None:
        self.submission = submission
        self.lookups: list[Lookup] = []
        self.resent = 0
        self.withholds = False
        self._stored = stored
        self._caller = caller
        self._prefix = prefix
        self._observes = observes
        self._found: Stored | Unknown | None = None  # read for this request; None: not read, or not for the caller
        self._cut: list[str] = []  # or, if it only observes, what would have been cut
        self._after_refusal: list[str] = []  # those members of `_cut` that LiteLLM had refused first
        self._reason: str | None = None  # why something could not be compared

    @property
    def used_lookup_key(self) -> bool:
        """Whether a lookup was made with the gateway's own credential."""
        return any(lookup.lookup_key for lookup in self.lookups)

    @property
    def has_uncompared(self) -> bool:
        """Whether there are members that have not been compared, because LiteLLM has not refused them."""
        return self._found is None and bool(self.candidates())

    @property
    def body(self) -> bytes | None:
        """The body to send in place of the one that was sent, None for that one."""
        return self.submission.without(self._cut) if self._cut and not self._observes else None

    @property
    def decision(self) -> Decision:
        """What has been decided so far."""
        submission, reason = self.submission, None
        if not submission.gates:
            return Decision(Outcome.ABSENT)
        if self._cut:
            outcome = Outcome.OBSERVED if self._observes else Outcome.DROPPED
        else:
            reason = self._reason
            outcome = Outcome.CHANGED if reason is None else Outcome.UNKNOWN
        return Decision(
            outcome,
            submission.in_order(self._cut),
            reason,
            submission.in_order(self._after_refusal),
            self.used_lookup_key,
        )

    async def compare(self) -> None:
        """Find what can be cut before the request is forwarded. Cancelling ends the lookup."""
        submission = self.submission
        gates = submission.comparable
        if not submission.names_a_key:
            self._reason = "no_key"
            return
        if not gates:
            return
        # only now that the whole body is here: what is read must not be older than the request
        found = await self._look_up(fresh=False)
        if isinstance(found, Stored) and self._found is None:
            unchanged, _ = submission.unchanged(gates, found.info)
            if len(unchanged) == len(gates):
                self._cut = unchanged
                return
            # only "unchanged" may rest on a cached value
            found = await self._look_up(fresh=True)
        self._cut_unchanged(gates, found)

    def candidates(self, status: int | None = None) -> list[Gate]:
        """The gates whose members may still be cut, if LiteLLM refuses the request because of them, with ``status``."""
        submission, found = self.submission, self._found
        if not submission.names_a_key or self.resent == MAX_RESENDS or isinstance(found, Unknown):
            return []
        return [
            gate
            for gate in submission.gates
            if status in (None, gate.status)
            and gate.field not in self._cut
            and gate.can_be_unchanged(submission.values[gate.field])
            and (gate.cut is Cut.AFTER_REFUSAL or self.withholds)
            and (not isinstance(found, Stored) or gate.unchanged(submission.values, found.info))
        ]

    async def compare_refused(self, gates: Sequence[Gate]) -> bool:
        """Find what can be cut of ``gates``, because of which LiteLLM has refused the request. Cancelling ends lookups.

        Returns whether there is another body to send.
        """
        nothing_read = self._found is None
        found = await self._read_now()
        if nothing_read and isinstance(found, Stored):
            # what has been cut was compared with a cached value: a member that is changed after all is sent again
            unchanged, _ = self.submission.unchanged(self.submission.comparable, found.info)
            self._cut = [name for name in self._cut if name in unchanged]
        cut = self._cut_unchanged(gates, found)
        self._after_refusal += cut
        if not cut or self._observes:
            return False
        self.resent += 1
        return True

    def _cut_unchanged(self, gates: Sequence[Gate], found: Stored | Unknown) -> list[str]:
        """Cut the members of ``gates`` that are unchanged. Returns their names, of which none was cut before."""
        if isinstance(found, Unknown):
            self._reason = found.reason
            return []
        unchanged, known = self.submission.unchanged(gates, found.info)
        self._reason = None if known else "stored_shape"
        cut = [name for name in dict.fromkeys(unchanged) if name not in self._cut]
        self._cut += cut
        return cut

    async def _look_up(self, *, fresh: bool) -> Stored | Unknown:
        """What the caller's own lookup finds, or what the cache has of an earlier request unless ``fresh``."""
        submission, stored = self.submission, self._stored
        found, lookup = await stored.get(self._caller, submission.key, submission.alias, self._prefix, fresh=fresh)
        if lookup is not None:
            self.lookups.append(lookup)
        # the caller may not read the key: nothing may depend on what a lookup with the credential finds
        self.withholds = isinstance(found, Unknown) and found.refused and stored.has_lookup_key
        from_cache = lookup is None and isinstance(found, Stored)
        if not from_cache and not self.withholds:
            self._found = found
        return found

    async def _read_now(self) -> Stored | Unknown:
        """What is stored, read for this request: with the lookup credential, if the caller's own lookup is refused."""
        if self._found is None and not self.withholds:
            await self._look_up(fresh=True)
        if self._found is None:
            self._found, lookup = await self._stored.get_with_lookup_key(
                self._caller, self.submission.key, self.submission.alias, self._prefix
            )
            if lookup is not None:
                self.lookups.append(lookup)
        return self._found
