import { defineConfig } from '@playwright/test';

/** tests/console/test_browser.py makes what the tests look at, and sets these. */
const { CONSOLE_URL, CONSOLE_CHROMIUM, CONSOLE_OUTPUT } = process.env;

export default defineConfig({
  testDir: 'browser',
  ...(CONSOLE_OUTPUT ? { outputDir: `${CONSOLE_OUTPUT}/results` } : {}),
  workers: 1,
  retries: 0,
  timeout: 60_000,
  expect: { timeout: 15_000 },
  reporter: 'line',
  use: {
    ...(CONSOLE_URL ? { baseURL: CONSOLE_URL } : {}),
    viewport: { width: 1280, height: 860 },
    reducedMotion: 'reduce',
    launchOptions: {
      ...(CONSOLE_CHROMIUM ? { executablePath: CONSOLE_CHROMIUM } : {}),
      // In a container, Chromium's own sandbox needs rights that it does not have. It opens our own pages only.
      args: ['--no-sandbox'],
    },
  },
});
