import { defineConfig } from '@playwright/test';

/** tests/console/browse.py sets these; tests/console and tests/e2e make what the tests look at. */
const { CONSOLE_URL, CONSOLE_CHROMIUM, CONSOLE_OUTPUT } = process.env;

export default defineConfig({
  testDir: 'browser',
  ...(CONSOLE_OUTPUT ? { outputDir: `${CONSOLE_OUTPUT}/results` } : {}),
  workers: 1,
  retries: 0,
  projects: [
    { name: 'console', testMatch: 'console.test.ts', timeout: 60_000 },
    // It waits for a real training and a real engine.
    { name: 'journey', testMatch: 'journey.test.ts', timeout: 840_000 },
  ],
  expect: { timeout: 15_000 },
  reporter: 'line',
  use: {
    ...(CONSOLE_URL ? { baseURL: CONSOLE_URL } : {}),
    viewport: { width: 1280, height: 860 },
    reducedMotion: 'reduce',
    launchOptions: {
      ...(CONSOLE_CHROMIUM ? { executablePath: CONSOLE_CHROMIUM } : {}),
      // In a container, Chromium's own sandbox needs rights that it does not have. It opens our own pages only. And a
      // Service's address, without the TLS that stands before it elsewhere, is to count as this machine's own does.
      args: ['--no-sandbox', `--unsafely-treat-insecure-origin-as-secure=${CONSOLE_URL ?? ''}`],
    },
  },
});
