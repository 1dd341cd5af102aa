import type { BackchannelError } from "./errors.js";

/** What an application says about its messages: `connect<{ messages: Shown; events: {…} }>(url)`. */
export interface Messages {
  /** What the server sends to this client by itself: `on("message", …)`. */
  messages?: unknown;
  /** What this client sends to the listener: `send`, `deliver`. */
  sends?: unknown;
  /** The listener's events that `call` calls: `{ add: (data: { a: number }) => number }`. */
  events?: object;
  /** What the server may ask this client: `{ confirm: (data: string) => boolean }`. */
  asks?: object;
  /** What is published, by channel: `{ news: News; [room: \`chat:${string}\`]: Said }`. */
  channels?: object;
}

type Part<M, K extends keyof Messages, Else> = M extends { [key in K]: infer T } ? T : Else;
type AnyCalls = Record<string, (data: any) => any>;
type AnyChannels = Record<string, any>;
type Names<T> = keyof T & string;
type Data<F> = F extends (data: infer D, ...rest: any[]) => unknown ? D : unknown;
type Answer<F> = F extends (...all: any[]) => infer R ? Awaited<R> : unknown;

/** JSON, or bytes: those come and go as binary frames, and arrive as Uint8Array. */
export type Bytes = ArrayBuffer | ArrayBufferView;

/** Returns what is offered to the server; it is asked anew for each attempt. */
export type Provider<T> = () => T | Promise<T>;

export interface Options {
  /**
   * A JSON Web Token; with `expires_in`, in seconds, it is renewed on the open connection in time.
   * null connects without one. What it throws counts as a failed attempt.
   */
  token?: Provider<string | { token: string; expires_in?: number } | null>;
  /** A one-time ticket, which goes into the URL. */
  ticket?: Provider<string | null>;
  /** What may wait while there is no connection. */
  queue?: {
    /** So many messages at most; 1,000 unless said. */
    messages?: number;
    /** So many bytes of them at most; 1 MiB unless said. */
    bytes?: number;
    /** Seconds that each may wait; 60 unless said, 24 days at most. */
    seconds?: number;
  };
  /** Seconds that a ping's answer may take, and twice as many for a handshake; 10 unless said. */
  patience?: number;
  /** The same as `on("lost", …)`. */
  onLost?: (lost: Lost) => void;
  /** For runtimes that have no global WebSocket. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocket;
}

export type State = "connecting" | "open" | "waiting" | "closed";

/** What `state` handlers get; `connecting`, `open`, `waiting` and `closed` handlers get theirs. */
export type StateChange =
  | { state: "connecting" }
  | {
      state: "open";
      /** The id of this connection, as other clients may know it. */
      connection: string;
      user: string | null;
      /** The session went on: nothing was missed but what `lost` tells of. */
      resumed: boolean;
    }
  | {
      state: "waiting";
      /** Until the next attempt. The network, or the page, coming back makes it sooner. */
      seconds: number;
      /** How many attempts failed in a row. */
      attempt: number;
      code: number;
      text: string;
    }
  | {
      state: "closed";
      code: number;
      text: string;
      /** The client's `close()`, or a close code of the server that says not to come back. */
      by: "client" | "server";
    };

type Change<S extends State> = Extract<StateChange, { state: S }>;

export interface Publication<D = any> {
  channel: string;
  data: D;
  /** Where the channel has history. */
  position?: string;
}

/** Publications of a channel may be missing here: load its state anew. */
export interface Lost {
  /** None: messages may be missing that were for this client, its user, its session or everyone. */
  channel?: string;
  position?: string;
}

export interface Snapshot<D = any> {
  channel: string;
  data: D;
  position?: string;
}

export interface Member {
  channel: string;
  user: string;
}

export interface Present {
  user: string;
  devices: { connection: string; meta: unknown }[];
}

export interface ClientEvents<M> {
  state: StateChange;
  connecting: Change<"connecting">;
  open: Change<"open">;
  waiting: Change<"waiting">;
  closed: Change<"closed">;
  message: Part<M, "messages", any>;
  /** Of any channel. */
  publication: Publication;
  lost: Lost;
  /** What was sent with `send` and could not go: the queue was full, it waited too long … */
  dropped: { data: unknown; error: BackchannelError };
  /** What belongs to no promise: an invalid message, a token that could not be renewed. */
  error: BackchannelError;
}

export interface SubscriptionEvents<D> {
  publication: Publication<D>;
  lost: Lost;
  snapshot: Snapshot;
  join: Member;
  leave: Member;
  /** It is in the channel, and has had what it missed. After each reconnect again. */
  subscribed: { channel: string; position?: string };
  /** It is out: refused, put out, or by its own `unsubscribe`. */
  unsubscribed: { channel: string; text?: string };
}

/**
 * A channel. `for await` goes over its publications from then on, until the client is out of the
 * channel, or closed: then it ends, also where that was before. Where it was refused, or more than
 * 10,000 wait to be taken, it throws.
 */
export interface Subscription<D = any> extends AsyncIterable<Publication<D>> {
  readonly channel: string;
  /** The server has said that this client is in it; false also while there is no connection. */
  readonly isIn: boolean;
  /**
   * Resolves when it is in for the first time; rejects where it was refused or left (`refused`), or
   * the client closed (`closed`). After `subscribe` entered it again it is another promise.
   */
  readonly ready: Promise<void>;
  /** Calls a function each time; returns one that ends this. */
  on<E extends keyof SubscriptionEvents<D>>(
    event: E,
    handler: (event: SubscriptionEvents<D>[E]) => void,
  ): () => void;
  /** Publishes to it: see `Client.publish`. */
  publish(data: D | Bytes, options?: { retry?: boolean }): Promise<string | undefined>;
  /** Who is in it, where a rule keeps presence. */
  presence(): Promise<Present[]>;
  /**
   * Leaves it, for everyone who uses this channel in this client: from then on nothing of it is
   * told. Resolves when the server has said so; without a connection, or when that ends, at once.
   */
  unsubscribe(): Promise<void>;
}

export interface Client<M = Messages> {
  readonly state: State;
  /** The last state change, with its details. */
  readonly last: StateChange;
  /** Calls a function each time; returns one that ends this. */
  on<E extends keyof ClientEvents<M>>(
    event: E,
    handler: (event: ClientEvents<M>[E]) => void,
  ): () => void;
  /**
   * Sends a message to the listener, or when there is a connection again; `dropped` tells of what
   * could not go. At most once: what was under way when the connection broke may be lost.
   *
   * @throws TypeError where it can't be JSON, or has a lone surrogate, half of a character. Promises
   *   of other methods reject with it.
   */
  send(data: Part<M, "sends", unknown> | Bytes): void;
  /**
   * The same, and resolves when the listener is done with it. It is done once, also where the
   * connection breaks in between. Where that can't be known it rejects with the code `unsure`, or
   * sends it as new with `retry`, for what does no harm twice.
   */
  deliver(data: Part<M, "sends", unknown> | Bytes, options?: { retry?: boolean }): Promise<void>;
  /** Publishes to a channel, with the promises of `deliver`; returns its position, if any. */
  publish<C extends Names<Part<M, "channels", AnyChannels>>>(
    channel: C,
    data: Part<M, "channels", AnyChannels>[C] | Bytes,
    options?: { retry?: boolean },
  ): Promise<string | undefined>;
  /**
   * Calls an event of the listener and returns what that returned. It is not sent again when the
   * connection breaks: then it rejects with the code `disconnected`.
   *
   * @param options `timeout` in seconds (30 unless said; as long as a timer can be, 24 days, at
   *   most); an AbortSignal cancels it.
   */
  call<E extends Names<Part<M, "events", AnyCalls>>>(
    event: E,
    data?: Data<Part<M, "events", AnyCalls>[E]> | Bytes,
    options?: { timeout?: number; signal?: AbortSignal },
  ): Promise<Answer<Part<M, "events", AnyCalls>[E]>>;
  /**
   * Answers the server's calls of an event: with what the handler returns, or an error where it
   * throws. Its signal aborts when nobody waits any more. Returns a function that ends this.
   */
  answer<E extends Names<Part<M, "asks", AnyCalls>>>(
    event: E,
    handler: (
      data: Data<Part<M, "asks", AnyCalls>[E]>,
      more: { signal: AbortSignal },
    ) => Answer<Part<M, "asks", AnyCalls>[E]> | Promise<Answer<Part<M, "asks", AnyCalls>[E]>>,
  ): () => void;
  /**
   * Enters a channel, and again after each reconnect; the same object for the same channel.
   *
   * @param options `since`, a position, brings what was published after it first; it counts for
   *   nothing where the channel was asked for already, or the client is in it.
   */
  subscribe<C extends Names<Part<M, "channels", AnyChannels>>>(
    channel: C,
    options?: { since?: string },
  ): Subscription<Part<M, "channels", AnyChannels>[C]>;
  /** The same object without asking to enter: for channels that the URL or the server puts it in. */
  channel<C extends Names<Part<M, "channels", AnyChannels>>>(
    channel: C,
  ): Subscription<Part<M, "channels", AnyChannels>[C]>;
  /** Leaves for good: the session ends. What still waits is rejected. */
  close(code?: number, text?: string): void;
}

/**
 * Connects, and comes back until `close()` or a close code that says not to.
 *
 * @param url `ws:`, `wss:`, `http:`, `https:`, or relative to the page: `/ws/chat/cars`.
 * @throws TypeError where it is no such URL.
 */
export type Connect = <M = Messages>(url: string | URL, options?: Options) => Client<M>;
