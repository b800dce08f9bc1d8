"""LiteLLM's ways of saying no, as the bodies that its clients see.

Three shapes: its own ``{"error": {...}}``, FastAPI's ``{"detail": "..."}``, and pydantic's ``{"detail": [{...}]}``.
"""

from typing import Any


class Refusal(Exception):
    """Ends a request with this status; ``body`` is sent as JSON, or as plain text if ``plain``."""

    def __init__(self, status: int, body: Any, *, plain: bool = False) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.plain = plain


def error(status: int, message: object, *, kind: str = "auth_error", param: str = "None", **more: Any) -> Refusal:
    """LiteLLM's ``ProxyException``: every member is a string, the code too, and a dictionary as Python prints it."""
    return Refusal(
        status, {"error": {"message": str(message), "type": kind, "param": param, "code": str(status), **more}}
    )


def unauthenticated(message: str, *, kind: str = "auth_error", param: str = "None") -> Refusal:
    return error(401, f"Authentication Error, {message}", kind=kind, param=param)


def detail(status: int, message: str) -> Refusal:
    """FastAPI's ``HTTPException``, where LiteLLM lets one through."""
    return Refusal(status, {"detail": message})


def invalid(*problems: dict[str, Any]) -> Refusal:
    """FastAPI's ``RequestValidationError``."""
    return Refusal(422, {"detail": list(problems)})


def problem(kind: str, where: tuple[str | int, ...], message: str, value: Any, **more: Any) -> dict[str, Any]:
    """One entry of `invalid`, as pydantic writes it: ``where`` is the way to the value from the body's root."""
    return {"type": kind, "loc": ["body", *where], "msg": message, "input": value, **more}


def crashed() -> Refusal:
    """What Starlette answers to an exception that nobody handles."""
    return Refusal(500, "Internal Server Error", plain=True)


def unstorable(column: str, value: Any) -> Refusal:
    """Prisma's refusal of a list column's value: ``None``, or a list with anything but strings in it."""
    if value is None:
        reasons = [f"`data.{column}`: A value is required but not set"] * 2
    else:
        types = f"LiteLLM_VerificationTokenUpdate{column}Input", "String"
        reasons = [
            f"Invalid argument type. `{column}` should be of any of the following types: `{name}`" for name in types
        ]
    unmatched = "Unable to match input value to any allowed input type for the field. Parse errors: [{}]"
    return error(
        400, "Authentication Error, " + unmatched.format(", ".join([unmatched.format(", ".join(reasons))] * 2))
    )
