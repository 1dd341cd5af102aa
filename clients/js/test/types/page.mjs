/** Lays out the TypeScript of docs/browser.md, so that it is checked with these types. */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";

const page = readFileSync(new URL("../../../../docs/browser.md", import.meta.url), "utf8");
const folder = new URL("../../build/docs/", import.meta.url);
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
const blocks = [...page.matchAll(/```(tsx?)\n(.*?)```/gs)];
if (blocks.length !== 3) throw new Error(`the page has ${blocks.length} blocks of TypeScript, not 3`);
blocks.forEach(([, kind, text], n) => writeFileSync(new URL(`block${n}.${kind}`, folder), text));
for (const [, kind, text] of blocks.slice(1)) {
  const lines = text.match(/^.*\S.*$/gm).length;
  if (lines > 20) throw new Error(`an example of a component has ${lines} lines of ${kind}, not 20`);
}
