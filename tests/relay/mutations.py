"""Changes that the fuzzers make to a stream of octets: up to three mutations, and a division into pieces."""

from hypothesis import strategies as st


def mutated(draw: st.DrawFn, stream: bytes, tokens: list[bytes]) -> bytes:
    """``stream`` with up to three mutations. Inserted octets are often one of ``tokens``."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(stream)))
        until = at + draw(st.integers(1, 12))
        token = draw(st.one_of(st.sampled_from(tokens), st.binary(min_size=1, max_size=3)))
        before, part, after = stream[:at], stream[at:until], stream[until:]
        stream = draw(
            st.sampled_from(
                [
                    before + token + part + after,
                    before + token + stream[at + len(token) :],
                    before + after,
                    before + part * 2 + after,
                    before,
                ]
            )
        )
    return stream


def divided(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """``stream`` in up to six pieces, none of which is empty."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=5)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    return [piece for piece in pieces if piece]
