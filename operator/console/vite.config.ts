import react from '@vitejs/plugin-react';
import { defineConfig } from 'vitest/config';
import { compression } from 'vite-plugin-compression2';

export default defineConfig({
  // The console also works under a path of an Ingress.
  base: './',
  plugins: [react(), compression({ algorithms: ['gzip', 'brotliCompress'], exclude: /\.(gz|br)$/ })],
  build: {
    // No data: addresses, which the Content-Security-Policy would have to let in.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    manifest: true,
    // A helper for tests of rjsf imports it. Nothing of that is in what is built.
    rolldownOptions: { external: ['@rjsf/validator-ajv8'] },
  },
  test: { include: ['test/**/*.test.ts'] },
});
