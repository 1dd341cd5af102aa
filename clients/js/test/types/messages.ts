/** What the types admit, and what they don't: checked, never run. */
import { type Client, connect } from "backchannel";
import { connect as share } from "backchannel/tabs";

interface Said {
  text: string;
}
interface Mine {
  messages: { kind: "note"; text: string };
  sends: { type: "say"; text: string };
  events: { add: (data: { a: number; b: number }) => number; when: () => Promise<string> };
  asks: { confirm: (data: string) => boolean };
  channels: { news: { headline: string }; [room: `chat:${string}`]: Said };
}

const client = connect<Mine>("/ws");
const shared: Client<Mine> = share<Mine>("/ws", { name: "mine" });
shared.close();

client.send({ type: "say", text: "hi" });
client.send(new Uint8Array([1]));
// @ts-expect-error - no such field
client.send({ type: "say", txt: "hi" });
// @ts-expect-error - not what the listener takes
void client.deliver("hi");

export const sum: Promise<number> = client.call("add", { a: 1, b: 2 });
export const when: Promise<string> = client.call("when");
// @ts-expect-error - a field is missing
void client.call("add", { a: 1 });
// @ts-expect-error - no such event
void client.call("subtract", { a: 1, b: 2 });
// @ts-expect-error - it is a number
export const wrong: Promise<string> = client.call("add", { a: 1, b: 2 });

client.answer("confirm", (text, { signal }) => text.length > 1 && !signal.aborted);
client.answer("confirm", async () => true);
// @ts-expect-error - it is asked for a boolean
client.answer("confirm", () => "yes");
// @ts-expect-error - nobody asks that
client.answer("deny", () => true);

client.on("message", ({ kind, text }) => [kind, text]);
// @ts-expect-error - no such event
client.on("open!", () => {});
client.on("waiting", ({ seconds }) => seconds.toFixed());
// @ts-expect-error - that is closed's
client.on("waiting", ({ by }) => by);

client.subscribe("chat:7").on("publication", ({ data }) => data.text.length);
// @ts-expect-error - that is of another channel
client.subscribe("chat:7").on("publication", ({ data }) => data.headline);
// @ts-expect-error - no such channel
client.subscribe("cars");
void client.publish("news", { headline: "…" });
// @ts-expect-error - not what is said there
void client.publish("news", { text: "…" });
export async function read(): Promise<void> {
  for await (const { data, position } of client.subscribe("news")) {
    const headline: string = data.headline;
    const place: string | undefined = position;
    console.log(headline, place);
  }
}

// Untyped, everything goes.
const plain = connect("/ws", { token: async () => ({ token: "t", expires_in: 60 }), onLost: ({ channel }) => channel });
plain.send([1, "2"]);
plain.on("message", (data) => data.any.thing);
export const any: Promise<unknown> = plain.call("anything", 1, { timeout: 3 });
plain.subscribe("anywhere").on("publication", ({ data }) => data.any);
// @ts-expect-error - no such option
connect("/ws", { retries: 3 });
