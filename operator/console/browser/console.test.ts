import { expect } from '@playwright/test';
import { createServer, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import { barriers, cut, given, go, login, OUTPUT, picture, test } from './support';

/** A namespace where an operator works, and one where models are served. */
const TEAM = given('TEAM');
const SERVING = given('SERVING');
/** Tokens of who may do everything there, and of who may only look. */
const EDITOR = given('EDITOR');
const READER = given('READER');
/** The address that `tunesmith console` printed. */
const LOCAL = given('LOCAL');

const MOST_BYTES = 300_000;
const PAGES = [
  `/${TEAM}/jobs`,
  `/${TEAM}/finetunejobs/done`,
  `/${TEAM}/compare/done,other`,
  `/${TEAM}/new/SFT`,
  `/${SERVING}/deployments`,
  `/${SERVING}/playground`,
];

test('a wrong token gets nowhere, and the right one is of this tab only', async ({ page, context }) => {
  await page.goto('/');
  await page.getByLabel('Kubernetes token').fill('nonsense');
  await page.keyboard.press('Enter');
  await expect(page.getByRole('alert')).toContainText('does not know this token');
  await picture(page, 'login');
  await login(page, EDITOR, `/${TEAM}/jobs`);
  await page.reload();
  await expect(page.getByRole('heading', { name: 'Jobs' })).toBeVisible();
  const other = await context.newPage();
  await other.goto('/');
  await expect(other.getByLabel('Kubernetes token')).toBeVisible();
  await page.getByRole('button', { name: 'Log out' }).click();
  await expect(page.getByLabel('Kubernetes token')).toBeVisible();
  expect(await page.evaluate(() => JSON.stringify([sessionStorage, localStorage]))).not.toContain(EDITOR);
});

test('jobs are listed with why and how far, found, and compared', async ({ page }) => {
  await login(page, EDITOR, `/${TEAM}/jobs`);
  const row = (name: string) => page.getByRole('row').filter({ has: page.getByRole('link', { name, exact: true }) });
  await expect(row('done')).toContainText('Completed');
  await expect(row('done')).toContainText('30/30 (100%)');
  await expect(row('broken')).toContainText('DataError');
  await picture(page, 'jobs');
  await page.getByText('Failed', { exact: true }).click();
  await expect(row('done')).toBeHidden();
  await expect(row('broken')).toBeVisible();
  await page.getByText('All', { exact: true }).click();
  for (const name of ['done', 'other']) await page.getByLabel(`Compare ${name}`).check();
  await page.getByRole('button', { name: 'Compare 2' }).click();
  await expect(page.getByRole('row', { name: 'last loss' })).toContainText('0.03333');
  await expect(page.getByRole('row', { name: 'training.maxSteps' })).toHaveText(/30\s*20/);
  await expect(page.getByRole('img', { name: /^done: loss from 1 at step 1 to 0.03333.*other: loss from 1/ })).toBeVisible();
  await picture(page, 'compare');
});

test('a job that failed says why and what to do, with its attempts and logs', async ({ page }) => {
  await login(page, EDITOR, `/${TEAM}/finetunejobs/broken`);
  await expect(page.getByRole('alert')).toContainText('row 17: no answer: found columns [query]');
  await expect(page.getByRole('alert')).toContainText('What to do:');
  await page.getByRole('tab', { name: 'Attempts (1)' }).click();
  await expect(page.getByRole('tabpanel')).toContainText('DataError');
  await page.getByRole('tab', { name: 'Logs' }).click();
  await expect(page.getByLabel('Log', { exact: true })).toContainText('DataError row 17');
  await picture(page, 'failed');
});

test('from the form to a job that runs: mistakes on the way, estimate, curve, suspend and resume', async ({ page }) => {
  await login(page, EDITOR, `/${TEAM}/new/SFT`);
  await page.getByRole('textbox', { name: 'Name', exact: true }).first().fill('made');
  const yaml = page.getByRole('textbox', { name: 'YAML' });
  await expect(yaml).toHaveValue(/name: made/);

  // A rule between fields is the API server's, by a dry run.
  await yaml.fill(
    JSON.stringify({
      apiVersion: 'tunesmith.io/v1alpha1',
      kind: 'FineTuneJob',
      metadata: { name: 'made' },
      spec: {
        model: { uri: 'file:///behave/steps-200' },
        datasets: [{ uri: 'file:///data.jsonl' }],
        method: { type: 'SFT' },
        elastic: { minNodes: 4 },
        training: { maxSteps: 100, globalBatchSize: 2, maxLength: 512 },
        memory: { perDevice: '24Gi' },
      },
    }),
  );
  await expect(page.getByText('One thing is wrong')).toBeVisible();
  await expect(page.getByRole('alert').filter({ hasText: 'elastic.minNodes must be at most nodes' }).first()).toBeVisible();
  await expect(page.getByRole('button', { name: 'Create' })).toBeDisabled();
  await page.screenshot({ path: `${OUTPUT}/new-refused.png` });
  // A field that there is not is named.
  await yaml.fill((await yaml.inputValue()).replace('"elastic":{"minNodes":4}', '"nodez":1'));
  await expect(page.getByText('spec.nodez:')).toBeVisible();
  await yaml.fill((await yaml.inputValue()).replace('"nodez":1,', ''));
  await expect(page.getByText('One thing is wrong')).toBeHidden();

  // What is entered into the form is what the YAML says.
  await page.getByLabel('Nodes', { exact: true }).fill('2');
  await expect(yaml).toHaveValue(/nodes: 2/);
  await page.getByLabel('Nodes', { exact: true }).fill('');
  await expect(yaml).not.toHaveValue(/nodes:/);
  // Also key by key: 0.0 is on the way to 0.0002.
  const rate = page.getByLabel('Learning rate', { exact: true }).first();
  await rate.pressSequentially('0.0002');
  await expect(yaml).toHaveValue(/learningRate: 0.0002/);
  await rate.fill('');

  await page.getByLabel('config.json of the model').fill(
    JSON.stringify({
      model_type: 'qwen2', architectures: ['Qwen2ForCausalLM'], hidden_size: 896, intermediate_size: 4864, num_hidden_layers: 24,
      num_attention_heads: 14, num_key_value_heads: 2, vocab_size: 151936, tie_word_embeddings: true, torch_dtype: 'bfloat16',
    }),
  );
  const needs = page.getByRole('region', { name: 'What it needs' });
  await expect(needs).toContainText(/[Ww]eights [\d.]+ [MG]iB/);
  await expect(needs).not.toContainText('no estimate of memory');
  await expect(needs.getByText('Plan', { exact: true })).toBeVisible();
  await needs.getByText(/^Objects \(\d\)$/).click();
  await expect(needs.getByLabel(/^Objects/)).toContainText('kind: Job');
  await page.screenshot({ path: `${OUTPUT}/new.png` });
  await page.getByRole('button', { name: 'Create' }).click();

  await expect(page.getByRole('heading', { level: 1, name: 'made' })).toBeVisible();
  const curve = page.getByRole('img', { name: /^made: / });
  const last = async () => Number(/at step (\d+), least/.exec((await curve.getAttribute('aria-label')) ?? '')?.[1] ?? 0);
  await expect.poll(last, { timeout: 40_000 }).toBeGreaterThan(2);
  const before = await last();
  await expect.poll(last).toBeGreaterThan(before + 5);
  await expect(page.getByLabel('Log', { exact: true })).toContainText(/step 5\/100 {2}loss 0.2/);
  await picture(page, 'running');

  await page.getByRole('button', { name: 'Suspend' }).click();
  await expect(page.getByText('Suspended', { exact: true })).toBeVisible({ timeout: 30_000 });
  await page.getByRole('button', { name: 'Resume' }).click();
  await expect(page.getByText('Running', { exact: true })).toBeVisible({ timeout: 30_000 });
  const resumed = await last();
  await expect.poll(last, { timeout: 30_000 }).toBeGreaterThan(resumed + 2);
  await page.getByRole('tab', { name: 'Attempts (2)' }).click();
  await picture(page, 'resumed');

  // It is not deleted by one wrong key.
  await page.getByRole('button', { name: 'Delete' }).click();
  await expect(page.getByRole('dialog', { name: 'Delete made?' })).toBeVisible();
  await page.keyboard.press('Escape');
  await expect(page.getByRole('dialog')).toBeHidden();
  await page.getByRole('button', { name: 'Delete' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click();
  await expect(page.getByRole('heading', { name: 'Jobs' })).toBeVisible();
  await expect(page.getByRole('link', { name: 'made', exact: true })).toBeHidden();
});

test('who may only look sees, and is told by the API server what needs more', async ({ page }) => {
  await login(page, READER, `/${TEAM}/finetunejobs/waiting`);
  await page.getByRole('button', { name: 'Suspend' }).click();
  await expect(page.getByRole('alert', { name: /finetunejobs.* is forbidden/ })).toBeVisible();
  await page.getByRole('tab', { name: 'Pods' }).click();
  await expect(page.getByText('You may not read pods here.')).toBeVisible();
  await picture(page, 'reader');
  await go(page, `/${TEAM}/new/SFT`);
  await expect(page.getByText('cannot create resource').first()).toBeVisible();
  await expect(page.getByRole('button', { name: 'Create' })).toBeDisabled();
});

test('who may not list namespaces types the one to look at', async ({ page }) => {
  await login(page, EDITOR, `/${TEAM}/jobs`);
  await expect(page.getByRole('link', { name: 'done', exact: true })).toBeVisible();
  await page.getByRole('textbox', { name: 'Namespace' }).fill(SERVING);
  await page.keyboard.press('Enter');
  await expect(page.getByRole('link', { name: 'source', exact: true })).toBeVisible();
  await expect(page.getByRole('link', { name: 'done', exact: true })).toBeHidden();
});

test('it works below a path of an Ingress that takes the path away', async ({ page }) => {
  const below = '/tools/console';
  const { hostname, port } = new URL(given('URL'));
  const ingress = createServer((asked, answer) => {
    if (!asked.url?.startsWith(`${below}/`)) {
      answer.writeHead(404).end();
      return;
    }
    const path = asked.url.slice(below.length);
    const passed = request({ hostname, port, path, method: asked.method, headers: asked.headers }, (got) => {
      answer.writeHead(got.statusCode ?? 502, got.headers);
      got.pipe(answer);
    });
    asked.pipe(passed);
  });
  await new Promise<void>((done) => ingress.listen(0, '127.0.0.1', done));
  await page.goto(`http://127.0.0.1:${(ingress.address() as AddressInfo).port}${below}/`);
  await page.getByLabel('Kubernetes token').fill(EDITOR);
  await page.keyboard.press('Enter');
  await expect(page.locator('#main')).toBeVisible();
  await go(page, `/${TEAM}/finetunejobs/done`);
  await expect(page.getByRole('img', { name: /^done: loss from 1 at step 1/ })).toBeVisible();
  await page.close();
  ingress.close();
});

test('an adapter is added to a deployment and taken away, and its state is shown', async ({ page }) => {
  await login(page, EDITOR, `/${SERVING}/deployments`);
  const chat = page.getByRole('region', { name: 'chat', exact: true });
  await expect(chat.getByRole('row', { name: 'polite' })).toContainText('Ready');
  await picture(page, 'deployments');
  await chat.getByLabel('Add the adapter of').selectOption('source');
  await chat.getByLabel('as', { exact: true }).fill('second');
  await chat.getByRole('button', { name: 'Add' }).click();
  await expect(chat.getByRole('row', { name: 'second' })).toContainText('Waiting');
  // It is not taken away by one wrong key, and all of it can be done by keys.
  const remove = chat.getByLabel('Remove adapter second');
  const asked = page.getByRole('dialog', { name: 'Remove adapter second of chat?' });
  await remove.press('Enter');
  await expect(asked.getByRole('button', { name: 'Cancel' })).toBeFocused();
  expect(await barriers(page)).toEqual([]);
  await page.keyboard.press('Enter');
  await expect(asked).toBeHidden();
  await expect(remove).toBeFocused();
  await remove.press('Enter');
  await page.keyboard.press('Escape');
  await expect(asked).toBeHidden();
  await expect(chat.getByRole('row', { name: 'second' })).toBeVisible();
  await remove.press('Enter');
  await page.keyboard.press('Tab');
  await expect(asked.getByRole('button', { name: 'Remove' })).toBeFocused();
  await page.keyboard.press('Enter');
  await expect(chat.getByRole('row', { name: 'second' })).toBeHidden();
});

test('two models answer side by side, word by word, and can be stopped', async ({ page }) => {
  await login(page, EDITOR, `/${SERVING}/playground/chat`);
  await page.getByLabel('Left model', { exact: true }).last().selectOption('chat/base');
  await page.getByLabel('Right model', { exact: true }).last().selectOption('chat/polite');
  await page.getByLabel('Message', { exact: true }).fill('how are you');
  await page.keyboard.press('Enter');
  const left = page.getByRole('log', { name: 'Answers of the left model' });
  const right = page.getByRole('log', { name: 'Answers of the right model' });
  // The beginning is there while the end is not.
  await expect(left).toContainText('base says: 1 2 3');
  await expect(right).toContainText('polite says: 1 2 3');
  expect(await left.textContent()).not.toContain(' 40');
  await expect(left).toContainText(' 40', { timeout: 20_000 });
  await expect(right).toContainText('you asked: how are you', { timeout: 20_000 });
  await expect(right).toContainText('pieces/s');
  await expect(page.getByRole('button', { name: 'Clear' })).toBeVisible();
  await picture(page, 'playground');
  await page.getByLabel('Message', { exact: true }).fill('again');
  await page.keyboard.press('Enter');
  await expect(left.getByText('base says: 1 2 3')).toHaveCount(2);
  await page.getByRole('button', { name: 'Stop' }).click();
  await expect(page.getByRole('button', { name: 'Clear' })).toBeVisible();
});

test('the address that `tunesmith console` prints is all it takes, and its secret leaves the address', async ({ page }) => {
  await page.goto(LOCAL);
  await expect(page.getByRole('heading', { name: 'Jobs' })).toBeVisible();
  expect(page.url()).not.toContain('token');
  await expect(page.getByRole('link', { name: 'done', exact: true })).toBeVisible();
  await expect(page.getByRole('button', { name: 'Log out' })).toHaveCount(0);
});

test('all of it can be done without a mouse', async ({ page }) => {
  await login(page, EDITOR, `/${TEAM}/jobs`);
  await page.reload();
  await expect(page.getByRole('link', { name: 'done', exact: true })).toBeVisible();
  await page.keyboard.press('Tab');
  await expect(page.getByText('Skip to the content')).toBeFocused();
  await page.keyboard.press('Enter');
  await expect(page.locator('#main')).toBeFocused();
  const reach = async (what: () => Promise<boolean>, most = 60) => {
    for (let count = 0; count < most && !(await what()); count += 1) await page.keyboard.press('Tab');
    expect(await what()).toBe(true);
  };
  const focused = (text: string) => () => page.evaluate((wanted) => document.activeElement?.textContent === wanted, text);
  await reach(focused('done'));
  await page.keyboard.press('Enter');
  await expect(page.getByRole('heading', { level: 1, name: 'done' })).toBeVisible();
  await reach(focused('Logs'));
  await page.keyboard.press('ArrowRight');
  await expect(page.getByRole('tab', { name: 'Attempts (1)' })).toHaveAttribute('aria-selected', 'true');
});

for (const scheme of ['light', 'dark'] as const) {
  test(`no page has a barrier (${scheme})`, async ({ page }) => {
    test.setTimeout(120_000);
    await page.emulateMedia({ colorScheme: scheme });
    await login(page, EDITOR, `/${TEAM}/jobs`);
    const found: string[] = [];
    for (const path of PAGES) {
      await go(page, path);
      await page.waitForLoadState('networkidle', { timeout: 3000 }).catch(() => undefined);
      found.push(...(await barriers(page)).map((one) => `${path}: ${one}`));
      if (scheme === 'dark') await picture(page, `dark-${path.split('/')[2] ?? ''}`);
    }
    expect(found).toEqual([]);
  });
}

test('on a small screen nothing is cut off', async ({ page }) => {
  await page.setViewportSize({ width: 390, height: 844 });
  await login(page, EDITOR, `/${TEAM}/jobs`);
  for (const path of PAGES) {
    await page.evaluate((hash) => (location.hash = hash), path);
    await expect(page.getByRole('heading', { level: 1 })).toBeVisible();
    const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    expect(over, path).toBeLessThanOrEqual(0);
    expect(await cut(page), path).toEqual([]);
    await picture(page, `small-${path.split('/')[2] ?? ''}`);
  }
});

test('no page weighs more than 300 KB, as it is sent', async ({ browser }) => {
  for (const path of PAGES) {
    const context = await browser.newContext();
    const page = await context.newPage();
    const session = await context.newCDPSession(page);
    await session.send('Network.enable');
    let bytes = 0;
    session.on('Network.loadingFinished', (event) => (bytes += event.encodedDataLength));
    await page.addInitScript((token) => sessionStorage.setItem('tunesmith-token', token), EDITOR);
    await page.goto(`/#${path}`);
    await expect(page.locator('#main').getByRole('heading', { level: 1 })).toBeVisible();
    await page.waitForTimeout(1000);
    expect(bytes, path).toBeGreaterThan(50_000);
    expect(bytes, path).toBeLessThan(MOST_BYTES);
    console.log(`${path}: ${bytes} bytes`);
    await context.close();
  }
});
