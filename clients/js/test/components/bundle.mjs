/**
 * Bundles the components of docs/browser.md, as they stand there, with parts of pages that use them.
 *
 *     node test/components/bundle.mjs FOLDER     # writes react.js and angular.js
 */
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const page = readFileSync(join(here, "../../../../docs/browser.md"), "utf8");

/** `docs/react` is the code below the heading "React". */
const fromThePage = {
  name: "from the page",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^docs\// }, ({ path }) => ({ path, namespace: "docs" }));
    onLoad({ filter: /./, namespace: "docs" }, ({ path }) => {
      const [, loader, contents] = page.match(
        new RegExp(`^## ${path.slice(5)}\\n.*?\`\`\`(tsx?)\\n(.*?)\`\`\``, "msi"),
      );
      return { contents, loader, resolveDir: here };
    });
  },
};

await build({
  entryPoints: [join(here, "react.jsx"), join(here, "angular.js")],
  bundle: true,
  outdir: process.argv[2],
  alias: { backchannel: join(here, "../../../../src/backchannel/static/client.js") },
  jsx: "automatic",
  tsconfigRaw: { compilerOptions: { experimentalDecorators: true } },
  plugins: [fromThePage],
});
