/**
 * One socket for all tabs of an origin that use the same URL.
 *
 * One tab leads: it holds a Web Lock, and the connection. The others ask it by a BroadcastChannel,
 * and hear all that it hears. So that another one can go on with the session when the leader is
 * gone, all of them know its token, the positions, and what was sent and not answered.
 */
import { BackchannelError, connect as connectAlone, Engine, Front, locate } from "./index.js";
import type { Connection } from "./engine.js";
import { type Entry, newSession, type Session } from "./entry.js";
import type { Body, Frame } from "./frames.js";
import type { Client, Messages, Options } from "./types.js";

interface Asked {
  frame: Frame;
  body: Body;
  retry?: boolean | undefined;
}

interface Waiting extends Asked {
  /** Who led when it was asked; "" for nobody. */
  leader: string;
  resolve: (answer: Frame) => void;
  reject: (error: BackchannelError) => void;
}

/** What was sent to the server and not answered: who asked for it, under which number. */
interface Sent extends Asked {
  to: string;
  n: number;
}

type Failure = { code: string; text: string; field?: string | undefined };

/** What tabs tell each other; `from` is who says it, `to` the only one whom it is for. */
type Note = { from: string; to?: string } & (
  // `knows`: it has what every tab knows of the session.
  // `channels`: with the position after which each begins, if any; `n`: of the newest `enter`.
  | { kind: "here"; channels: (readonly [string, string | undefined])[]; n: number; events: string[]; knows: boolean }
  // `leader`: whom it is for, as the asking tab knows. Another one is asked anew.
  | ({ kind: "ask"; n: number; leader: string } & Asked)
  | { kind: "abort"; n: number }
  | { kind: "reply"; frame: Frame; body: Body }
  | { kind: "enter"; channel: string; n: number; since?: string | undefined }
  | { kind: "leave"; channel: string; n: number }
  | { kind: "wake" }
  | { kind: "bye" }
  // Of the leader:
  | { kind: "leads" }
  // It knows what the tab wanted to enter until `n`.
  | { kind: "heard"; n: number }
  | { kind: "frame"; frame: Frame }
  | { kind: "token"; resume: string | null; lastId: number }
  | { kind: "sent"; id: number; sent: Sent | undefined }
  | { kind: "done"; n: number; answer?: Frame; failure?: Failure }
  | { kind: "inside"; session: Omit<Session, "_pending">; sent: [number, Sent][]; state: Frame }
);
type Unsigned<T> = T extends unknown ? Omit<T, "from"> : never;

const LEADERS = /^(frame|token|sent|done|heard)$/;
const LATE = 100;

const failureOf = ({ code, message, field }: BackchannelError): Failure => ({
  code: `${code}`,
  text: message,
  field,
});

const revived = ({ code, text, field }: Failure): BackchannelError =>
  new BackchannelError(code, text, field);

class Tab implements Connection {
  private _me = crypto.randomUUID();
  private _bus: BroadcastChannel;
  private _engine: Engine | undefined;
  /** The tab that leads: what an earlier one said and comes late is worth nothing. */
  private _leader = "";
  private _resign: () => void = () => {};
  private _stopWaiting = new AbortController();
  private _count = 0;
  private _asked = new Map<number, Waiting>();
  /** Channels that this tab is in or waits for: not those that it was refused. */
  private _channels = new Set<string>();
  /** Channels that this tab left or is out of, and others may be in: nothing of them is told here. */
  private _left = new Set<string>();
  /** Channels of which the leader may not know yet that this tab enters them, and the `n` of that. */
  private _entering = new Map<string, number>();
  private _since = new Map<string, string>();
  /** Channels that somebody is in, as this tab was told; `_inside` of the leader is its engine's. */
  private _known = new Set<string>();
  private _state: Frame = { type: "state", state: "connecting" };
  /** What every tab knows of the session. */
  private _session: Session = newSession();
  private _sent = new Map<number, Sent>();
  // Of the leader: the tabs, what they want to be in and can answer, and what they asked.
  private _tabs = new Map<string, { channels: Set<string>; events: Set<string> }>();
  private _aborts = new Map<string, AbortController>();
  private _calls = new Set<number>();
  /** Who asked for what the engine was just given. */
  private _asking = new WeakMap<Frame, { to: string; n: number }>();

  constructor(
    private _name: string,
    private _url: URL,
    private _options: Options,
    private _emit: (frame: Frame) => void,
    private _events: () => string[],
  ) {
    this._bus = new BroadcastChannel(_name);
    this._bus.onmessage = ({ data }) => this._hear(data);
    const { locks } = navigator;
    // While this tab lives it has a lock of its own, by which the leader sees it go.
    locks.request(this._lockOf(this._me), () => this._live()).catch(() => {});
    locks
      .request(_name, { signal: this._stopWaiting.signal }, () => this._lead())
      .catch(() => {}); // closed before its turn
    document.addEventListener("visibilitychange", this._wake);
    addEventListener("pagehide", this._hide);
  }

  private _lives = false;
  private _knows = false;
  private _live(): Promise<void> {
    this._lives = true;
    this._introduce();
    return this._over;
  }

  private _end: () => void = () => {};
  private _over = new Promise<void>((resolve) => (this._end = resolve));
  private _lockOf = (tab: string): string => `${this._name} ${tab}`;

  private _wake = (): void => {
    if (document.visibilityState === "visible") this._say({ kind: "wake" });
  };

  /** Stops before the page is gone, so that nothing happens that the next leader does not hear of. */
  private _hide = ({ persisted }: PageTransitionEvent): void => {
    if (!persisted) this._retire(1001, "the page is going away");
  };

  private _retire(code: number, text: string): void {
    this._say({ kind: "bye" });
    // From here on nothing is told: what waits goes on in another tab, with the session. So the
    // socket is not closed with 1000, which would end that.
    this._say = () => {};
    this._session._pending.clear();
    this._engine?._end(code, text, "client");
    this._show({ type: "state", state: "closed", code, text, by: "client" });
  }

  _introduce(): void {
    // Not before it has its lock: who asks for that would take it to be gone.
    if (!this._lives) return;
    const { _knows: knows, _count: n } = this;
    const channels = [...this._channels].map((name) => [name, this._since.get(name)] as const);
    this._say({ kind: "here", channels, n, events: this._events(), knows });
  }

  // ── what the client asks ──────────────────────────────────────────────────────────────────

  _ask(frame: Frame, body?: Body, retry?: boolean, signal?: AbortSignal): Promise<Frame> {
    return new Promise((resolve, reject) => {
      if (this._state.state === "closed") {
        return reject(new BackchannelError("closed", "the connection is closed"));
      }
      if (signal?.aborted) return reject(signal.reason);
      const n = ++this._count;
      const abort = (): void => {
        this._asked.delete(n);
        this._say({ kind: "abort", n });
        reject(signal!.reason);
      };
      signal?.addEventListener("abort", abort);
      const settled = (): void => signal?.removeEventListener("abort", abort);
      this._asked.set(n, {
        frame, body, retry, leader: this._leader,
        resolve: (answer) => (settled(), resolve(answer)),
        reject: (error) => (settled(), reject(error)),
      });
      this._say({ kind: "ask", n, frame, body, retry, leader: this._leader });
    });
  }

  _tell(frame: Frame, body: Body, dropped: (error: BackchannelError) => void): void {
    this._ask(frame, body).catch(dropped);
  }

  _reply(frame: Frame, body?: Body): void {
    this._say({ kind: "reply", frame, body });
  }

  _enter(channel: string, since?: string): void {
    this._left.delete(channel);
    if (since && !this._channels.has(channel)) {
      this._since.set(channel, since);
      // Who leads is told; the first one that ever does begins with this.
      if (!this._leader) this._session._positions.set(channel, since);
    }
    this._channels.add(channel);
    const n = ++this._count;
    this._entering.set(channel, n);
    this._say({ kind: "enter", channel, n, since });
  }

  async _leave(channel: string): Promise<unknown> {
    if (this._state.state === "closed") return;
    this._out(channel);
    const n = ++this._count;
    return new Promise((resolve) => {
      const frame = { type: "unsubscribe", channel };
      this._asked.set(n, { frame, body: undefined, leader: this._leader, resolve, reject: resolve });
      this._say({ kind: "leave", channel, n });
    });
  }

  private _out(channel: string): void {
    this._channels.delete(channel);
    this._since.delete(channel);
    this._entering.delete(channel);
    this._left.add(channel);
  }

  /** Closes this tab's part; the last one ends the session. */
  _close(code: number, text: string): void {
    const isLast = this._tabs.size <= 1;
    if (this._engine && isLast) this._engine._close(code, text);
    else this._retire(code, text);
  }

  // ── between tabs ──────────────────────────────────────────────────────────────────────────

  /** Tells all tabs, and this one. */
  private _say(note: Unsigned<Note>): void {
    const signed = { ...note, from: this._me } as Note;
    if (signed.to !== this._me) this._bus.postMessage(signed);
    if (!signed.to || signed.to === this._me) this._hear(signed);
  }

  private _hear(note: Note): void {
    if (note.to && note.to !== this._me) return;
    if (LEADERS.test(note.kind) && this._leader && note.from !== this._leader) return;
    switch (note.kind) {
      case "frame":
        return this._show(note.frame, !note.to);
      case "heard":
        for (const [channel, n] of this._entering) if (n <= note.n) this._entering.delete(channel);
        return;
      case "token":
        this._session._resume = note.resume;
        this._session._lastId = note.lastId;
        return;
      case "sent":
        if (note.sent) this._sent.set(note.id, note.sent);
        else this._sent.delete(note.id);
        return;
      case "done":
        return this._settle(note.n, note.answer, note.failure);
      case "inside":
        if (this._engine) return;
        this._leader = note.from;
        this._knows = true;
        this._session = { ...note.session, _pending: new Map() };
        this._sent = new Map(note.sent);
        this._show(note.state);
        return this._askAgain();
      case "leads":
        this._leader = note.from;
        // Its own word comes back to it behind all that was said before.
        if (note.from === this._me) this._begin();
        else {
          // Until it knows them it may take one of these for a channel that nobody wants.
          this._count++;
          for (const channel of this._channels) this._entering.set(channel, this._count);
          this._introduce();
          this._askAgain();
        }
        return;
      default:
        if (this._engine) this._serve(this._engine, note);
    }
  }

  private _settle(n: number, answer?: Frame, failure?: Failure): void {
    const waiting = this._asked.get(n);
    this._asked.delete(n);
    if (answer) waiting?.resolve(answer);
    else if (failure) waiting?.reject(revived(failure));
  }

  /** Takes a frame that the leader heard; `byAll`: not for this tab alone. */
  private _show(frame: Frame, byAll = false): void {
    const { type, id, channel, position, error } = frame;
    const { _inside, _positions } = this._session;
    const isOut = type === "unsubscribed";
    // The leader greets with the channels that somebody is in. Where it does not know yet that this
    // tab enters one, its answer to that follows, and says the same.
    if (type === "subscribed" && !byAll && this._entering.has(channel)) return;
    if (type === "state") this._state = frame;
    if (type === "subscribed") {
      _inside.add(channel);
      this._since.delete(channel);
      // Nobody asked: the server lets all of them in. It also says so where it goes on.
      if (byAll && !id && !this._known.has(channel)) this._left.delete(channel);
      this._known.add(channel);
    }
    if (isOut) {
      _inside.delete(channel);
      _positions.delete(channel);
      this._known.delete(channel);
    } else if (channel && position) _positions.set(channel, position);
    // Was it out before the leader knew that this tab enters it, that is no answer to this tab.
    const isStale = isOut && this._entering.has(channel);
    if (!isStale && !this._left.has(channel)) {
      // Nothing asks for it any more but another `enter`, which what hears this may do.
      if (isOut && this._channels.has(channel)) this._out(channel);
      this._emit(error ? { ...frame, error: revived(error) } : frame);
    }
    if (frame.state === "closed") this._finish(frame);
  }

  private _finish({ code, text }: Frame): void {
    const failure = { code: "closed", text: `the connection is closed: ${code} ${text}` };
    for (const n of [...this._asked.keys()]) this._settle(n, undefined, failure);
    document.removeEventListener("visibilitychange", this._wake);
    removeEventListener("pagehide", this._hide);
    this._say = () => {};
    this._bus.onmessage = null;
    this._bus.close();
    this._stopWaiting.abort();
    this._resign();
    this._end();
  }

  /** Another tab leads now: it knows what was sent, and nothing of what only waited. */
  private _askAgain(): void {
    const sent = new Set([...this._sent.values()].filter((s) => s.to === this._me).map((s) => s.n));
    for (const [n, waiting] of this._asked) {
      const { frame, body, retry, leader } = waiting;
      if (sent.has(n) || leader === this._leader) continue;
      waiting.leader = this._leader;
      if (frame.type === "call" && leader) {
        const text = "the tab that held the connection was closed before the answer";
        this._settle(n, undefined, { code: "disconnected", text });
      } else if (frame.type === "unsubscribe") {
        this._say({ kind: "leave", channel: frame.channel, n });
      } else this._say({ kind: "ask", n, frame, body, retry, leader: this._leader });
    }
  }

  // ── leading ───────────────────────────────────────────────────────────────────────────────

  private async _lead(): Promise<void> {
    // A tab that died may have said something that is still on its way; nothing tells when not.
    if (this._session._resume) await new Promise((then) => setTimeout(then, LATE));
    if (this._state.state === "closed") return;
    const echo = new BroadcastChannel(this._name);
    echo.postMessage({ kind: "leads", from: this._me });
    await new Promise<void>((resolve) => (this._resign = resolve));
    echo.close();
  }

  private _begin(): void {
    this._knows = true;
    const session = this._session;
    // Subscriptions and calls of the last leader had ids that nobody else heard of.
    if (session._resume) session._lastId += 1_000_000;
    // What the others want they say: what the last leader wanted may have been refused since.
    session._wanted = new Set(this._channels);
    this._entering.clear();
    for (const [id, sent] of [...this._sent].sort(([a], [b]) => a - b)) {
      session._pending.set(id, this._entryOf({ ...sent.frame, id }, sent));
    }
    this._engine = new Engine(
      this._url, this._options, (frame) => this._spread(frame), session,
      (id, entry) => this._spreadSent(id, entry),
    );
    this._tabs.set(this._me, { channels: this._channels, events: new Set(this._events()) });
    for (const [n, waiting] of this._asked) {
      const { frame, body, retry, leader } = waiting;
      waiting.leader = this._me;
      const isSent = [...this._sent.values()].some((s) => s.to === this._me && s.n === n);
      if (frame.type === "call" && leader) {
        const text = "the tab that held the connection was closed before the answer";
        this._settle(n, undefined, { code: "disconnected", text });
      } else if (!isSent) this._say({ kind: "ask", n, frame, body, retry, leader: this._me });
    }
  }

  private _entryOf(frame: Frame, { to, n, body, retry }: Sent): Entry {
    this._asking.set(frame, { to, n });
    return {
      _frame: frame,
      _body: body,
      _retry: retry,
      _resolve: (answer) => this._say({ kind: "done", to, n, answer }),
      _reject: (error) => this._say({ kind: "done", to, n, failure: failureOf(error) }),
    };
  }

  /** Passes on what the engine heard. */
  private _spread(frame: Frame): void {
    const { type, id, channel } = frame;
    if (type === "unsubscribed") {
      for (const [tab, { channels }] of this._tabs) if (tab !== this._me) channels.delete(channel);
    }
    if (type === "state" && frame.state === "open") {
      const { _resume: resume, _lastId: lastId } = this._session;
      this._say({ kind: "token", resume, lastId });
    }
    if (frame.error) {
      // An error can't travel as one.
      this._say({ kind: "frame", frame: { ...frame, error: failureOf(frame.error) } });
    } else if (type === "call") this._ring(frame);
    else {
      if (type === "cancel") this._calls.delete(id!);
      this._say({ kind: "frame", frame });
    }
  }

  private _spreadSent(id: number, entry?: Entry): void {
    const asking = entry && this._asking.get(entry._frame);
    const sent = asking && {
      ...asking, frame: entry._frame, body: entry._body, retry: entry._retry,
    };
    this._say({ kind: "sent", id, sent });
  }

  /** A call of the server rings in each tab that can answer it; the first answer counts. */
  private _ring(frame: Frame): void {
    const able = [...this._tabs].filter(([, { events }]) => events.has(frame.event));
    if (!able.length) {
      const text = `nothing answers ${frame.event} here`;
      this._engine!._reply({ type: "error", id: frame.id!, code: "unknown_type", text });
      return;
    }
    this._calls.add(frame.id!);
    for (const [to] of able) this._say({ kind: "frame", to, frame });
  }

  /** Does for a tab, maybe this one, what it wants. */
  private _serve(engine: Engine, note: Note): void {
    const { from } = note;
    const key = "n" in note ? `${from} ${note.n}` : "";
    switch (note.kind) {
      case "here":
        return this._welcome(note);
      case "wake":
        return engine._wake();
      case "bye":
        return this._gone(from);
      case "enter":
        // One that is new says all that it wants with its `here`, which is on its way.
        if (!this._tabs.has(from)) return;
        this._say({ kind: "heard", to: from, n: note.n });
        return this._enterFor(from, note.channel, note.since);
      case "leave":
        this._leaveFor(from, note.channel).then(
          () => this._say({ kind: "done", to: from, n: note.n, answer: { type: "unsubscribed" } }),
        );
        return;
      case "abort":
        return this._aborts.get(key)?.abort();
      case "reply":
        if (!this._calls.delete(note.frame.id!)) return;
        engine._reply(note.frame, note.body);
        // It stops ringing in the others.
        return this._say({ kind: "frame", frame: { type: "cancel", id: note.frame.id! } });
      case "ask": {
        if (note.leader !== this._me) return;
        const { n, body, retry } = note;
        const aborts = new AbortController();
        // A frame of its own: the engine writes the id into it.
        const frame = { ...note.frame };
        this._asking.set(frame, { to: from, n });
        this._aborts.set(key, aborts);
        engine._ask(frame, body, retry, aborts.signal).then(
          (answer) => this._say({ kind: "done", to: from, n, answer }),
          (error) => this._say({ kind: "done", to: from, n, failure: failureOf(error) }),
        ).finally(() => this._aborts.delete(key));
      }
    }
  }

  private _welcome({ from: tab, channels, n, events, knows }: Note & { kind: "here" }): void {
    const known = this._tabs.get(tab);
    if (known) {
      known.events = new Set(events);
      return;
    }
    this._tabs.set(tab, { channels: new Set(), events: new Set(events) });
    navigator.locks.request(this._lockOf(tab), () => this._gone(tab));
    const { _pending, ...session } = this._session;
    const sent = [...this._sent];
    if (!knows) this._say({ kind: "inside", to: tab, session, sent, state: this._state });
    for (const channel of session._inside) this._tellInside(tab, channel);
    this._say({ kind: "heard", to: tab, n });
    for (const [channel, since] of channels) this._enterFor(tab, channel, since);
  }

  private _tellInside(to: string, channel: string): void {
    const position = this._session._positions.get(channel);
    const frame = { type: "subscribed", channel, ...(position && { position }) };
    this._say({ kind: "frame", to, frame });
  }

  private _enterFor(tab: string, channel: string, since?: string): void {
    this._tabs.get(tab)?.channels.add(channel);
    const { _inside, _wanted, _pending } = this._session;
    const isAsked = _wanted.has(channel) && [..._pending.values()].some(
      ({ _frame }) => _frame.type === "subscribe" && _frame.channel === channel,
    );
    if (_inside.has(channel)) {
      _wanted.add(channel);
      this._tellInside(tab, channel);
    } else if (!isAsked) this._engine!._enter(channel, since);
  }

  /** Only the last one who wants to be in a channel leaves it. */
  private async _leaveFor(tab: string, channel: string): Promise<void> {
    this._tabs.get(tab)?.channels.delete(channel);
    if ([...this._tabs.values()].some(({ channels }) => channels.has(channel))) return;
    await this._engine!._leave(channel);
    if (this._session._wanted.has(channel)) return; // somebody has entered it since
    this._say({ kind: "frame", frame: { type: "unsubscribed", channel } });
  }

  private _gone(tab: string): void {
    const { channels } = this._tabs.get(tab) ?? {};
    for (const channel of [...(channels ?? [])]) this._leaveFor(tab, channel).catch(() => {});
    this._tabs.delete(tab);
  }
}

/**
 * As `connect` of `client.js`; `name` tells those apart who use the same URL and must not share.
 *
 * Options and providers of the tab that leads are used. Where the browser lacks Web Locks or
 * BroadcastChannel, which need https or localhost, each tab has its own connection.
 */
type ConnectTabs = <M = Messages>(
  url: string | URL,
  options?: Options & { name?: string },
) => Client<M>;

export const connect = ((
  url: string | URL,
  { name: called, ...options }: Options & { name?: string } = {},
) => {
  const located = locate(url);
  // Both want a secure context: https, or localhost.
  if (!globalThis.navigator?.locks || !globalThis.BroadcastChannel) return connectAlone(url, options);
  const name = `backchannel ${called ?? located.href}`;
  let tab: Tab;
  // Asked before the front is there: then it answers nothing yet.
  let front: Front | undefined;
  const events = (): string[] => [...(front?._answers.keys() ?? [])];
  front = new Front(
    options,
    (emit) => (tab = new Tab(name, located, options, emit, events)),
    () => tab._introduce(),
  );
  return front;
}) as ConnectTabs;

export * from "./index.js";
