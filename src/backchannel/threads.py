"""Calling what blocks: in a worker thread, with the context variables copied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["call_in_thread"]


async def call_in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a blocking function and wait for it; raises what it raises, with its traceback.

    asyncio alone would make a TimeoutError anew, without the traceback that says where it came
    from, and wait for ever where a StopIteration was raised.
    """
    result, error = await asyncio.to_thread(_catch, function, arguments)
    if error is None:
        return result
    try:
        raise error
    finally:
        del error  # or it would hold itself, through its traceback and this frame


def _catch(
    function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, BaseException | None]:
    try:
        return function(*arguments), None
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
        return None, error
