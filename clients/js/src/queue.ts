import { type Entry, later } from "./entry.js";
import { BackchannelError } from "./errors.js";
import { encode, sizeOf } from "./frames.js";
import type { Options } from "./types.js";

/** What waits while there is no connection: bounded in messages, bytes and seconds. */
export class Queue {
  _entries = new Set<Entry>();
  private _bytes = 0;
  private _options: NonNullable<Options["queue"]>;

  constructor(options: Options["queue"] = {}) {
    this._options = options;
  }

  _add(entry: Entry): void {
    const { messages = 1000, bytes = 1 << 20, seconds = 60 } = this._options;
    entry._size = sizeOf(encode(entry._frame, entry._body));
    if (this._entries.size >= messages || this._bytes + entry._size > bytes) {
      entry._reject(new BackchannelError("full", "too much waits already"));
      return;
    }
    this._entries.add(entry);
    this._bytes += entry._size;
    // A call has a time of its own.
    entry._timer ??= later(seconds * 1000, () => {
      this._remove(entry);
      entry._reject(new BackchannelError("expired", `no connection for ${seconds} seconds`));
    });
  }

  /** Takes one out; returns whether it was there. */
  _remove(entry: Entry): boolean {
    if (!this._entries.delete(entry)) return false;
    this._bytes -= entry._size!;
    return true;
  }

  /** Takes all out, in their order. */
  _takeAll(): Entry[] {
    const all = [...this._entries];
    for (const entry of all) {
      this._remove(entry);
      if (entry._frame.type !== "call") {
        clearTimeout(entry._timer);
        delete entry._timer;
      }
    }
    return all;
  }
}
