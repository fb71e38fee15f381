import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { defineConfig } from "vite";

// The gateway serves what lies beside a file as `.br` or `.gz`, so that it compresses nothing itself.
const compressed = {
  name: "compressed",
  apply: "build",
  configResolved(config) {
    compressed.folder = resolve(config.root, config.build.outDir);
  },
  closeBundle() {
    const { folder } = compressed;
    for (const one of readdirSync(folder, { recursive: true })) {
      if (!/\.(html|js|css|svg)$/.test(one)) continue;
      const path = join(folder, one);
      const data = readFileSync(path);
      const full = { params: { [constants.BROTLI_PARAM_SIZE_HINT]: data.length } };
      writeFileSync(`${path}.br`, brotliCompressSync(data, full));
      writeFileSync(`${path}.gz`, gzipSync(data, { level: 9 }));
    }
  },
};

const gateway = process.env.LHYDRA_GATEWAY ?? "http://127.0.0.1:8080";
const paths = ["/lhydra.v1.Recommender", "/compared", "/about", "/login", "/logout", "/reports"];

export default defineConfig({
  base: "/",
  // No preload helper, no modulepreload polyfill: the policy of the page allows no inline script.
  build: {
    outDir: "../page",
    emptyOutDir: true,
    modulePreload: false,
    assetsInlineLimit: 0,
    target: "es2022",
    // Browsers that know light-dark(): written for older ones, it follows the system alone, and the button for colours does nothing.
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
    chunkSizeWarningLimit: 300,
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  plugins: [compressed],
  server: {
    proxy: Object.fromEntries(paths.map((path) => [path, { target: gateway, changeOrigin: true }])),
  },
});
