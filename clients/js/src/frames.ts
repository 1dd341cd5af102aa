/** One frame of the protocol. */
export interface Frame {
  type: string;
  id?: number;
  [field: string]: any;
}

/** A frame's data, made when the application said it: JSON text, or bytes. */
export type Body = string | Uint8Array<ArrayBuffer> | undefined;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

// JSON.stringify writes lone surrogates as escapes, and nothing else that begins so.
const LONE = /[^\\](\\\\)*\\ud/;

/** @throws TypeError where it can't be JSON in UTF-8: what can't be read is never answered. */
export function toBody(data: unknown): Body {
  if (data instanceof ArrayBuffer) data = new Uint8Array(data);
  if (ArrayBuffer.isView(data)) {
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
  }
  const text = JSON.stringify(data) ?? "null";
  const at = text.search(LONE);
  if (at < 0) return text;
  const where = text.slice(0, at + 7).slice(-40);
  throw new TypeError(`lone surrogate: ${where}`);
}

/** Takes the name of a channel or an event; throws as above, and where it is no text. */
export const named = (name: string): string => {
  if (toBody(name) && typeof name === "string") return name;
  throw new TypeError(`${name} is no name`);
};

export const sizeOf = (wire: string | Uint8Array): number =>
  // Only text that may be over a limit is worth encoding, and that is rare.
  typeof wire === "string" ? encoder.encode(wire).length : wire.length;

export function encode(frame: Frame, body: Body): string | Uint8Array<ArrayBuffer> {
  const head = JSON.stringify(frame);
  if (body === undefined) return head;
  if (typeof body === "string") return `${head.slice(0, -1)},"data":${body}}`;
  const start = encoder.encode(`${head}\n`);
  const all = new Uint8Array(start.length + body.length);
  all.set(start);
  all.set(body, start.length);
  return all;
}

/** @throws SyntaxError where it is no frame. */
export function decode(message: string | ArrayBuffer): Frame {
  if (typeof message === "string") return JSON.parse(message);
  const bytes = new Uint8Array(message);
  const end = bytes.indexOf(10);
  const frame = JSON.parse(decoder.decode(bytes.subarray(0, end)));
  frame.data = bytes.subarray(end + 1);
  return frame;
}
