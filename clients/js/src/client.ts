import { Channel, check, Emitter, publish } from "./channel.js";
import { type Connection, Engine, errorOf } from "./engine.js";
import { BackchannelError } from "./errors.js";
import { type Frame, named, toBody } from "./frames.js";
import type { Client, Connect, Options, StateChange } from "./types.js";

type Handler = (data: any, more: { signal: AbortSignal }) => unknown;

/** What an application has in its hands, in front of whatever connection it uses. */
export class Front extends Emitter implements Client<any> {
  last: StateChange = { state: "connecting" };
  _connection: Connection;
  _answers = new Map<string, Handler>();
  private _channels = new Map<string, Channel>();
  private _answering = new Map<number, AbortController>();

  /**
   * @param connect makes the connection, which gives its frames to the function.
   * @param _changed is told when what `answer` can answer has changed.
   */
  constructor(
    options: Options,
    connect: (emit: (frame: Frame) => void) => Connection,
    private _changed: () => void = () => {},
  ) {
    super("state connecting open waiting closed message publication lost dropped error");
    const known = "token ticket queue patience onLost WebSocket";
    for (const name in options) check(name, known);
    this._connection = connect((frame) => this._take(frame));
    if (options.onLost) this.on("lost", options.onLost);
  }

  get state() {
    return this.last.state;
  }

  send(data: unknown): void {
    this._connection._tell({ type: "message" }, toBody(data), (error) =>
      this._call("dropped", { data, error }),
    );
  }

  async deliver(data: unknown, { retry }: { retry?: boolean } = {}): Promise<void> {
    await this._connection._ask({ type: "message", id: 0 }, toBody(data), retry);
  }

  publish(channel: string, data: unknown, { retry }: { retry?: boolean } = {}) {
    return publish(this._connection, channel, data, retry);
  }

  async call(
    event: string,
    data?: unknown,
    { timeout = 30, signal }: { timeout?: number; signal?: AbortSignal } = {},
  ): Promise<any> {
    const frame = { type: "call", id: 0, event: named(event), timeout };
    return (await this._connection._ask(frame, toBody(data), false, signal)).data;
  }

  answer(event: string, handler: Handler): () => void {
    this._answers.set(event, handler);
    this._changed();
    return () => {
      if (this._answers.get(event) === handler) this._answers.delete(event);
      this._changed();
    };
  }

  channel(name: string): Channel {
    let channel = this._channels.get(name);
    if (!channel) {
      channel = new Channel(named(name), this._connection);
      this._channels.set(name, channel);
      this._shut(channel);
    }
    return channel;
  }

  subscribe(name: string, { since }: { since?: string } = {}): Channel {
    const channel = this.channel(name);
    if (this.state !== "closed") {
      channel._renew();
      this._connection._enter(name, since);
    }
    return channel;
  }

  close(code = 1000, text = ""): void {
    this._connection._close(code, text);
  }

  /** Takes what the connection brings. */
  _take(frame: Frame): void {
    const { type, channel, ...rest } = frame;
    if (type === "state") this._become(rest as StateChange);
    else if (type === "call") this._answer(frame);
    else if (type === "cancel") this._answering.get(frame.id!)?.abort();
    else if (type === "error") this._call("error", errorOf(frame));
    else if (type === "message") this._call("message", frame.data);
    else {
      if (channel != null) this.channel(channel)._take(frame);
      if (/^(publication|lost)$/.test(type)) this._call(type, { channel, ...rest });
    }
  }

  private _shut(channel: Channel): void {
    if (this.state === "closed") channel._end(new BackchannelError("closed", "the connection is closed"));
  }

  private _become(change: StateChange): void {
    this.last = change;
    for (const channel of this._channels.values()) {
      channel.isIn = false;
      this._shut(channel);
    }
    // Calls end with their connection, and another one begins with none.
    for (const each of this._answering.values()) each.abort();
    this._answering.clear();
    this._call(change.state, change);
    this._call("state", change);
  }

  private async _answer({ id, event, data }: Frame): Promise<void> {
    const handler = this._answers.get(event);
    const controller = new AbortController();
    const { signal } = controller;
    this._answering.set(id!, controller);
    let answer: Frame;
    let body;
    try {
      if (!handler) throw new BackchannelError("unknown_type", `nothing answers ${event} here`);
      body = toBody(await handler(data, { signal }));
      answer = { type: "reply", id: id! };
    } catch (error) {
      const { code = "failed", message = `${error}` } = error as Partial<BackchannelError>;
      // What quotes the middle of a text may have cut a character in two.
      const text = `${message}`.replace(/\p{Cs}/gu, "\ufffd");
      answer = { type: "error", id: id!, code: `${code}`, text };
    }
    // Nobody waits any more, or the connection was lost: ids are worth nothing in another one.
    if (signal.aborted) return;
    this._answering.delete(id!);
    this._connection._reply(answer, body);
  }
}

export function locate(url: string | URL): URL {
  const text: unknown = (url as URL | undefined)?.href ?? url;
  if (text && typeof text === "string") {
    const found = new URL(text, globalThis.location?.href);
    found.protocol = found.protocol.replace(/^http/, "ws");
    found.hash = "";
    if (/^wss?:$/.test(found.protocol)) return found;
  }
  throw new TypeError(`${url} is no address of a WebSocket: ws:, wss: or relative to the page`);
}

export const connect = ((url: string | URL, options: Options = {}) => {
  const located = locate(url);
  return new Front(options, (emit) => new Engine(located, options, emit));
}) as Connect;
