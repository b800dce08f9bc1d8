"""Which members may be cut from one request: those that are unchanged, compared with what is stored in LiteLLM."""

from collections.abc import Sequence
from typing import Final

from sanitizer.sanitize.decision import Decision, Outcome
from sanitizer.sanitize.gates import Cut, Gate
from sanitizer.sanitize.queries import Stored, Unknown
from sanitizer.sanitize.stored import Caller, Lookup, StoredKeys
from sanitizer.sanitize.submission import Submission

MAX_RESENDS: Final = 4
"""How many times a request is sent again after a refusal, at most."""


class Comparison:
    """Compares the members of one submission with the stored key: once before forwarding, and once after each refusal.

    ``stored_keys`` looks the key up for ``caller``. ``prefix`` is the path prefix of the request. If ``observe_only``,
    nothing is cut, and the decision names the members that would have been cut.

    Attributes: `lookups` are the lookups made for this request, in order. `resent` is how many times the request was
    sent again. `withholds_decision` is True if LiteLLM does not let the caller read the key and the gateway has a
    lookup credential. The caller may then learn the decision only from a 2xx response.
    """

    def __init__(
        self, submission: Submission, stored_keys: StoredKeys, caller: Caller, prefix: str, *, observe_only: bool
    ) -> None:
        self.submission = submission
        self.lookups: list[Lookup] = []
        self.resent = 0
        self.withholds_decision = False
        self._stored_keys = stored_keys
        self._caller = caller
        self._prefix = prefix
        self._observe_only = observe_only
        # What a lookup made for this request has returned, never a cached value. If LiteLLM refuses the caller's own
        # lookup and there is a credential, this stays None until, after a refusal, the credential's lookup sets it.
        self._stored: Stored | Unknown | None = None
        self._cut_fields: list[str] = []  # with `observe_only`, those that would have been cut
        self._after_refusal: list[str] = []  # those of `_cut_fields` that LiteLLM refused first
        self._reason: str | None = None  # why a member could not be compared
        self._planned: tuple[list[str], list[str]] | None = None  # both lists for a resend that is not yet sent

    @property
    def used_lookup_key(self) -> bool:
        """Whether a lookup was made with the gateway's own credential."""
        return any(lookup.lookup_key for lookup in self.lookups)

    @property
    def has_uncompared(self) -> bool:
        """Whether there are members that were not compared, because LiteLLM has not refused the request."""
        return self._stored is None and bool(self.candidates())

    @property
    def edited_body(self) -> bytes | None:
        """The body to send next in place of the original one, or None if nothing is cut from it."""
        fields = self.planned_fields
        return self.submission.without(fields) if fields and not self._observe_only else None

    @property
    def planned_fields(self) -> list[str]:
        """The fields that the body to send next lacks."""
        return self._cut_fields if self._planned is None else self._planned[0]

    @property
    def decision(self) -> Decision:
        """The decision about what was sent so far. It does not cover a resend before `report_resend` is called."""
        submission, reason = self.submission, None
        if not submission.gates:
            return Decision(Outcome.ABSENT)
        if self._cut_fields:
            outcome = Outcome.OBSERVED if self._observe_only else Outcome.DROPPED
        elif self._planned is not None:
            outcome, reason = Outcome.CHANGED, "not_resent"
        else:
            reason = self._reason
            outcome = Outcome.CHANGED if reason is None else Outcome.UNKNOWN
        return Decision(
            outcome,
            submission.in_order(self._cut_fields),
            reason,
            submission.in_order(self._after_refusal),
            self.used_lookup_key,
        )

    async def compare_before_forwarding(self) -> None:
        """Decide which members to cut before the request is forwarded. Cancelling this cancels the lookup."""
        submission = self.submission
        gates = submission.gates_before_forwarding
        if not submission.names_a_key:
            self._reason = "no_key"
            return
        if not gates:
            return
        # The lookup starts after the whole body was received, so that the stored value is not older than the request.
        found = await self._look_up(fresh=False)
        if isinstance(found, Stored) and self._stored is None:
            unchanged, _ = submission.unchanged(gates, found.info)
            if len(unchanged) == len(gates):
                self._cut_fields = unchanged
                return
            # A cached value is good enough to find a member unchanged. Anything else needs a new lookup.
            found = await self._look_up(fresh=True)
        self._cut_fields = self._unchanged(gates, found)

    def candidates(self, status: int | None = None) -> list[Gate]:
        """The gates whose members may still be cut if LiteLLM refuses the request because of them.

        ``status`` is the status of the refusal. If it is None, gates with any status are returned.
        """
        submission, found = self.submission, self._stored
        if not submission.names_a_key or self.resent == MAX_RESENDS or isinstance(found, Unknown):
            return []
        return [
            gate
            for gate in submission.gates
            if status in (None, gate.status)
            and gate.field not in self._cut_fields
            and gate.can_be_unchanged(submission.values[gate.field])
            and (gate.cut is Cut.AFTER_REFUSAL or self.withholds_decision)
            and (not isinstance(found, Stored) or gate.unchanged(submission.values, found.info))
        ]

    async def compare_after_refusal(self, gates: Sequence[Gate]) -> bool:
        """Decide which members to cut after LiteLLM has refused the request because of ``gates``.

        Returns whether the request has to be sent again. Cancelling this cancels the lookup.
        """
        cut_fields = self._cut_fields
        had_no_value = self._stored is None
        found = await self._look_up_once()
        if had_no_value and isinstance(found, Stored):
            # What was cut so far was compared with a cached value. A member that differs from the new one is put back.
            unchanged, _ = self.submission.unchanged(self.submission.gates_before_forwarding, found.info)
            cut_fields = [name for name in cut_fields if name in unchanged]
        newly_cut = [name for name in self._unchanged(gates, found) if name not in cut_fields]
        if not newly_cut:
            return False
        self._planned = cut_fields + newly_cut, self._after_refusal + newly_cut
        if self._observe_only:
            self._commit()
            return False
        return True

    def report_resend(self) -> None:
        """Report that the request is being sent again, without what the last `compare_after_refusal` has cut."""
        self.resent += 1
        self._commit()

    def _commit(self) -> None:
        assert self._planned is not None  # noqa: S101 - for the type checker
        self._cut_fields, self._after_refusal = self._planned
        self._planned = None

    def _unchanged(self, gates: Sequence[Gate], found: Stored | Unknown) -> list[str]:
        """The names of the members of ``gates`` that are unchanged, each once."""
        if isinstance(found, Unknown):
            self._reason = found.reason
            return []
        unchanged, shapes_known = self.submission.unchanged(gates, found.info)
        self._reason = None if shapes_known else "stored_shape"
        return list(dict.fromkeys(unchanged))

    async def _look_up(self, *, fresh: bool) -> Stored | Unknown:
        """Look the key up as the caller. Unless ``fresh``, a cached value of an earlier request may be returned."""
        submission, keys = self.submission, self._stored_keys
        found, lookup = await keys.get(self._caller, submission.key, submission.alias, self._prefix, fresh=fresh)
        if lookup is not None:
            self.lookups.append(lookup)
        # A caller who may not read the key must not learn from a refusal what the credential has read.
        self.withholds_decision = isinstance(found, Unknown) and found.refused and keys.has_lookup_key
        from_cache = lookup is None and isinstance(found, Stored)
        if not from_cache and not self.withholds_decision:
            self._stored = found
        return found

    async def _look_up_once(self) -> Stored | Unknown:
        """What is stored, from the lookup made for this request. It is made now if that was not done before.

        The lookup is made as the caller or, if LiteLLM refuses that, with the gateway's own credential.
        """
        if self._stored is None and not self.withholds_decision:
            await self._look_up(fresh=True)
        if self._stored is None:
            self._stored, lookup = await self._stored_keys.get_with_lookup_key(
                self._caller, self.submission.key, self.submission.alias, self._prefix
            )
            if lookup is not None:
                self.lookups.append(lookup)
        return self._stored
