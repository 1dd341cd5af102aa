/**
 * Builds what the Python package serves; with --check only says whether it is that.
 *
 * client.js is the client as a module, client.global.js the same as a classic script with the
 * global `Backchannel`, tabs.js one socket for all tabs: a module that imports client.js.
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { minify } from "terser";

const here = fileURLToPath(new URL(".", import.meta.url));
const target = join(here, "../../src/backchannel/static");
const { version } = JSON.parse(readFileSync(join(here, "package.json"), "utf8"));
const common = {
  bundle: true,
  minify: true,
  write: false,
  target: "es2022",
  charset: "utf8",
  // Private names become short. Both files share them, since tabs.js reaches into client.js.
  mangleProps: /^_/,
  banner: { js: `/*! Backchannel ${version}, MIT */` },
};

async function compile(entry, more) {
  const options = { ...common, entryPoints: [join(here, "src", entry)], ...more };
  const { outputFiles, mangleCache } = await build(options);
  // esbuild puts it together and shortens names in all files alike; this makes 2 % less of it.
  const { code } = await minify(outputFiles[0].text, {
    module: true,
    ecma: 2022,
    compress: { passes: 3, pure_getters: true, sequences: false },
    format: { comments: /^!/ },
  });
  return { text: `${code}\n`, mangleCache };
}

const besideIt = {
  name: "client.js stands beside it",
  setup: ({ onResolve }) =>
    onResolve({ filter: /^\.\/index\.js$/ }, () => ({ path: "./client.js", external: true })),
};

async function scripts() {
  const client = await compile("index.ts", { format: "esm", mangleCache: {} });
  const { mangleCache } = client;
  const classic = await compile("global.ts", { format: "iife" });
  const tabs = await compile("tabs.ts", { format: "esm", mangleCache, plugins: [besideIt] });
  return { "client.js": client.text, "client.global.js": classic.text, "tabs.js": tabs.text };
}

/** The types that an application needs, in one file: not those of what is inside. */
function types() {
  const folder = mkdtempSync(join(tmpdir(), "types-"));
  const tsc = join(here, "node_modules/typescript/bin/tsc");
  const emit = ["--noEmit", "false", "--declaration", "--emitDeclarationOnly", "--outDir", folder];
  execFileSync(process.execPath, [tsc, "-p", here, "--rootDir", join(here, "src"), ...emit], {
    stdio: "inherit",
  });
  const read = (name) =>
    readFileSync(join(folder, name), "utf8").replace(/^import .*\n|^export \{\};\n/gm, "");
  const client = read("errors.d.ts") + read("types.d.ts");
  const tabs = read("tabs.d.ts").match(/\/\*\*\n \* As [^]*?Client<M>;/)[0];
  rmSync(folder, { recursive: true });
  return {
    "client.d.ts": `${client}export declare const connect: Connect;\n`,
    "tabs.d.ts":
      'import type { Client, Messages, Options } from "./client.js";\n' +
      `${tabs}\nexport declare const connect: ConnectTabs;\nexport * from "./client.js";\n`,
  };
}

const built = { ...(await scripts()), ...types() };
if (process.argv.includes("--check")) {
  const stale = Object.keys(built).filter(
    (name) => !existsSync(join(target, name)) || readFileSync(join(target, name), "utf8") !== built[name],
  );
  if (stale.length) {
    console.error(`src/backchannel/static is not the build of clients/js/src: ${stale.join(", ")}.`);
    console.error("Build it: cd clients/js && npm ci && npm run build");
    process.exit(1);
  }
} else {
  mkdirSync(target, { recursive: true });
  for (const [name, text] of Object.entries(built)) writeFileSync(join(target, name), text);
}
