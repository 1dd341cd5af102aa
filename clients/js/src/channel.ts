import type { Connection } from "./engine.js";
import { BackchannelError } from "./errors.js";
import { type Frame, named, toBody } from "./frames.js";
import type { Present, Publication, Subscription } from "./types.js";

const MOST = 10_000;

type Handlers = Record<string, Set<(event: any) => void> | undefined>;

/** @throws TypeError where a word is none of those that there are: it would do nothing. */
export const check = (word: string, all: string): void => {
  if (!all.split(" ").includes(word)) throw new TypeError(`"${word}" is none of: ${all}`);
};

/** Calls functions, by what happened. */
export class Emitter {
  private _handlers: Handlers = {};

  /** @param _events all that may happen, with spaces between them. */
  constructor(private _events: string) {}

  on(event: string, handler: (event: any) => void): () => void {
    check(event, this._events);
    const handlers = (this._handlers[event] ??= new Set());
    handlers.add(handler);
    return () => void handlers.delete(handler);
  }

  _call(event: string, value: unknown): void {
    for (const handler of new Set(this._handlers[event])) {
      try {
        handler(value);
      } catch (error) {
        // The application's own mistake: shown as one, and nothing else stops for it.
        setTimeout(() => {
          throw error;
        });
      }
    }
  }
}

/** Publishes; resolves with the position, if any. */
export async function publish(
  connection: Connection,
  channel: string,
  data: unknown,
  retry?: boolean,
): Promise<string | undefined> {
  const asked = connection._ask({ type: "publish", id: 0, channel: named(channel) }, toBody(data), retry);
  return (await asked).position;
}

/** Nothing comes any more; and why, where that is an error. */
interface End {
  _error?: Error | undefined;
}

/** What waits for one `for await`. */
interface Reader {
  _waiting: Publication[];
  _wake: () => void;
  _end: End | undefined;
}

export class Channel extends Emitter implements Subscription {
  isIn = false;
  ready!: Promise<void>;
  /** Where the client is out of it. */
  private _out: End | undefined = {};
  private _readers = new Set<Reader>();
  private _entered!: () => void;
  private _refused!: (error: Error) => void;

  constructor(
    readonly channel: string,
    private _connection: Connection,
  ) {
    super("publication lost snapshot join leave subscribed unsubscribed");
    this._renew();
  }

  /** It is entered, maybe again: then `ready` is another promise. */
  _renew(): void {
    if (!this._out) return;
    this._out = undefined;
    this.ready = new Promise((resolve, reject) => {
      this._entered = resolve;
      this._refused = reject;
    });
    // Who does not look at `ready` hears of it otherwise.
    this.ready.catch(() => {});
  }

  publish(data: unknown, { retry }: { retry?: boolean } = {}): Promise<string | undefined> {
    return publish(this._connection, this.channel, data, retry);
  }

  async presence(): Promise<Present[]> {
    const frame = { type: "presence", id: 0, channel: this.channel };
    return (await this._connection._ask(frame)).users;
  }

  async unsubscribe(): Promise<void> {
    const left = this._connection._leave(this.channel);
    this._take({ type: "unsubscribed", channel: this.channel });
    await left;
  }

  /** Takes a frame of this channel. */
  _take({ type, error, ...event }: Frame): void {
    if (type === "subscribed") {
      this._renew();
      this.isIn = true;
      this._entered();
    } else if (type === "unsubscribed") {
      if (this._out) return;
      this._end(error ?? new BackchannelError("refused", event.text ?? "left"), error);
    } else if (type === "publication") {
      for (const reader of this._readers) {
        if (reader._waiting.push(event as Publication) > MOST) {
          const text = `more than ${MOST} publications wait`;
          this._finish(reader, { _error: new BackchannelError("too_slow", text) });
        }
        reader._wake();
      }
    }
    this._call(type, event);
  }

  /** Nothing comes any more. */
  _end(reason: Error, error?: Error): void {
    this.isIn = false;
    this._out = { _error: error };
    this._refused(reason);
    for (const reader of this._readers) this._finish(reader, this._out);
  }

  private _finish(reader: Reader, end: End): void {
    this._readers.delete(reader);
    reader._end = end;
    reader._wake();
  }

  [Symbol.asyncIterator](): AsyncIterator<Publication, undefined> {
    // From now on, not from the first `next()`.
    const reader: Reader = { _waiting: [], _wake: () => {}, _end: this._out };
    if (!this._out) this._readers.add(reader);
    const next = async (): Promise<IteratorResult<Publication, undefined>> => {
      while (!reader._waiting.length) {
        if (reader._end?._error) throw reader._end._error;
        if (reader._end) return { done: true, value: undefined };
        await new Promise<void>((resolve) => (reader._wake = resolve));
      }
      return { done: false, value: reader._waiting.shift()! };
    };
    return {
      next,
      return: async () => {
        this._finish(reader, {});
        reader._waiting = [];
        return { done: true, value: undefined };
      },
    };
  }
}
