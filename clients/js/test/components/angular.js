/** Parts of a page that are shown and hidden: `show({ left: "chat:lobby", right: "" })`. */
import { Injector, runInInjectionContext } from "@angular/core";
import { Live } from "docs/angular";

const live = runInInjectionContext(Injector.create({ providers: [] }), () => new Live());
const parts = new Map();
window.client = live.client;
window.items = (name) => parts.get(name).items();
window.show = (wanted) => {
  for (const [name, channel] of Object.entries(wanted)) {
    const part = parts.get(name);
    if (part?.channel === channel) continue;
    part?.injector.destroy();
    parts.delete(name);
    if (!channel) continue;
    // What a component has: an injector that ends with it.
    const injector = Injector.create({ providers: [] });
    const items = runInInjectionContext(injector, () => live.channel(channel));
    parts.set(name, { channel, injector, items });
  }
};
