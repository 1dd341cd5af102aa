import { type Entry, isKept, later, newSession, type Session } from "./entry.js";
import { BackchannelError } from "./errors.js";
import { type Body, decode, encode, type Frame, sizeOf } from "./frames.js";
import { Queue } from "./queue.js";
import type { Options, StateChange } from "./types.js";

const V1 = "backchannel.v1.json";
type Timer = "hello" | "doubt" | "beat" | "retry" | "renew";

const ANSWERS = /^(ack|reply|error|(un)?subscribed|presence|renewed)$/;

/** Coming back would be refused again, or the close was meant. */
const isFinal = (code: number): boolean =>
  /^(100[023789]|1010|400[45]|4[1-9]..)$/.test(`${code}`);

/** What a client needs of a connection: this engine's own, or another tab's. */
export interface Connection {
  /** Sends a frame now or when there is a connection; resolves with its answer. */
  _ask(frame: Frame, body?: Body, retry?: boolean, signal?: AbortSignal): Promise<Frame>;
  /** Sends a frame that nobody answers. */
  _tell(frame: Frame, body: Body, dropped: (error: BackchannelError) => void): void;
  /** Answers a call of the server; nothing where the connection is gone. */
  _reply(frame: Frame, body?: Body): void;
  _enter(channel: string, since?: string): void;
  /** Resolves when nothing of it comes any more; never rejects. */
  _leave(channel: string): Promise<unknown>;
  _close(code: number, text: string): void;
}

/** One session: its socket, whatever becomes of it, and what waits for answers. */
export class Engine implements Connection {
  private _socket: WebSocket | undefined;
  private _state: StateChange = { state: "connecting" };
  /** The present attempt: what an earlier one brings is worth nothing. */
  private _attempted: object | undefined;
  private _failed = 0;
  private _openedAt = 0;
  /** When the server that went away wants to see this client again, in ms. */
  private _notBefore = 0;
  private _heardAt = 0;
  /** Milliseconds, and bytes, as the server's hello says. */
  private _ping = Infinity;
  private _limit = Infinity;
  private _timers: { [name in Timer]?: ReturnType<typeof setTimeout> } = {};
  /** Channels that the application left, and the server has not said so: nothing of them is told. */
  private _left = new Map<string, Frame>();
  /** Channels of an ended session: what was missed in them can't be had. */
  private _unsure = new Set<string>();
  private _expiresIn: number | undefined;
  private _queue: Queue;
  private _patience: number;

  constructor(
    private _url: URL,
    private _options: Options,
    /** Takes frames for the application, state changes among them, as `type: "state"`. */
    private _emit: (frame: Frame) => void,
    readonly _session: Session = newSession(),
    /** Is told of each change of the pending, for those who may go on with the session. */
    private _note: (id: number, entry?: Entry) => void = () => {},
  ) {
    this._queue = new Queue(_options.queue);
    this._patience = (_options.patience ?? 10) * 1000;
    this._listen("addEventListener");
    // The application gets the time to say what it wants to hear.
    queueMicrotask(() => this._state.state === "connecting" && this._attempt());
  }

  // ── what the client asks ──────────────────────────────────────────────────────────────────

  _ask(frame: Frame, body?: Body, retry?: boolean, signal?: AbortSignal): Promise<Frame> {
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        clearTimeout(entry._timer);
        signal?.removeEventListener("abort", abort);
      };
      const entry: Entry = {
        _frame: frame,
        _body: body,
        _retry: retry,
        _resolve: (answer) => (settle(), resolve(answer)),
        _reject: (error) => (settle(), reject(error)),
      };
      const abort = (): void => {
        this._forget(entry, true);
        entry._reject(signal!.reason);
      };
      if (signal?.aborted) return abort();
      signal?.addEventListener("abort", abort);
      if (frame.type === "call") {
        entry._timer = later(frame.timeout * 1000, () => {
          this._forget(entry, true);
          entry._reject(new BackchannelError("timeout", `no answer in ${frame.timeout} seconds`));
        });
      }
      this._submit(entry);
    });
  }

  _tell(frame: Frame, body: Body, dropped: (error: BackchannelError) => void): void {
    this._submit({ _frame: frame, _body: body, _resolve: () => {}, _reject: dropped });
  }

  _reply(frame: Frame, body?: Body): void {
    if (this._isOpen()) this._socket!.send(encode(frame, body));
  }

  _enter(channel: string, since?: string): void {
    const { _wanted, _positions, _inside } = this._session;
    this._left.delete(channel);
    // What it has had of a channel is not asked for again.
    if (since && !_wanted.has(channel) && !_inside.has(channel)) _positions.set(channel, since);
    _wanted.add(channel);
    if (this._isOpen()) this._subscribe(channel);
  }

  async _leave(channel: string): Promise<void> {
    this._drop(channel);
    const frame: Frame = { type: "unsubscribe", id: 0, channel };
    this._left.set(channel, frame);
    // Where the answer does not come it is left when there is a connection again, if ever.
    if (this._isOpen()) await this._ask(frame).catch(() => {});
  }

  _close(code: number, text: string): void {
    this._socket?.close(code, text);
    this._end(code, text, "client");
  }

  private _isOpen(): boolean {
    return this._state.state === "open";
  }

  private _submit(entry: Entry): void {
    if (this._isOpen()) this._transmit(entry);
    else if (this._state.state === "closed") entry._reject(this._closedError());
    else this._queue._add(entry);
  }

  private _transmit(entry: Entry): void {
    const { _frame, _body, _resolve } = entry;
    const { _session } = this;
    if ("id" in _frame) _frame.id ||= ++_session._lastId;
    const wire = encode(_frame, _body);
    if (wire.length * 3 > this._limit && sizeOf(wire) > this._limit) {
      // Sent, it would end the connection for good (1009).
      const text = `the server takes at most ${this._limit} bytes, and this has ${sizeOf(wire)}`;
      this._forget(entry, false);
      entry._reject(new BackchannelError("too_large", text));
      return;
    }
    if (_frame.id) {
      _session._pending.set(_frame.id, entry);
      if (isKept(entry)) this._note(_frame.id, entry);
    } else _resolve(_frame);
    this._socket!.send(wire);
  }

  private _forget(entry: Entry, cancel: boolean): void {
    const { id } = entry._frame;
    if (!this._queue._remove(entry) && id && this._session._pending.delete(id)) {
      this._note(id);
      if (cancel) this._reply({ type: "cancel", id });
    }
  }

  private _subscribe(channel: string): void {
    const since = this._session._positions.get(channel);
    this._transmit({
      _frame: { type: "subscribe", id: 0, channel, since },
      _resolve: () => {},
      _reject: (error) => {
        if (!this._session._wanted.has(channel)) return;
        if (/^(unavailable|too_many)$/.test(error.code)) {
          const socket = this._socket;
          setTimeout(
            () => socket === this._socket && this._session._wanted.has(channel) &&
              this._subscribe(channel),
            1000 + Math.random() * 4000,
          );
          return;
        }
        this._out(channel, { text: error.message, error });
      },
    });
  }

  private _out(channel: string, more: object): void {
    this._drop(channel);
    this._emit({ type: "unsubscribed", channel, ...more });
  }

  private _drop(channel: string): void {
    const { _wanted, _positions, _inside } = this._session;
    for (const each of [_wanted, _positions, _inside, this._left]) each.delete(channel);
  }

  // ── what the server says ──────────────────────────────────────────────────────────────────

  private _receive(message: string | ArrayBuffer): void {
    this._heardAt = Date.now();
    this._stop("doubt");
    let frame: Frame;
    try {
      frame = decode(message);
    } catch {
      return this._emit({ type: "error", code: "invalid", text: "that was no frame" });
    }
    const { type, id, channel, position } = frame;
    const { _positions, _inside, _pending } = this._session;
    if (!id && this._left.has(channel)) return;
    if (type === "hello") return this._hello(frame);
    if (type === "going_away") this._notBefore = this._heardAt + frame.after * 1000;
    if (type === "subscribed") _inside.add(channel);
    if (type === "renewed") this._renewIn(frame.expires_in);
    if (position && channel) _positions.set(channel, position);
    else if (type === "lost") _positions.delete(channel);
    if (id && ANSWERS.test(type)) {
      const entry = _pending.get(id);
      if (entry) {
        this._forget(entry, false);
        if (type === "error") entry._reject(errorOf(frame));
        else entry._resolve(frame);
      }
      if (this._left.get(channel)?.id === id) this._drop(channel);
      if (type !== "subscribed" || !entry || !this._session._wanted.has(channel)) return;
    } else if (type === "unsubscribed") return this._out(channel, frame);
    this._emit(frame);
    if (type === "subscribed" && this._unsure.delete(channel)) this._emit({ type: "lost", channel });
  }

  private _hello(hello: Frame): void {
    const { _session } = this;
    const { _wanted, _inside, _positions, _pending } = _session;
    const { resumed, connection, user } = hello;
    const channels: string[] = hello.channels;
    this._stop("hello");
    this._openedAt = Date.now();
    this._ping = (hello.ping || Infinity) * 1000;
    this._limit = hello.max_message || Infinity;
    _session._resume = hello.resume;
    this._state = { state: "open", connection, user, resumed };
    const before = [..._inside];
    const sent = [..._pending.values()];
    _inside.clear();
    _pending.clear();
    for (const entry of sent) this._again(entry, resumed);
    for (const channel of [...this._left.keys()]) {
      if (channels.includes(channel)) this._leave(channel);
      else this._drop(channel);
    }
    for (const channel of _wanted) if (!channels.includes(channel)) this._subscribe(channel);
    for (const entry of this._queue._takeAll()) this._transmit(entry);
    // The server keeps the old token until it hears that the new one has come.
    this._doubt();
    // Where the server goes on from a position, it says itself what is lost. For the others that
    // is said once the client is in: a state that is loaded then is none too old.
    this._unsure = new Set(before.filter((name) => !resumed && !_positions.has(name)));
    this._set(this._state);
    for (const channel of before) {
      if (!channels.includes(channel) && !_wanted.has(channel)) this._out(channel, {});
    }
    this._beat();
    this._renewIn(hello.expires_in ?? this._expiresIn);
  }

  /** What was sent in an earlier connection and not answered. */
  private _again(entry: Entry, resumed: boolean): void {
    const { _frame } = entry;
    if (resumed) _frame.again = true;
    else {
      this._note(_frame.id!);
      delete _frame.again;
      _frame.id = 0;
    }
    if (resumed || entry._retry) this._transmit(entry);
    else {
      const text = "a new session began: whether this was done is unknown";
      entry._reject(new BackchannelError("unsure", text));
    }
  }

  // ── the socket ────────────────────────────────────────────────────────────────────────────

  private async _attempt(): Promise<void> {
    const mine = (this._attempted = {});
    const { token, ticket, WebSocket: Socket = WebSocket } = this._options;
    this._set({ state: "connecting" });
    this._start("hello", this._patience * 2, () => this._cut(1006, "the server does not answer"));
    try {
      const [offered, admission] = await Promise.all([token?.(), ticket?.()]);
      if (mine !== this._attempted) return;
      const url = new URL(this._url);
      if (admission) url.searchParams.set("ticket", admission);
      const socket = new Socket(url.href, [V1, ...this._credentials(offered)]);
      this._socket = socket;
      socket.binaryType = "arraybuffer";
      socket.onopen = () => this._greet(socket);
      socket.onmessage = ({ data }) => this._receive(data);
      socket.onclose = ({ code, reason }) => this._cut(code, reason);
      // Browsers tell of the close too, with this code; Node 20 does not.
      socket.onerror = () => this._cut(1006, "");
    } catch (error) {
      if (mine === this._attempted) this._cut(1006, `${error}`);
    }
  }

  private _credentials(offered: Awaited<ReturnType<NonNullable<Options["token"]>>> | undefined) {
    const { token, expires_in } =
      typeof offered === "object" ? (offered ?? {}) : { token: offered };
    this._expiresIn = expires_in;
    return token ? ["backchannel.jwt", token] : [];
  }

  private _greet(socket: WebSocket): void {
    if (socket.protocol !== V1) {
      this._cut(1006, `the server does not speak ${V1}`);
      return;
    }
    const { _resume: resume, _positions } = this._session;
    const positions = Object.fromEntries(_positions);
    // Counted with all else: one that arrives too late must not be taken for the last.
    const id = resume ? ++this._session._lastId : undefined;
    socket.send(JSON.stringify({ type: "hello", id, resume, positions }));
  }

  /** The socket is of no use any more: come back, unless the code says not to. */
  private _cut(code: number, text: string): void {
    this._detach();
    const now = Date.now();
    if (this._openedAt && now - this._openedAt >= 10_000) this._failed = 0;
    this._openedAt = 0;
    const { _pending } = this._session;
    for (const [id, entry] of _pending) {
      if (isKept(entry)) continue;
      _pending.delete(id);
      const { type } = entry._frame;
      if (type === "presence") {
        entry._frame.id = 0;
        this._queue._add(entry);
      } else if (type !== "subscribe") {
        const lost = "the connection was lost before the answer";
        entry._reject(new BackchannelError("disconnected", lost));
      }
    }
    if (isFinal(code)) {
      this._end(code, text, "server");
      return;
    }
    if (code === 1013) this._failed++;
    const jitter = Math.random() * Math.min(20_000, 500 * 2 ** this._failed++);
    const wait = this._notBefore > now ? this._notBefore - now : jitter;
    this._start("retry", wait, () => this._attempt());
    this._set({ state: "waiting", seconds: wait / 1000, attempt: this._failed, code, text });
  }

  _end(code: number, text: string, by: "client" | "server"): void {
    if (this._state.state === "closed") return;
    this._detach();
    this._listen("removeEventListener");
    this._state = { state: "closed", code, text, by };
    const { _pending } = this._session;
    const all = [..._pending.values(), ...this._queue._takeAll()];
    _pending.clear();
    for (const entry of all) entry._reject(this._closedError());
    this._set(this._state);
  }

  private _closedError(): BackchannelError {
    const { code, text } = this._state as Extract<StateChange, { state: "closed" }>;
    return new BackchannelError("closed", `the connection is closed: ${code} ${text}`);
  }

  private _detach(): void {
    const socket = this._socket;
    this._attempted = this._socket = undefined;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
      socket.close();
    }
    for (const name in this._timers) this._stop(name as Timer);
  }

  private _set(state: StateChange): void {
    this._state = state;
    this._emit({ type: "state", ...state });
  }

  // ── time ──────────────────────────────────────────────────────────────────────────────────

  private _start(name: Timer, ms: number, then: () => void): void {
    this._stop(name);
    this._timers[name] = later(ms, () => {
      this._stop(name);
      then();
    });
  }

  private _stop(name: Timer): void {
    clearTimeout(this._timers[name]);
    delete this._timers[name];
  }

  /** Doubts a connection on which nothing was heard for so long; timers may have stood still. */
  private _beat(): void {
    const left = this._heardAt + this._ping - Date.now();
    if (left <= 0) this._doubt();
    this._start("beat", left > 0 ? left : this._ping, () => this._beat());
  }

  private _doubt(patience = this._patience): void {
    if (this._timers.doubt) return;
    this._reply({ type: "ping" });
    this._start("doubt", patience, () => this._cut(1006, "a ping was not answered"));
  }

  /** The network, or the page, is back, or goes. */
  _wake = (event?: { type: string }): void => {
    if (globalThis.document?.hidden && event?.type === "visibilitychange") return;
    // Someone is looking, or the network is another one: a quarter of the patience has to do.
    if (this._isOpen()) this._doubt(this._patience / 4);
    else if (
      this._state.state === "waiting" &&
      event?.type !== "offline" &&
      Date.now() >= this._notBefore
    ) {
      this._stop("retry");
      this._attempt();
    }
  };

  private _listen(how: "addEventListener" | "removeEventListener"): void {
    // The last one bubbles up from the document.
    for (const name of ["online", "offline", "pageshow", "visibilitychange"]) {
      globalThis[how]?.(name, this._wake);
    }
  }

  private _renewIn(seconds: number | null | undefined): void {
    const { token } = this._options;
    this._stop("renew");
    if (!seconds || !token) return;
    const renew = async (): Promise<void> => {
      try {
        const offered = await token();
        const [, value] = this._credentials(offered);
        if (value && this._isOpen()) await this._ask({ type: "renew", id: 0, token: value });
      } catch (error) {
        // 4007 follows, and with it another attempt.
        this._emit({ type: "error", code: "renewal", text: `${error}` });
      }
    };
    this._start("renew", Math.max(seconds / 2, seconds - 60) * 1000, renew);
  }
}

export function errorOf({ code, text, field }: Frame): BackchannelError {
  return new BackchannelError(code, text, field);
}
