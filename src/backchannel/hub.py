"""The hub as listeners and views meet it: endpoints, audiences, and the verbs on them."""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from backchannel.access import Access
from backchannel.attendance import Attendance
from backchannel.audience import Changes, Info
from backchannel.callbacks import read_listener
from backchannel.catchup import CatchUps, Missed
from backchannel.change import Change
from backchannel.channel import Channels, check_channel
from backchannel.cluster import Cluster
from backchannel.codes import check_close, meaning_of
from backchannel.connection import CloseReason, Connection
from backchannel.contracts import Broker, Receipt, Target
from backchannel.dispatch import Dispatch
from backchannel.endpoint import Endpoint, Endpoints, check_options
from backchannel.expiry import Expiry
from backchannel.fanout import Encoder, Fanout
from backchannel.farewell import Farewells
from backchannel.guard import Guard
from backchannel.history import Position
from backchannel.identity import holder_of
from backchannel.leaving import Leaving
from backchannel.membership import Membership
from backchannel.observe import HUB, LISTENER
from backchannel.places import names_of_caller
from backchannel.presence import Presence
from backchannel.publishing import Publishing
from backchannel.resume import MemoryResumes
from backchannel.roster import Roster
from backchannel.rules import Rules
from backchannel.runtime import Health, Runtime
from backchannel.session.touch import Touches
from backchannel.session.watch import watch_sessions
from backchannel.session.web import Session, remember
from backchannel.speech.resumes import Resumes
from backchannel.stores import ResumeStore, TicketStore
from backchannel.template import Template
from backchannel.tickets import MemoryTickets, check_ttl, key_of, new_ticket

if TYPE_CHECKING:
    from backchannel.config import Settings

__all__ = ["HubCore"]

T = TypeVar("T")


class HubCore(Publishing, Access):
    """One application's connection manager, without what carries its bytes.

    Attributes:
        settings: what it was made with.
        roster: the live connections of this node.
        fanout: what a turn of the event loop sends.
        guard: keeps the limits of what clients may do.
        farewells: who was closed while others were on their way in.
        expiry: ends the connections whose identity holds until a time.
        tickets: those that wait to be used.
        resumes: the sessions of v1 clients, which may be resumed.
        touches: keeps the sessions alive whose sockets are used.
        attendance: who is in the channels whose rule says presence.
        node: this node's id, new at each start.
        is_named: its application gave it a name.
    """

    def __init__(self, settings: Settings, broker: Broker):
        self.settings = settings
        self.node = ""
        self.is_named = False
        self.roster = Roster()
        self.fanout = _fanout(settings)
        self.rules = Rules()
        self._broker = broker
        self.cluster = Cluster(self, broker)
        self.attendance = Attendance(self, broker)
        self._begin_membership()
        self.dispatches: set[Dispatch] = set()
        self.endpoints = Endpoints(casefold=settings.casefold_channels)
        self.presence = Presence()
        if self.cluster.is_shared:
            self.presence.announce = self.attendance.came_or_went
        self.guard = Guard(settings)
        self.expiry = Expiry()
        self.farewells = Farewells()
        self.tickets: TicketStore = broker.tickets or MemoryTickets()
        self._resume_store: ResumeStore = broker.resumes or MemoryResumes()
        self.runtime = Runtime(self.fanout)
        self.resumes = self._new_resumes()
        self.touches = Touches(functools.partial(self.runtime.keep, context=Context()))
        self.is_stopping = False
        self._leaving: Leaving | None = None
        self._without_history: set[str] = set()
        self._watches = False
        self._starting = asyncio.Lock()
        broker.bind(self.cluster)

    def _new_resumes(self) -> Resumes:
        settings = self.settings
        linger = settings.broker_timeout if self.cluster.is_shared else 0.0
        return Resumes(self._resume_store, settings.resume_window, self.runtime.keep, linger)

    def _begin_membership(self) -> None:
        self._catch_ups = CatchUps(self._broker, self.roster)
        self._channels = Channels()
        self.membership = Membership(
            self.roster,
            self.fanout,
            self._channels,
            self.rules,
            self._catch_ups,
            self.attendance,
            self.cluster if self.cluster.is_shared else None,
        )

    # ── endpoints ─────────────────────────────────────────────────────────────────────────────

    def endpoint(self, template: str, **options: Any) -> Callable[[T], T]:
        """Bind the decorated Listener class or function to a URL template.

        Args:
            template: such as ``"/ws/chat/{channel}"``; ``{channel}`` subscribes by itself.
            options: see ``add``.

        Raises:
            TypeError: the URL is missing, as in ``@hub.endpoint`` without parentheses.
            TemplateError, ListenerError: see ``add``.
        """
        if not isinstance(template, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                '@hub.endpoint takes the URL, as in @hub.endpoint("/ws/chat/{channel}")'
            )
        check_options(options, "hub.endpoint", template)
        names = names_of_caller(2)

        def bind(target: T) -> T:
            self._add(template, target, names, options)
            return target

        return bind

    def add(self, template: str, listener: object, **options: Any) -> None:
        """Bind a Listener class, a Listener instance or a function to a URL template.

        Args:
            template: ``{name}``, ``{name:int}``, ``{name:uuid}`` and, last, ``{rest:path}`` are
                variables; exact text wins over them.
            listener: a class is instantiated without arguments.
            options: ``channel="support:{room}"`` names the channel that connections enter by
                themselves when it is not plain ``{channel}``; ``share_channels=True`` when another
                endpoint leads into the same channels on purpose; ``tag="msgType"`` the field that
                ``@event`` methods are chosen by; ``subprotocols=["chat.v2"]`` what it speaks;
                ``slow_client="latest"`` what is done when a client reads too slowly (``"close"``,
                ``"drop_oldest"``, ``"drop_newest"``, or only the latest message of each channel);
                ``idle_timeout=300`` seconds after which a client that sends nothing is closed.
                ``authenticate=`` is asked instead of the hub's own.

        Raises:
            TemplateError: the template is malformed or clashes with another endpoint's.
            ListenerError: the listener can't serve (signature, annotation, spelling).
            TypeError, ValueError: an option has no such value.
        """
        check_options(options, "hub.add", template)
        self._add(template, listener, names_of_caller(2), options)

    def replace(self, template: str, listener: object) -> None:
        """Swap the listener of an endpoint; its connections stay and meet the new one next.

        Args:
            template: the endpoint's URL template.
            listener: as in ``add``.

        Raises:
            LookupError: there is no such endpoint.
            ListenerError: the listener can't serve; the old one stays.
        """
        endpoint = self.endpoints.get(template)
        if endpoint is None:
            known = ", ".join(e.template.text for e in self.endpoints) or "none"
            raise LookupError(
                f"no endpoint {template!r} to replace the listener of; known: {known}"
            )
        endpoint.callbacks = read_listener(listener, names_of_caller(2))

    def _add(
        self, template: str, listener: object, names: Mapping[str, Any], options: dict[str, Any]
    ) -> Endpoint:
        callbacks = read_listener(listener, names)
        endpoint = Endpoint(Template(template), callbacks, **options)
        self.endpoints.add(endpoint)
        self._announce()
        return endpoint

    # ── what else an application asks for ─────────────────────────────────────────────────────

    async def remember(self, request: Any) -> str:
        """Name the web session of an HTTP request, so that its sockets can be addressed.

        Call it at login, in the view. A session that is kept on the server has an id already, which
        is returned; one that lives in a cookie gets a new random one each time.

        Args:
            request: Starlette's, FastAPI's or Django's, with its session.

        Returns:
            What ``ws.session.id`` is for the sockets that are opened with this session from now on,
            for ``hub.session(id)``.

        Raises:
            TypeError: the request has no session.
        """
        return await remember(request)

    async def ticket(self, user: object, ttl: float = 30) -> str:
        """Return a ticket, with which a client may connect once as this user.

        It goes into the URL, as ``?ticket=…``; then ``authenticate`` is not asked. It is used up
        by the first handshake that brings it from an origin that may connect, even where a later
        check refuses that one.

        Args:
            user: a user id, where 42 and "42" are the same user; or an object with one, as
                ``authenticate`` returns it. Of that the connection gets the id and, where it has
                one, the ``expires_at``, with which it ends.
            ttl: seconds it may wait to be used.

        Raises:
            TypeError: the user is nobody's id and has none, or its ``expires_at`` is no time.
            ValueError: the id is empty, the identity has expired, or the ttl is no number of
                seconds above 0.
            RuntimeError: too many tickets wait to be used; or, where a broker keeps them, awaited
                in another event loop than the hub's.
            BrokerUnavailable: the broker keeps them and does not answer.
        """
        holder = holder_of(user)
        check_ttl(ttl)
        if self._broker.tickets is not None and not self.is_stopping:
            await self.start()  # whoever asks for a ticket may be the first to use the hub
        ticket = new_ticket()
        await self.tickets.put(key_of(ticket), holder, ttl)
        return ticket

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine until it ends or the hub stops. What it raises is logged.

        Raises:
            RuntimeError: called outside the hub's event loop.
        """
        return self.runtime.spawn(work, "hub task", copy_context())

    @property
    def health(self) -> Health:
        """How the hub is doing."""
        return Health(
            running=self.is_running and not self.is_leaving,
            connections=len(self.roster.everyone),
            channels=len(self.roster.counts()),
            broker=self.cluster.state,
            problems=self.runtime.problems,
            foreign=self.cluster.strangers.count,
            ready=self.is_running and not self.is_leaving and self._broker.is_connected,
        )

    def watch(self, session: Session) -> None:
        """See to it that the connections of a session end when it does."""
        interval = self.settings.session_check
        if self._watches or interval is None or not session.is_writable:
            return
        self._watches = True
        watching = watch_sessions(interval, self.roster.server_sessions, self._session_ended)
        self.runtime.spawn(watching, "session check", Context())

    def _session_ended(self, key: str) -> None:
        self.session(key).close(4004, "session ended")

    def info(self, ws: Connection) -> Info:
        """Return what anyone may know about a connection."""
        return Info(ws.id, ws.user, ws.endpoint, self.node, ws.opened_at, dict(ws.meta))

    # ── starting and stopping ─────────────────────────────────────────────────────────────────

    @property
    def is_running(self) -> bool:
        """It has started, takes connections, and its event loop is alive."""
        return self.runtime.is_alive and not self.is_stopping

    @property
    def is_leaving(self) -> bool:
        """It takes no more connections: they are ended one after the other, or it has stopped."""
        return self.is_stopping or self._leaving is not None

    @property
    def grace(self) -> float:
        """Seconds that a cancelled callback has."""
        grace = self.settings.cancel_grace
        return min(1.0, grace) if self.is_stopping else grace

    async def start(self) -> None:
        """Start; does nothing when it runs already.

        Raises:
            RuntimeError: it runs in another event loop.
        """
        if self.is_running and not self._starting.locked() and self.runtime.is_here():
            return
        async with self._starting:
            await self._start()

    async def _start(self) -> None:
        if self.is_running:
            if self.runtime.is_here():
                return
            raise RuntimeError(
                "this hub runs in another event loop already; one Hub serves one event loop: make "
                "a second Hub, or stop the first with `await hub.stop()`"
            )
        self.fanout = _fanout(self.settings)
        self.runtime.bind(self.fanout)
        self.roster = Roster()
        self._begin_membership()
        self.dispatches.clear()
        self.presence.forget()
        self._watches = False
        self.expiry = Expiry()
        self.farewells = Farewells()
        self.resumes = self._new_resumes()
        for endpoint in self.endpoints.all():
            endpoint.begin_anew()
        self.guard = Guard(self.settings)
        self.node = secrets.token_hex(4)
        self.cluster.begin_anew()
        self.attendance.begin_anew()
        try:
            await self._broker.start()
        except BaseException:
            self.runtime.release()
            raise
        self.is_stopping = False
        self._warn_of_rules()
        HUB.debug("hub started as node %s with %d endpoints", self.node, len(list(self.endpoints)))

    async def stop(
        self,
        code: int = 1001,
        reason: str = "",
        *,
        timeout: float = 2.0,  # noqa: ASYNC109 - it is the API
        drain: float = 0.0,
    ) -> None:
        """Close every connection, run every on_close, and take no more connections.

        Called again while it drains, without ``drain``, it hurries. Both return when all is over.

        Args:
            code: the close code for all.
            reason: the reason; by default what the code means.
            timeout: seconds for callbacks to end and for closes to leave; then what still runs is
                cancelled and logged.
            drain: seconds over which the connections are closed, at random moments, each when its
                callbacks have ended; what was published meanwhile is handed to the broker. New ones
                are refused at once, with 503. The ``timeout`` begins after it.

        Raises:
            ValueError: a code that can't be sent, a reason that is too long, or a drain that is no
                number of seconds from 0 to a day.
        """
        check_close(code, reason)
        if not 0 <= drain <= 86_400:  # NaN is not either
            raise ValueError(f"drain= is 0 seconds or more and at most a day, not {drain!r}")
        if self._leaving is not None and not self.is_stopping:
            if not drain:
                self._leaving.hurry()
            await asyncio.shield(self._leaving.stopped)
        elif self.is_running:
            ending = CloseReason(code, reason or meaning_of(code), "server")
            leaving = self._leaving = Leaving(self.dispatches, ending, drain)
            try:
                if drain:
                    await leaving.run()
                await self._stop(ending, timeout, leaving)
            finally:
                self._leaving = None
                leaving.stopped.set_result(None)

    async def _stop(self, ending: CloseReason, timeout: float, leaving: Leaving) -> None:  # noqa: ASYNC109
        self.is_stopping = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        waiting = {dispatch.closed: dispatch for dispatch in self.dispatches}
        links = [dispatch.ws._link for dispatch in self.dispatches]
        for dispatch in list(self.dispatches):
            dispatch.end(ending)
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout)
            for closed in late:
                LISTENER.error("%s: its callbacks did not end in time", waiting[closed].ws)
        if links:
            leaving_links = [loop.create_task(link.finished()) for link in links]
            _, unsent = await asyncio.wait(leaving_links, timeout=max(0.0, deadline - loop.time()))
            for task in unsent:
                task.cancel()
        if self.cluster.is_shared and (left := leaving.until - loop.time()) > 0:
            await self._broker.finish(left)
        await self.resumes.finish(deadline - loop.time())
        await self.runtime.cancel_all(max(0.1, deadline - loop.time()))
        await self._broker.stop()
        if (close := getattr(self.settings.session, "aclose", None)) is not None:
            await close()

    # ── membership ──────────────────────────────────────────────────────────────────

    def change_since(self, ws: Connection, channel: str, since: Position | str) -> Change:
        """Let a connection enter a channel with what it missed; see ``Connection.subscribe``."""
        name = check_channel(channel, casefold=self.settings.casefold_channels)
        dispatch, missed = ws._dispatch, Missed(Position.of(since))
        apply = functools.partial(
            self.membership.apply, dispatch, name, entering=True, missed=missed
        )
        change = Change(dispatch, apply, missed)
        take = functools.partial(dispatch.take, change, at_once=False)
        if self.runtime.is_elsewhere():
            self.runtime.loop.call_soon_threadsafe(take)
        else:
            take()
        return change

    def change_all(
        self,
        members: Callable[[], Iterable[Connection]],
        channel: str,
        *,
        entering: bool,
        elsewhere: Target | None = None,
    ) -> Changes:
        """Let many connections enter or leave a channel; see ``Audience.subscribe``.

        Args:
            members: they, of this node.
            channel: the channel.
            entering: False leaves it.
            elsewhere: those of this target on other nodes do so too.
        """
        name = self.check_channel(channel)
        changes: list[Change] = []

        def begin() -> Receipt:
            changes.extend(ws._dispatch.change(name, entering) for ws in members())
            return Receipt(len(changes))

        started, others = self.runtime.do(begin), None
        if elsewhere is not None and self.cluster.is_shared:
            verb = "subscribe" if entering else "unsubscribe"
            tell = functools.partial(self.cluster.tell, elsewhere, "others", verb, name)
            others = self.runtime.do(tell)
        return Changes(started, changes, others)


def _fanout(settings: Settings) -> Fanout:
    return Fanout(Encoder(settings.compress_above or 0, settings.deflate_window))
