import { expect, type Page, test as base } from '@playwright/test';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

export function given(name: string): string {
  const value = process.env[`CONSOLE_${name}`];
  if (!value) throw new Error(`CONSOLE_${name} is not set: tests/console/browse.py sets it`);
  return value;
}

export const OUTPUT = given('OUTPUT');

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** A page that must raise no error and break no rule of the Content-Security-Policy. */
export const test = base.extend<{ quiet: string[] }>({
  quiet: [
    async ({ page }, use) => {
      const said: string[] = [];
      page.on('pageerror', (error) => said.push(error.message));
      page.on('console', (message) => {
        // What the API server refuses is an error for the browser, too; the pages tell of it.
        if (message.type() === 'error' && !message.text().startsWith('Failed to load resource')) said.push(message.text());
      });
      await use(said);
      expect(said).toEqual([]);
    },
    { auto: true },
  ],
});

export async function login(page: Page, token: string, path: string): Promise<void> {
  await page.goto('/');
  await page.getByLabel('Kubernetes token').fill(token);
  await page.keyboard.press('Enter');
  await expect(page.locator('#main')).toBeVisible();
  await go(page, path);
}

export async function go(page: Page, path: string): Promise<void> {
  await page.evaluate((hash) => (location.hash = hash), path);
  await expect(page.getByRole('heading', { level: 1 })).toBeVisible();
}

export async function picture(page: Page, name: string): Promise<void> {
  await page.screenshot({ path: `${OUTPUT}/${name}.png`, fullPage: true });
}

/** Words for a state that have less room than they take. */
export async function cut(page: Page): Promise<string[]> {
  const words = page.locator('.state .mantine-Badge-label');
  return words.evaluateAll((all) => all.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent));
}

interface Found {
  violations: { id: string; help: string; nodes: { target: unknown; failureSummary?: string }[] }[];
}

/** What axe-core says is wrong for people with other senses or without a mouse (WCAG 2.2 A and AA). */
export async function barriers(page: Page): Promise<string[]> {
  // As the browser's own tools do it: the page's policy does not let scripts of tests in.
  const session = await page.context().newCDPSession(page);
  await session.send('Runtime.evaluate', { expression: AXE });
  const run = 'axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] }).then(JSON.stringify)';
  const { result } = await session.send('Runtime.evaluate', { expression: run, awaitPromise: true });
  await session.detach();
  const { violations } = JSON.parse(result.value as string) as Found;
  return violations.flatMap(({ id, help, nodes }) => nodes.map((node) => `${id}: ${help}: ${JSON.stringify(node.target)} ${node.failureSummary ?? ''}`));
}
