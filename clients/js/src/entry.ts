import type { BackchannelError } from "./errors.js";
import type { Body, Frame } from "./frames.js";

/** What the application asked for and has not been settled. */
export interface Entry {
  _frame: Frame;
  _body?: Body;
  /** Send it as new where the outcome is unknown. */
  _retry?: boolean | undefined;
  _resolve: (answer: Frame) => void;
  _reject: (error: BackchannelError) => void;
  /** Bytes that it takes in the queue. */
  _size?: number;
  /** Ends its waiting in the queue, or for the answer to a call. */
  _timer?: ReturnType<typeof setTimeout>;
}

/** Acknowledged, so that they are sent again when a session goes on. */
export const isKept = (entry: Entry): boolean => /^(message|publish)$/.test(entry._frame.type);

/** Everything with which another client can go on with a session. Kept in memory, and secret. */
export interface Session {
  _resume: string | null;
  _lastId: number;
  _positions: Map<string, string>;
  /** Channels that the application wants to be in. */
  _wanted: Set<string>;
  /** Channels that the server said the client is in. */
  _inside: Set<string>;
  /** Sent and not answered, by id, in the order of their ids. */
  _pending: Map<number, Entry>;
}

/** A timer; what is longer than one can be is as long as one can be, 24 days. */
export const later = (ms: number, then: () => void): ReturnType<typeof setTimeout> =>
  setTimeout(then, Math.min(ms, 2 ** 31 - 1));

export const newSession = (): Session => ({
  _resume: null,
  _lastId: 0,
  _positions: new Map(),
  _wanted: new Set(),
  _inside: new Set(),
  _pending: new Map(),
});
